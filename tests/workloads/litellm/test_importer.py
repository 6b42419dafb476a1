"""LiteLLM logs: calls of a session, and what happens between them."""

from __future__ import annotations

import json

from workloads.litellm.importer import IMPORTER


def test_gaps_are_tools_or_pauses(formats):
    """Between an answer with tool calls and the next call its tools run; else somebody waits."""
    first, second = IMPORTER.read(formats.fixtures / "litellm.jsonl")
    assert [[(t.tool_class, t.wall_s) for t in turn.tools] for turn in first.turns] == [
        [("test", 5.0)],
        [("git", 1.0), ("shell_read", 1.0)],
        [],
    ]
    assert [turn.think_s for turn in first.turns] == [0.0, 0.0, 0.0]
    assert [turn.think_s for turn in second.turns] == [30.0, 0.0]
    assert (first.arrival_s, second.arrival_s) == (0.0, 1.0)


def test_failed_calls_are_left_out(formats):
    """A call that failed produced nothing: three of four calls of the first session count."""
    first, _ = IMPORTER.read(formats.fixtures / "litellm.jsonl")
    assert len(first.turns) == 3


def test_calls_without_a_session_stand_alone(formats, tmp_path):
    """Without session_id and trace_id each call is a session; metadata may name one, too."""
    rows = [json.loads(x) for x in (formats.fixtures / "litellm.jsonl").read_text().splitlines()]
    bare = [{k: v for k, v in r.items() if k not in {"session_id", "trace_id"}} for r in rows[:3]]
    path = tmp_path / "log.jsonl"
    path.write_text(formats.jsonl(bare))
    assert [len(s.turns) for s in IMPORTER.read(path)] == [1, 1, 1]
    path.write_text(formats.jsonl([{**r, "metadata": {"session_id": "m"}} for r in bare]))
    assert [(s.session_id, len(s.turns)) for s in IMPORTER.read(path)] == [("m", 3)]
