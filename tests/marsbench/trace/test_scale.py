"""A scaled trace has the same turns, tools and times, and tokens by the factors it was given."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from marsbench.cli.trace import app
from marsbench.core import Session, SharedPrefix, ToolCall, Turn
from marsbench.errors import ConfigError
from marsbench.trace.scale import scale_sessions
from marsbench.trace.source import open_trace, open_workload


def test_tokens_shrink_and_times_stay():
    """Prompts, results and the shared prefix by one factor, outputs by another, none to nothing."""
    call = ToolCall("open", "read", wall_s=2.0, cpu_s=1.0, result_tokens=100)
    turn = Turn(new_input_tokens=1000, output_tokens=3, tools=(call,), drop_context_to=0)
    child = Session("c", (Turn(0, 80),))
    session = Session(
        "s", (turn, Turn(2, 9, children=(child,))), shared_prefix=SharedPrefix("p", 40)
    )
    (small,) = scale_sessions([session], 0.25, 0.1)
    assert small.shared_prefix == SharedPrefix("p", 10)
    assert small.turns[0].new_input_tokens == 250
    assert small.turns[0].output_tokens == 1, "0.3 tokens: a turn has one at least"
    assert small.turns[0].drop_context_to == 0
    assert small.turns[0].tools[0].result_tokens == 25
    assert small.turns[0].tools[0].wall_s == 2.0
    assert small.turns[1].new_input_tokens == 1, "2 x 0.25 is no reason to lose the turn's input"
    assert small.turns[1].children[0].turns[0] == Turn(0, 8)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_factor_is_positive(factor):
    """A factor that is no positive number is refused at once, not when sessions are drawn."""
    with pytest.raises(ConfigError, match=r"--prompts .*: a factor must be a positive number"):
        scale_sessions([], factor, 1.0)
    with pytest.raises(ConfigError, match="--outputs"):
        scale_sessions([], 1.0, factor)


def test_the_file_is_a_trace_of_the_same_sessions(tmp_path):
    """The command writes what ``trace import`` reads: the same sessions, turn by turn."""
    out = tmp_path / "scaled.jsonl.zst"
    factors = ["--prompts", "0.5", "--outputs", "0.5"]
    done = CliRunner().invoke(
        app, ["scale", "swe-short", *factors, "--sessions", "5", "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    importer, found = open_trace(out)
    workload = open_workload("swe-short")
    assert importer.provenance == workload.provenance
    for before, after in zip(workload.sessions(5, 0), found, strict=True):
        assert after.session_id == before.session_id
        for original, turn in zip(before.turns, after.turns, strict=True):
            assert turn.output_tokens == max(1, round(original.output_tokens / 2))
            assert [c.wall_s for c in turn.tools] == [c.wall_s for c in original.tools]
