"""A scaled trace has the same turns, tools and times, and tokens by the factors it was given."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from marsbench.core import Session, SharedPrefix, ToolCall, Turn
from marsbench.trace.source import open_workload

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "scale_trace.py"


@pytest.fixture
def script():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("scale_trace", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tokens_shrink_and_times_stay(script):
    """Prompts, results and the shared prefix by one factor, outputs by another, none to nothing."""
    call = ToolCall(
        name="open", tool_class="read", wall_s=2.0, cpu_s=1.0, cores=1.0, result_tokens=100,
        error=False,
    )  # fmt: skip
    turn = Turn(new_input_tokens=1000, output_tokens=3, tools=(call,))
    session = Session("s", (turn,), shared_prefix=SharedPrefix("p", 40))
    small = script.scaled(session, 0.25, 0.1)
    assert small.shared_prefix == SharedPrefix("p", 10)
    assert small.turns[0].new_input_tokens == 250
    assert small.turns[0].output_tokens == 1, "0.3 tokens: a turn has one at least"
    assert small.turns[0].tools[0].result_tokens == 25
    assert small.turns[0].tools[0].wall_s == 2.0


def test_the_file_is_a_trace_of_the_same_sessions(tmp_path):
    """Run as a script, it writes what ``open_workload`` reads: the same sessions, turn by turn."""
    out = tmp_path / "scaled.jsonl"
    given = ["swe-short", str(out), "--sessions", "5", "--prompts", "0.5", "--outputs", "0.5"]
    subprocess.run([sys.executable, str(SCRIPT), *given], check=True)
    before = {s.session_id: s for s in open_workload("swe-short").sessions(5, 0)}
    after = {s.session_id: s for s in open_workload(str(out)).sessions(5, 0)}
    assert set(before) == set(after)
    for name, session in after.items():
        assert len(session.turns) == len(before[name].turns)
        for turn, original in zip(session.turns, before[name].turns, strict=True):
            assert turn.output_tokens == max(1, round(original.output_tokens / 2))
            assert [c.wall_s for c in turn.tools] == [c.wall_s for c in original.tools]
