"""What is read from replies as they pass, however the network cuts them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsbench.gateway.messages.classify import classify
from marsbench.gateway.messages.prompt import reply_print, tool_results
from marsbench.gateway.messages.reply import Reply
from marsbench.gateway.messages.stream import StreamPass, event_data, split_events
from marsbench.gateway.problems import as_openai


def chunk(**delta) -> bytes:
    return json.dumps({"id": "r", "choices": [{"index": 0, "delta": delta}]}).encode()


@given(
    texts=st.lists(st.text(max_size=30), max_size=12),
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=20),
    crlf=st.booleans(),
)
def test_events_survive_any_cutting_of_the_bytes(texts, cuts, crlf):
    """The same events come out, and their bytes are exactly those that went in."""
    end = b"\r\n\r\n" if crlf else b"\n\n"
    data = b"".join(b"data: " + json.dumps(text).encode() + end for text in texts)
    passing = StreamPass(Reply(), hide_usage=False)
    found, start, turn = [], 0, 0
    while start < len(data):
        size = cuts[turn % len(cuts)]
        found += split_events(passing.feed(data[start : start + size]))
        start, turn = start + size, turn + 1
    assert b"".join(found) + passing.finish() == data
    assert [json.loads(event_data(event)) for event in found] == texts


def test_comments_and_done_carry_no_data():
    """Keep-alive comments, [DONE], and data over two lines."""
    assert event_data(b": ping\n\n") == b""
    assert event_data(b"data: [DONE]\n\n") == b""
    assert event_data(b"event: x\ndata: {\ndata: }\n\n") == b"{\n}"


def test_streamed_and_whole_replies_read_alike():
    """Text in pieces and arguments in fragments give the print of the assembled message."""
    streamed = Reply()
    for part in ("Let me ", "look."):
        streamed.feed(chunk(content=part))
    start = {"index": 0, "id": "c1", "function": {"name": "bash", "arguments": ""}}
    streamed.feed(chunk(tool_calls=[start]))
    for part in ('{"comm', 'and": "ls"}'):
        streamed.feed(chunk(tool_calls=[{"index": 0, "function": {"arguments": part}}]))
    message = {
        "role": "assistant",
        "content": "Let me look.",
        "tool_calls": [
            {
                "id": "c1",
                "type": "function",
                "function": {"name": "bash", "arguments": '{"command": "ls"}'},
            }
        ],
    }
    whole = Reply()
    whole.feed(json.dumps({"id": "r", "choices": [{"index": 0, "message": message}]}).encode())
    assert streamed.facts().print() == whole.facts().print() == reply_print(message)
    assert streamed.calls[0].arguments == '{"command": "ls"}'


def test_usage_alone_is_recognised_and_read():
    """Only an event without choices is the extra one; cached tokens are found in both APIs."""
    reply = Reply()
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    assert reply.feed(json.dumps({"choices": [], "usage": usage}).encode())
    assert (reply.prompt_tokens, reply.output_tokens, reply.cached_tokens) == (9, 2, 4)
    with_choice = {"choices": [{"index": 0, "delta": {"content": "x"}}], "usage": usage}
    assert not reply.feed(json.dumps(with_choice).encode())


def test_responses_api_events_are_read():
    """Text deltas, a function call item, and the counts of response.completed."""
    reply = Reply()
    for event in (
        {"type": "response.created", "response": {"id": "resp-1"}},
        {"type": "response.output_text.delta", "delta": "Hi"},
        {
            "type": "response.output_item.done",
            "item": {"type": "function_call", "call_id": "c1", "name": "bash", "arguments": "{}"},
        },
        {
            "type": "response.completed",
            "response": {
                "id": "resp-1",
                "status": "completed",
                "usage": {
                    "input_tokens": 7,
                    "output_tokens": 3,
                    "input_tokens_details": {"cached_tokens": 5},
                },
            },
        },
    ):
        assert not reply.feed(json.dumps(event).encode())
    assert reply.response_id == "resp-1"
    assert (reply.prompt_tokens, reply.output_tokens, reply.cached_tokens) == (7, 3, 5)
    assert [(c.call_id, c.name) for c in reply.calls.values()] == [("c1", "bash")]
    assert reply.text_bytes == 2


def test_anthropic_streams_and_messages_read_alike():
    """Blocks in pieces give the print of the message that the next prompt carries; total input is
    uncached + cache read (3 + 7)."""
    streamed = Reply()
    tool = {"type": "tool_use", "id": "t1", "name": "Bash", "input": {}}
    for event in (
        {"type": "message_start", "message": {"id": "m1", "usage": {"input_tokens": 3}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
        {"type": "content_block_start", "index": 1, "content_block": tool},
        {"type": "content_block_delta", "index": 1, "delta": {"partial_json": '{"command":'}},
        {"type": "content_block_delta", "index": 1, "delta": {"partial_json": ' "ls"}'}},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use"},
            "usage": {"input_tokens": 3, "cache_read_input_tokens": 7, "output_tokens": 5},
        },
        {"type": "message_stop"},
    ):
        assert not streamed.feed(json.dumps(event).encode())
    assert (streamed.prompt_tokens, streamed.cached_tokens, streamed.output_tokens) == (10, 7, 5)
    content = [
        {"type": "text", "text": "Hi"},
        {"type": "tool_use", "id": "t1", "name": "Bash", "input": {"command": "ls"}},
    ]
    whole = Reply()
    whole.feed(json.dumps({"id": "m1", "type": "message", "content": content}).encode())
    message = {"role": "assistant", "content": content}
    assert streamed.facts().print() == whole.facts().print() == reply_print(message)
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "12345", "is_error": True}
    found = list(tool_results([message, {"role": "user", "content": [result]}]))
    assert found == [("t1", 5, True)]


@given(st.binary(max_size=200))
def test_garbage_never_raises(data):
    """Whatever a backend sends, reading it counts and goes on."""
    Reply().feed(data)
    as_openai(500, data)


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("bash", '{"command": "cd /repo && python -m pytest -q tests/"}', "test"),
        ("bash", '{"command": "grep -rn foo src | head"}', "shell_read"),
        ("bash", '{"command": "sed -i s/a/b/ x.py"}', "shell_edit"),
        ("execute_bash", '{"command": "PYTHONPATH=. python fix.py"}', "script"),
        ("bash", '{"command": "cd x && git diff"}', "git"),
        ("bash", '{"command": "pip install -e ."}', "build"),
        ("str_replace_editor", '{"command": "view", "path": "a"}', "read"),
        ("str_replace_editor", '{"command": "create"}', "edit"),
        ("Task", "{}", "subagent"),
        ("mcp__github__create_issue", "{}", "mcp"),
        ("finish", "{}", "plan"),
        ("frobnicate", "{}", "shell_other"),
    ],
)
def test_tool_classes_from_names_and_commands(name, arguments, expected):
    """The class that durations and CPU demand depend on, from what is on the wire."""
    assert classify(name, arguments) == expected


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "as it was"}}', "as it was"),
        (b'{"detail": "fastapi"}', "fastapi"),
        (b'{"detail": [{"loc": ["body"]}]}', '[{"loc":["body"]}]'),
        (b"Bad Gateway", "Bad Gateway"),
        (b"", "upstream error"),
    ],
)
def test_foreign_errors_become_openai_errors(body, message):
    """A client finds ``error.message`` whatever the backend is."""
    assert json.loads(as_openai(502, body))["error"]["message"] == message
