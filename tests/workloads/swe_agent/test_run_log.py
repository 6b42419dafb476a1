"""Run logs of SWE-agent."""

from __future__ import annotations

import pytest

from marsbench.core import plan_turns
from marsbench.errors import TraceError
from marsbench.trace import io
from workloads.swe_agent.importer import IMPORTER

STEP = """\
2024-12-01 10:00:{0:02d},000 - INFO - swea-agent - MODEL INPUT (primary)
some text
2024-12-01 10:00:{1:02d},000 - DEBUG - swea-lm - input_tokens={2}, output_tokens={3}, cost=0.01
2024-12-01 10:00:{1:02d},000 - DEBUG - swea-lm - total_tokens_sent=1, total_api_calls={4}
2024-12-01 10:00:{1:02d},100 - INFO - swea-agent - ACTION (primary)
{5}
2024-12-01 10:00:{1:02d},200 - TRACE - swea-env - Input:
{5}
2024-12-01 10:00:{1:02d},700 - TRACE - swea-env - Output: {6}
2024-12-01 10:00:{1:02d},750 - TRACE - swea-env - Input: state
2024-12-01 10:00:{1:02d},800 - TRACE - swea-env - Output: {{}}
"""


def write(tmp_path, *steps):
    file = tmp_path / "run.log"
    file.write_text("".join(STEP.format(*step) for step in steps))
    return file


def test_calls_and_commands_have_recorded_tokens_and_times(tmp_path):
    """Command 0.2 to 0.7 s after the answer; the next model input 1.3 s after its output."""
    file = write(
        tmp_path,
        (1, 3, "6,800", 50, 1, "create a.py", "x" * 33),
        (5, 8, "7,000", 60, 2, "python a.py", ""),
        (20, 22, "6,900", 40, 1, "ls", ""),
    )
    assert IMPORTER.sniff(io.sample(file))
    assert IMPORTER.sniff(io.sample(tmp_path))
    first, second = IMPORTER.read(file)
    assert [tuple(plan) for plan in plan_turns(first)] == [(6800, 0, 50), (7000, 6850, 60)]
    (tool,) = first.turns[0].tools
    assert (tool.name, tool.tool_class, tool.result_tokens) == ("create", "edit", 10)
    assert tool.wall_s == pytest.approx(0.5)
    assert first.turns[0].think_s == pytest.approx(1.3)
    assert (second.session_id, len(second.turns)) == ("run/1", 1)


def test_trajectories_beside_a_log_are_taken_instead(formats, tmp_path):
    """A run that wrote both is imported once."""
    write(tmp_path, (1, 3, "6,800", 50, 1, "ls", ""))
    formats.writers["swe_agent"](tmp_path)
    assert [session.session_id for session in IMPORTER.read(tmp_path)] == ["org__repo-1"]


def test_a_log_without_calls_is_an_error(tmp_path):
    """The file is named."""
    file = tmp_path / "run.log"
    file.write_text("2024-12-01 10:00:01,000 - INFO - MODEL INPUT\n" * 2)
    with pytest.raises(TraceError, match=r"run\.log: holds no LLM call"):
        list(IMPORTER.read(file))
