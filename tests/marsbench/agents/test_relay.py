"""The relay answers for the model while the engine does the work."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest
from agents_cell import reply, serving

from marsbench.agents.relay import Relay
from marsbench.gateway.backends.fake import FakeAnswer, FakeBackend

SCRIPT = [reply("terminal", text="Look.", command="ls"), reply("finish", 1, message="done")]
USER = {"role": "user", "content": "go"}


def ask(backend, *bodies, session="s", scripts=None):
    """Status and text of each answer to a session's requests, and the relay."""

    async def run(url):
        relay = Relay(url, {"s": SCRIPT} if scripts is None else scripts)
        await relay.start()
        found = []
        try:
            async with aiohttp.ClientSession(headers={"X-Session-Id": session}) as client:
                for body in bodies:
                    path = f"{relay.url}/v1/chat/completions"
                    async with client.post(path, json=body) as answer:
                        found.append((answer.status, await answer.text()))
                async with client.get(f"{relay.url}/metrics") as answer:
                    found.append((answer.status, await answer.text()))
        finally:
            await relay.stop()
        return found, relay

    with serving(backend) as url:
        return asyncio.run(run(url))


def test_recorded_reply_and_the_engine_s_counts():
    """The agent gets the script's message with the token counts of the engine that really ran."""
    backend = FakeBackend()
    tools = [{"type": "function", "function": {"name": "terminal"}}]
    (first, metrics), relay = ask(backend, {"messages": [USER], "tools": tools, "stop": ["x"]})
    choice = json.loads(first[1])["choices"][0]
    assert choice["message"]["content"] == "Look."
    assert choice["message"]["tool_calls"] == SCRIPT[0].message["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert json.loads(first[1])["usage"]["completion_tokens"] == 4
    sent = backend.bodies[0]
    assert (sent["max_tokens"], sent["tool_choice"], sent["tools"]) == (4, "none", tools)
    assert "stop" not in sent
    assert metrics[0] == 200
    assert "vllm:num_requests_running" in metrics[1]
    assert relay.wrong_lengths == 0


def test_streamed_reply_is_the_same():
    """A client that asks for a stream gets the same message in pieces, and the counts if it asks."""
    body = {"messages": [USER], "stream": True, "stream_options": {"include_usage": True}}
    (answer, _), _ = ask(FakeBackend(), body)
    lines = [line[6:] for line in answer[1].splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == "Look."
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    arguments = "".join(call["function"]["arguments"] for call in calls)
    assert json.loads(arguments) == {"command": "ls"}
    assert chunks[-1]["usage"]["completion_tokens"] == 4


def test_turn_is_told_by_the_replies_in_the_prompt():
    """The next reply of the script follows the last one that the agent has; then it is over."""
    said = {"role": "assistant", "content": "x"}
    (second, over, _), relay = ask(
        FakeBackend(), {"messages": [USER, said]}, {"messages": [USER, said, USER, said]}
    )
    assert json.loads(second[1])["choices"][0]["message"]["tool_calls"][0]["id"] == "call_1"
    assert over[0] == 400
    assert "is over" in over[1]
    assert [(note.turn, note.roles, note.status) for note in relay.notes] == [
        (1, "ua", 200),
        (2, "uaua", 400),
    ]


def test_engine_s_errors_are_passed_on():
    """An engine that fails makes the turn fail, with its status."""
    (failed, _), _ = ask(FakeBackend(plan=lambda *_: FakeAnswer(status=503)), {"messages": [USER]})
    assert failed[0] == 503
    (cut, _), _ = ask(FakeBackend(plan=lambda *_: FakeAnswer(fault="cut")), {"messages": [USER]})
    assert cut[0] == 502


@pytest.mark.parametrize("stream", [False, True])
def test_sessions_without_a_script_pass(stream):
    """Without a script, the model's own reply passes unchanged."""
    backend = FakeBackend()
    (answer, _), _ = ask(backend, {"messages": [USER], "stream": stream}, session="other")
    assert "one " in answer[1]
    assert backend.bodies == [{"messages": [USER], "stream": stream}]


def test_other_lengths_are_counted():
    """An engine that does not generate what it was asked for is told of."""
    backend = FakeBackend(plan=lambda *_: FakeAnswer(output=("one",)))
    _, relay = ask(backend, {"messages": [USER]})
    assert relay.wrong_lengths == 1
