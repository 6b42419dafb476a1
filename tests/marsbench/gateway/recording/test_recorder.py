"""A recording says what the agents did, in tokens and seconds, and never what was said."""

from __future__ import annotations

import asyncio
import gzip
import json

import pytest

from marsbench.core import plan_turns
from marsbench.errors import ConfigError
from marsbench.gateway.backends.fake import FakeAnswer, FakeBackend, count_tokens
from marsbench.gateway.recording.tracefile import TraceFile
from marsbench.trace.io import read_sessions
from marsbench.trace.source import PROVENANCE_KEY
from marsbench.trace.validate import validate

SYSTEM = {"role": "system", "content": "You are a careful engineer. " * 40}
TASK = {"role": "user", "content": "Please fix the parser. SECRET-TEXT " * 10}


def calling(*calls, **fields):
    return FakeAnswer(output=("Let me look. ",) * 20, calls=calls, **fields)


async def agent(r, name, plans, *, stream=False, pause_s=0.0, rewrite=None):
    """An agent of ``len(plans)`` turns that answers each tool call with a result."""
    messages = [SYSTEM, TASK]
    prompts = []
    for turn in range(len(plans)):
        if rewrite and turn in rewrite:
            messages = rewrite[turn](messages)
        prompts.append(count_tokens({"messages": messages}))
        answer = await r.chat(messages, session=name, stream=stream)
        assert answer.status_code == 200
        message = assembled(answer, stream)
        messages = [*messages, message]
        await asyncio.sleep(pause_s)
        for call in message.get("tool_calls") or ():
            text = f"output of turn {turn} " * 30
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": text})
    await r.client.post(f"/v1/sessions/{name}/end")
    return prompts


def assembled(answer, stream):
    """The assistant message, as an agent framework would put it together."""
    if not stream:
        return answer.json()["choices"][0]["message"]
    text, calls = "", {}
    for line in answer.text.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                text += choice["delta"].get("content") or ""
                for part in choice["delta"].get("tool_calls") or ():
                    call = calls.setdefault(part["index"], {"id": "", "name": "", "arguments": ""})
                    call["id"] += part.get("id") or ""
                    call["name"] += part["function"].get("name") or ""
                    call["arguments"] += part["function"]["arguments"]
    return {
        "role": "assistant",
        "content": text,
        "tool_calls": [
            {
                "id": c["id"],
                "type": "function",
                "function": {k: c[k] for k in ("name", "arguments")},
            }
            for c in calls.values()
        ],
    }


def record(any_rig, tmp_path, story, plan, **settings):
    """Run a story against a recording gateway; the sessions of its trace."""
    path = tmp_path / "trace.jsonl.gz"

    async def run():
        async with any_rig(backends=[FakeBackend(plan=plan)], record=path, **settings) as r:
            return await story(r)

    outcome = asyncio.run(run())
    return outcome, list(read_sessions(path)), path


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_replayed_from_the_trace_are_those_that_were_sent(any_rig, tmp_path, stream):
    """plan_turns on the recorded session gives the backend's own prompt lengths, turn by turn."""
    plans = [
        calling(("c1", "bash", '{"command": "grep -r parser ."}')),
        calling(("c2", "str_replace_editor", '{"command": "str_replace"}')),
        FakeAnswer(output=("Done.",)),
    ]

    async def story(r):
        return await agent(r, "task-1", plans, stream=stream, pause_s=0.05)

    prompts, sessions, path = record(any_rig, tmp_path, story, lambda number, _body: plans[number])
    assert [s.session_id for s in sessions] == ["task-1"]
    session = sessions[0]
    assert [plan.prompt_tokens for plan in plan_turns(session)] == prompts
    assert [turn.resent_output for turn in session.turns] == [1.0, 1.0, 1.0]
    names = [[(t.name, t.tool_class) for t in turn.tools] for turn in session.turns]
    assert names == [[("bash", "shell_read")], [("str_replace_editor", "edit")], []]
    assert 0.05 <= session.turns[0].tools[0].wall_s < 1.0
    assert session.turns[0].tools[0].result_tokens > 50
    assert session.shared_prefix.tokens > 100
    assert validate(path).ok


def test_no_text_is_in_the_file(any_rig, tmp_path):
    """Neither prompts nor replies, nor hashes that could be tried out without the salt."""

    async def story(r):
        await agent(r, "t", [FakeAnswer()])

    _, _, path = record(any_rig, tmp_path, story, lambda _n, _b: FakeAnswer(output=("REPLY-TEXT",)))
    text = gzip.decompress(path.read_bytes()).decode()
    assert "SECRET" not in text
    assert "REPLY" not in text
    assert "engineer" not in text
    assert PROVENANCE_KEY in json.loads(text)


def test_compaction_is_a_drop_to_the_common_prefix(any_rig, tmp_path):
    """Turn 2 keeps the system message and replaces the rest: what is kept is the system message
    to the block, and the prompt length is still exact."""
    plans = [
        calling(("c1", "bash", "{}")),
        calling(("c2", "bash", "{}")),
        FakeAnswer(output=("ok",)),
    ]
    summary = {"role": "user", "content": "Summary of the work so far. " * 5}

    async def story(r):
        return await agent(r, "t", plans, rewrite={2: lambda _m: [SYSTEM, summary]})

    prompts, sessions, _ = record(any_rig, tmp_path, story, lambda number, _b: plans[number])
    turns = sessions[0].turns
    found = plan_turns(sessions[0])
    assert [plan.prompt_tokens for plan in found] == prompts
    assert turns[1].drop_context_to is None
    assert turns[2].drop_context_to == turns[2].kept_prefix_tokens
    system_share = len(SYSTEM["content"]) / (len(SYSTEM["content"]) + len(summary["content"]))
    assert found[2].reused_tokens == pytest.approx(system_share * prompts[2], rel=0.1)


def test_rewritten_replies_are_not_called_verbatim(any_rig, tmp_path):
    """An agent that sends back a third of the reply: resent_output is near a third, and the
    reusable prefix ends at the previous prompt."""
    plans = [calling(("c1", "bash", "{}")), FakeAnswer(output=("ok",))]

    def shorten(messages):
        *rest, reply, result = messages
        return [*rest, {**reply, "content": reply["content"][: len(reply["content"]) // 3]}, result]

    async def story(r):
        return await agent(r, "t", plans, rewrite={1: shorten})

    prompts, sessions, _ = record(any_rig, tmp_path, story, lambda number, _b: plans[number])
    found = plan_turns(sessions[0])
    assert 0.2 < sessions[0].turns[0].resent_output < 0.5
    assert found[1].reused_tokens == prompts[0]
    assert [plan.prompt_tokens for plan in found] == prompts


def test_counts_that_the_backend_does_not_give_are_estimated_and_marked(any_rig, tmp_path):
    """Without usage the turn's lengths come from bytes, and the line says which turns."""

    async def story(r):
        await agent(r, "t", [FakeAnswer(), FakeAnswer()])

    _, sessions, path = record(
        any_rig, tmp_path, story, lambda number, _b: calling(("c", "bash", "{}"), usage=number == 0)
    )
    line = json.loads(gzip.decompress(path.read_bytes()).splitlines()[0])
    assert line["x_estimated_turns"] == [1]
    assert len(sessions[0].turns) == 2


def test_leased_tools_are_recorded_with_their_own_times(any_rig, tmp_path):
    """0.1 s under a lease in a longer gap: the tool took 0.1 s, the rest is thinking."""

    async def story(r):
        await r.chat([SYSTEM, TASK], session="t")
        lease = await r.client.post("/v1/tools/acquire", json={"session_id": "t", "name": "bash"})
        await asyncio.sleep(0.1)
        body = {"lease": lease.json()["lease"], "cpu_s": 0.07}
        released = await r.client.post("/v1/tools/release", json=body)
        await asyncio.sleep(0.2)
        await r.chat([SYSTEM, TASK, TASK], session="t")
        await r.client.post("/v1/sessions/t/end")
        return released.json()["held_s"]

    held_s, sessions, _ = record(
        any_rig, tmp_path, story, lambda _n, _b: calling(("c1", "bash", '{"command":"make"}'))
    )
    first = sessions[0].turns[0]
    assert len(first.tools) == 1
    assert 0.1 <= first.tools[0].wall_s <= held_s
    assert first.tools[0].cpu_s == pytest.approx(0.07)
    assert first.think_s >= 0.2


def test_sub_agents_are_children_of_the_turn_that_started_them(any_rig, tmp_path):
    """A request with other system messages while a task tool runs is recorded below its parent,
    in place of the tool call."""
    explorer = [{"role": "system", "content": "You explore."}, TASK]

    async def story(r):
        reply = await r.chat([SYSTEM, TASK], session="t")
        await r.chat(explorer, session="t")
        message = reply.json()["choices"][0]["message"]
        await r.chat([SYSTEM, TASK, message, TASK], session="t")
        await r.client.post("/v1/sessions/t/end")

    plans = [calling(("c1", "task", "{}")), FakeAnswer(), FakeAnswer()]
    _, sessions, path = record(any_rig, tmp_path, story, lambda number, _b: plans[number])
    assert len(sessions) == 1
    assert len(sessions[0].turns) == 2
    assert [len(child.turns) for child in sessions[0].turns[0].children] == [1]
    assert sessions[0].turns[0].tools == ()
    assert validate(path).ok


def test_failed_turns_are_not_in_the_trace_and_sessions_end_with_the_gateway(any_rig, tmp_path):
    """A 500 between two good turns leaves two turns; open sessions are written at shutdown."""
    plans = [calling(("c1", "bash", "{}")), FakeAnswer(status=500), FakeAnswer(output=("ok",))]

    async def story(r):
        reply = await r.chat([SYSTEM, TASK], session="t")
        longer = [SYSTEM, TASK, reply.json()["choices"][0]["message"], TASK]
        assert (await r.chat(longer, session="t")).status_code == 500
        assert (await r.chat(longer, session="t")).status_code == 200

    _, sessions, _ = record(any_rig, tmp_path, story, lambda number, _b: plans[number])
    assert len(sessions[0].turns) == 2
    assert sessions[0].turns[0].resent_output == 1.0


def test_black_box_agents_are_recorded_as_sessions(any_rig, tmp_path):
    """Three agents that name nothing, the same task, interleaved: three sessions of three turns."""

    async def one(r, k):
        messages = [SYSTEM, TASK]
        for _ in range(3):
            answer = await r.chat(messages)
            message = answer.json()["choices"][0]["message"]
            call_id = message["tool_calls"][0]["id"]
            result = {"role": "tool", "tool_call_id": call_id, "content": f"agent {k}"}
            messages = [*messages, message, result]
            await asyncio.sleep(0.01)

    async def story(r):
        await asyncio.gather(*(one(r, k) for k in range(3)))

    _, sessions, _ = record(
        any_rig, tmp_path, story, lambda number, _b: calling((f"call-{number}", "bash", "{}"))
    )
    assert sorted(len(s.turns) for s in sessions) == [3, 3, 3]


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.jsonl.zst"])
@pytest.mark.parametrize("cut", [1, 7, 20])
def test_a_torn_end_is_cut_off_and_nothing_else_is_lost(tmp_path, name, cut):
    """A crash in the middle of a line: the sessions before stay, and append goes on after them."""
    path = tmp_path / name
    line = b'{"trace_version":1,"session_id":"%d","agent":"","model":"","turns":'
    line += b'[{"new_input_tokens":5,"output_tokens":1,"tools":[]}]}'
    file = TraceFile(path)
    for number in range(3):
        file.write(line % number)
    file.close()
    path.write_bytes(path.read_bytes()[:-cut])
    again = TraceFile(path, append=True)
    assert again.ids == {"0", "1"}
    again.write(line % 9)
    again.close()
    assert [s.session_id for s in read_sessions(path)] == ["0", "1", "9"]


def test_files_are_not_overwritten_and_not_shared(tmp_path):
    """An existing trace needs --append, and one writer at a time."""
    path = tmp_path / "t.jsonl"
    first = TraceFile(path)
    with pytest.raises(ConfigError, match="another gateway"):
        TraceFile(path)
    first.write(b"{}")
    first.close()
    with pytest.raises(ConfigError, match="--append"):
        TraceFile(path)


def test_appended_runs_never_repeat_an_id(any_rig, tmp_path):
    """The second run's session t becomes t@2."""

    async def story(r):
        await agent(r, "t", [FakeAnswer()])

    record(any_rig, tmp_path, story, lambda _n, _b: FakeAnswer())
    _, sessions, _ = record(any_rig, tmp_path, story, lambda _n, _b: FakeAnswer(), append=True)
    assert [s.session_id for s in sessions] == ["t", "t@2"]
