"""Two runs of the same cells agree in every number, or the comparison says where they part."""

from __future__ import annotations

import pytest

from marsbench.cli import RunFailed
from marsbench.cli.validate_runs import compare
from marsbench.errors import ResultsError
from marsbench.experiment.runs_agree import compare_runs, difference


def test_the_same_experiment_agrees_in_every_session(run, capsys):
    """A repeated run differs in nothing, and the command says so with status 0."""
    one, _ = run("a", system=["vllm", "static"])
    two, _ = run("b", system=["vllm", "static"])
    found = compare_runs(one.folder, two.folder)
    assert [each.cell["system"] for each in found] == ["vllm", "static"]
    assert all((each.worst, each.session_p95, each.moved) == (0, 0, "") for each in found)
    assert all(each.sessions == 6 for each in found)
    compare([one.folder, two.folder], tolerance=0.0, as_json=False)
    assert "0.0000%" in capsys.readouterr().out


def test_other_memory_shows_in_the_sessions(run):
    """Runs on engines with different batches differ; the one line names the cell and a session."""
    one, _ = run("a", rate_per_s=[2.0])
    two, _ = run("b", rate_per_s=[2.0], params={"vllm": {"max_num_seqs": 1}})
    (found,) = compare_runs(one.folder, two.folder)
    assert found.worst > 0.01
    assert found.moved.startswith("s")
    with pytest.raises(RunFailed, match=r"differ by .* in vllm on small, most of all session s"):
        compare([one.folder, two.folder], tolerance=0.01, as_json=True)


def test_runs_of_other_cells_are_refused(run):
    """A system missing in one run is an error, not a shorter table."""
    one, _ = run("a", system=["vllm", "static"])
    two, _ = run("b", system=["vllm"])
    with pytest.raises(ResultsError, match="not runs of the same cells"):
        compare_runs(one.folder, two.folder)


def test_difference():
    """100 and 101: 1 %. Nothing against something differs without bound; nothing twice does not."""
    assert difference(100.0, 101.0) == pytest.approx(0.01)
    assert difference(0.0, 1.0) == float("inf")
    assert difference(float("nan"), 1.0) == float("inf")
    assert difference(float("nan"), float("nan")) == 0.0
