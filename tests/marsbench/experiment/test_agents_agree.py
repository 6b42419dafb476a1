"""A run of live agents is held against the simulator through its exported traces."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from marsbench.cli import app
from marsbench.cli.progress import make_reporter
from marsbench.errors import ResultsError
from marsbench.experiment.agents_agree import compare_agents

TURN = {
    "new_input_tokens": 300, "output_tokens": 6, "think_s": 0.1,
    "tools": [{"name": "pytest", "class": "test", "wall_s": 2.0, "cpu_s": 2.0}],
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A run folder as of live agents: what was measured is what the simulator says."""
    trace = tmp_path / "trace.jsonl"
    lines = [
        {"trace_version": 1, "session_id": f"t/{k}", "agent": "a", "model": "m", "arrival_s": k / 2,
         "turns": [TURN, {**TURN, "tools": []}]}
        for k in range(4)
    ]  # fmt: skip
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder = tmp_path / "run"
    invoke(
        "run", "-w", str(trace), "--profile", "tiny-cpu", "--arrival", "trace", "-n", "4", "--tool-cores",
        "1", "-s", "vllm", "-c", "num_blocks=600", "--no-cache", "--quiet", "--out", str(folder),
    )  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text())
    summary["cells"][0]["agents"] = {"folder": "vllm-1", "others_cpu_share": 0.02}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "agents/vllm-1").mkdir(parents=True)
    shutil.copy(trace, folder / "agents/vllm-1/trace.jsonl")
    return folder


def invoke(*command):
    """Status and output of a command."""
    return CliRunner().invoke(app, list(command))


def test_replay_with_the_run_s_own_flags(run):
    """A cell is replayed with its profile, flags, cores and arrivals: nothing differs then."""
    (found,) = compare_agents(run, lambda: make_reporter(quiet=True))
    assert (found.system, found.tasks, found.others_cpu_share) == ("vllm", 4, 0.02)
    assert found.live_s > 2.0
    assert found.difference == pytest.approx(0.0)
    assert found.task_median == pytest.approx(0.0)


def test_a_difference_beyond_the_tolerance_fails(run):
    """`marsbench validate RUN` prints a row a cell, and fails with the cell that is too far off."""
    trace = run / "agents/vllm-1/trace.jsonl"
    assert invoke("validate", str(run)).exit_code == 0
    trace.write_text(trace.read_text().replace('"cpu_s": 2.0', '"cpu_s": 0.5'))
    done = invoke("validate", str(run))
    assert done.exit_code == 1
    assert "off in the mean task time of vllm, seed 0" in str(done.exception)


def test_runs_without_agents_are_refused(run):
    """A run of something else is named."""
    summary = json.loads((run / "summary.json").read_text())
    del summary["cells"][0]["agents"]
    (run / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ResultsError, match="no cells of live agents"):
        compare_agents(run, lambda: make_reporter(quiet=True))
