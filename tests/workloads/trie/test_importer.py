"""Applied Compute's rows."""

from __future__ import annotations

import pytest

from marsbench.core import plan_turns
from marsbench.errors import TraceError
from workloads.trie.importer import IMPORTER

ROW = {
    "num_turns": 2,
    "input_prompt_length": 400,
    "assistant_response_length": [30, 40],
    "tool_call_output_length": [20, 10],
    "tool_call_latency": [1.5, 0.5],
    "final_assistant_response_length": 60,
}


def test_turns_follow_the_arrays(formats, tmp_path):
    """400; 400+30+20 = 450; 450+40+10 = 500 for the final answer."""
    file = tmp_path / "rows.jsonl"
    file.write_text(formats.jsonl([ROW, ROW]))
    first, second = IMPORTER.read(file)
    assert [tuple(plan) for plan in plan_turns(first)] == [
        (400, 0, 30),
        (450, 430, 40),
        (500, 490, 60),
    ]
    assert [[tool.wall_s for tool in turn.tools] for turn in first.turns] == [[1.5], [0.5], []]
    assert first.session_id != second.session_id


def test_arrays_of_different_length_are_an_error(formats, tmp_path):
    """The row is named."""
    file = tmp_path / "rows.jsonl"
    file.write_text(formats.jsonl([{**ROW, "tool_call_latency": [1.0]}]))
    with pytest.raises(TraceError, match=r"rows\.jsonl:1: num_turns"):
        list(IMPORTER.read(file))
