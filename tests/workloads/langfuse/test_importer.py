"""Langfuse exports: token details, tools, and the three shapes of an export."""

from __future__ import annotations

import json

import pytest

from marsbench.trace.source import open_trace
from workloads.langfuse.importer import IMPORTER


@pytest.fixture
def trace(formats):
    return json.loads((formats.fixtures / "langfuse.json").read_text())


def read(tmp_path, content, name="export.json"):
    path = tmp_path / name
    path.write_text(content)
    importer, sessions = open_trace(path)
    assert importer is IMPORTER
    return list(sessions)


def test_cached_and_reasoning_tokens_count(tmp_path, trace):
    """200 new and 800 cached are a prompt of 1,000; 25 and 15 of reasoning an answer of 40."""
    (session,) = read(tmp_path, json.dumps(trace))
    assert session.session_id == "lf-1"
    assert session.turns[0].new_input_tokens == 1000
    assert [turn.output_tokens for turn in session.turns] == [30, 40, 8]
    assert [(t.tool_class, t.wall_s, t.error) for t in session.turns[0].tools] == [
        ("test", 4.0, True)
    ]
    assert session.turns[1].think_s == 2.5


def test_rows_pages_and_traces_are_the_same_session(tmp_path, trace):
    """A downloaded trace, a page of the interface and rows of the table give equal sessions."""
    whole = read(tmp_path, json.dumps(trace))
    rows = [{**o, "sessionId": "lf-1"} for o in trace["observations"]]
    assert read(tmp_path, json.dumps({"data": rows, "meta": {}})) == whole
    assert read(tmp_path, json.dumps(rows)) == whole
    assert read(tmp_path, "".join(json.dumps(r) + "\n" for r in rows), "rows.jsonl") == whole


def test_without_a_session_the_trace_is_one(tmp_path, trace):
    """Observations that name no session belong to their trace."""
    del trace["sessionId"]
    assert [s.session_id for s in read(tmp_path, json.dumps(trace))] == ["tr-1"]
