"""The canonical line: what it means, what it refuses and how it says so."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marsbench.core import Session, SharedPrefix, ToolCall, Turn
from marsbench.errors import TraceError
from marsbench.trace.schema import decode_session, encode_session, session_ids


def row(**turn):
    base = {"new_input_tokens": 10, "output_tokens": 1, "tools": []}
    return {"trace_version": 1, "session_id": "s", "turns": [base, {**base, **turn}]}


def problem(value, line=7):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    with pytest.raises(TraceError) as caught:
        decode_session(data, path="t.jsonl", number=line)
    return str(caught.value)


def test_reads_every_field_of_the_contract():
    """A line with all fields of the schema becomes the session it describes."""
    line = b"""{"trace_version":1,"session_id":"a","agent":"cc","model":"m","arrival_s":1.5,
        "shared_prefix":{"id":"sys","tokens":100},"turns":[{"new_input_tokens":7,"output_tokens":3,
        "resent_output":0.5,"drop_context_to":50,"kept_prefix_tokens":40,"tools":[{"name":"Bash",
        "class":"test","wall_s":2,"cpu_s":1.5,"cores":2,"result_tokens":9,"error":true}],
        "think_s":4,"children":[{"session_id":"b","turns":[{"new_input_tokens":1,
        "output_tokens":1}]}]}]}"""
    tool = ToolCall("Bash", "test", 2.0, 1.5, 2.0, 9, error=True)
    child = Session("b", (Turn(1, 1),))
    turn = Turn(7, 3, 0.5, 50, 40, (tool,), 4.0, (child,))
    assert decode_session(line) == Session("a", (turn,), "cc", "m", 1.5, SharedPrefix("sys", 100))


@settings(max_examples=40)
@given(data=st.data())
def test_round_trip(any_session, data):
    """Writing and reading a session gives the same session."""
    session = data.draw(any_session)
    assert decode_session(encode_session(session)) == session


def test_writes_optional_fields_only_where_set():
    """A plain session has none of the optional keys; class is spelled "class"."""
    session = Session("s", (Turn(1, 2, tools=(ToolCall("Read", "read", 0.5),)),))
    assert json.loads(encode_session(session)) == {
        "trace_version": 1, "session_id": "s", "agent": "", "model": "",
        "turns": [{"new_input_tokens": 1, "output_tokens": 2, "resent_output": 1.0,
                   "tools": [{"name": "Read", "class": "read", "wall_s": 0.5}]}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"tools": [{"name": "B", "class": "c", "wall_s": "fast"}]},
         ('t.jsonl:7: turns[1].tools[0].wall_s: expected `float`, got `str`, found "fast" '
         "(seconds, a finite number >= 0)")),
        ({"tools": [{"name": "B", "class": "c", "wall_s": -1}]},
         ("t.jsonl:7: turns[1].tools[0].wall_s: expected `float` >= 0.0, found -1 "
         "(seconds, a finite number >= 0)")),
        ({"new_input_tokens": -5},
         ("t.jsonl:7: turns[1].new_input_tokens: expected `int` >= 0, found -5 "
         "(a whole number of tokens >= 0)")),
        ({"output_tokens": 0},
         ("t.jsonl:7: turns[1].output_tokens: expected `int` >= 1, found 0 "
         "(a whole number of tokens >= 1)")),
        ({"output_tokens": 1.5}, "turns[1].output_tokens: expected `int`, got `float`, found 1.5"),
        ({"output_tokens": True}, "turns[1].output_tokens: expected `int`, got `bool`, found true"),
        ({"resent_output": 1.01}, "turns[1].resent_output: expected `float` <= 1.0, found 1.01"),
        ({"drop_context_to": -1}, "turns[1].drop_context_to: expected `int` >= 0, found -1"),
        ({"kept_prefix_tokens": 3}, "turns[1].kept_prefix_tokens: given without drop_context_to"),
        ({"tool": []}, "turns[1].tool: unknown field (remove it;"),
        ({"children": [row(think_s=-1)]}, "turns[1].children[0].turns[1].think_s: expected"),
        ({"children": [{"session_id": "c", "turns": []}]},
         "turns[1].children[0].turns: expected `array` of length >= 1, found []"),
    ],
)  # fmt: skip
def test_names_line_field_finding_and_fix(turn, message):
    """A wrong value is reported with file, line, field path, what was found and what belongs."""
    assert message in problem(row(**turn))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {**row(), "trace_version": 2},
            "trace_version: invalid enum value 2, found 2 (this version",
        ),
        ({"trace_version": 1, "session_id": "s"}, "turns: missing (add it: a list of at least one"),
        ({**row(), "turns": []}, "turns: expected `array` of length >= 1, found []"),
        ({**row(), "session_id": ""}, 'session_id: expected `str` of length >= 1, found ""'),
        ({**row(), "sessionid": "s"}, "sessionid: unknown field"),
        ([1], "t.jsonl:7: expected `object`, got `array`, found [1]"),
        (b'{"trace_version":1', "t.jsonl:7: not JSON ("),
        (b'{"trace_version":1,"arrival_s":NaN}', "t.jsonl:7: not JSON ("),
        (b'{"trace_version":1,"arrival_s":1e999}', "arrival_s: number out of range"),
        (b'{"agent":"\xff"}', "t.jsonl:7: not JSON ("),
        (
            b'{"trace_version":1,"session_id":"s","turns":' + b"[" * 5000,
            "turns[0]: expected `object`",
        ),
    ],
)
def test_refuses_what_is_no_session(value, message):
    """Wrong versions, missing parts, typos and broken JSON are each told apart."""
    assert message in problem(value)


def test_extension_keys_are_skipped_on_sessions_only():
    """x_ keys of a session and of a sub-agent are somebody else's; in a turn they are an error."""
    child = {"session_id": "c", "x_note": {"a": 1}, "turns": row()["turns"]}
    session = decode_session(json.dumps({**row(children=[child]), "x_source": "cc"}).encode())
    assert list(session_ids(session)) == ["s", "c"]
    assert "turns[1].x_note: unknown field" in problem(row(x_note=1))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_nan_behind_an_extension_key_is_one_line(number):
    """NaN is no JSON, also where nobody reads it: an error with its line, no traceback."""
    line = f'{{"trace_version":1,"session_id":"a","x_note":{number},"turns":[]}}'.encode()
    with pytest.raises(TraceError, match="f:7: not JSON"):
        decode_session(line, path="f", number=7)
