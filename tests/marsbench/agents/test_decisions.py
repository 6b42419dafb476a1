"""Decisions are written, read back and compared."""

from __future__ import annotations

import pytest

from marsbench.agents.decisions import (
    Decision,
    compare_decisions,
    compare_runs,
    compare_systems,
    read_decisions,
    write_decisions,
)
from marsbench.errors import ResultsError

ASK = Decision(0, "request", "su")
CALL = Decision(0, "terminal", '{"command": "ls"}')


def test_round_trip(tmp_path):
    """What is written is read back."""
    write_decisions(tmp_path / "d", {"a": [ASK, CALL], "b": []})
    assert read_decisions(tmp_path / "d") == {"a": [ASK, CALL], "b": []}


def test_equal_runs_agree():
    """Equal decisions of all sessions are an agreement, counted."""
    found = compare_decisions({"a": [ASK, CALL]}, {"a": [ASK, CALL]})
    assert found.same
    assert (found.sessions, found.decisions) == (1, 2)


def test_first_difference_is_told():
    """The first decision that differs is named, with what either run did."""
    other = CALL._replace(what='{"command": "pwd"}')
    found = compare_decisions({"a": [ASK, CALL, ASK]}, {"a": [ASK, other, CALL]})
    assert not found.same
    assert [d.sentence() for d in found.differences] == [f"a, decision 1: {CALL} | {other}"]


def test_a_run_that_stops_earlier_differs():
    """Fewer decisions are a difference, and so is a session that only one run had."""
    found = compare_decisions({"a": [ASK, CALL], "b": [ASK]}, {"a": [ASK]})
    assert found.differences[0].second is None
    assert "nothing more" in found.differences[0].sentence()
    assert found.only_one == ("b",)


def test_cells_are_paired_by_name(tmp_path):
    """Cells of two runs are compared by their number; runs without agents are refused."""
    one, two, empty = tmp_path / "one", tmp_path / "two", tmp_path / "three"
    for run, cell in ((one, "mars-1"), (one, "vllm-2"), (two, "mars-1")):
        (run / "agents" / cell).mkdir(parents=True)
        write_decisions(run / "agents" / cell / "decisions.jsonl", {"a": [ASK]})
    assert list(compare_runs(one, two)) == ["mars-1"]
    assert compare_systems(one)["mars-1 | vllm-2"].same
    with pytest.raises(ResultsError, match="share no cell of live agents"):
        compare_runs(one, empty)
    with pytest.raises(ResultsError, match="one cell of live agents only"):
        compare_systems(two)


def test_systems_are_compared_on_the_sessions_of_a_seed(tmp_path):
    """Two seeds of two systems are two comparisons; a cell of sessions of its own is held against the first."""
    for cell, session in (("mars-1", "a"), ("mars-2", "b"), ("vllm-3", "a"), ("vllm-4", "b")):
        (tmp_path / "agents" / cell).mkdir(parents=True)
        write_decisions(tmp_path / "agents" / cell / "decisions.jsonl", {session: [ASK]})
    found = compare_systems(tmp_path)
    assert list(found) == ["mars-1 | vllm-3", "mars-2 | vllm-4"]
    assert all(agreed.same for agreed in found.values())
    write_decisions(tmp_path / "agents" / "vllm-4" / "decisions.jsonl", {"c": [ASK]})
    assert [name for name, agreed in compare_systems(tmp_path).items() if not agreed.same] == [
        "mars-1 | mars-2",
        "mars-1 | vllm-4",
    ]
