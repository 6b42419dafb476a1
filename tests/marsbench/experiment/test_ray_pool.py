"""Grids on Ray: the bytes of one process, lost workers' cells again, errors as everywhere."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import ray_tasks

from marsbench.cli import options
from marsbench.errors import ConfigError, EngineError, MarsbenchError, PolicyError
from marsbench.experiment import runner, tasks
from marsbench.experiment.pool import open_workers
from marsbench.extras import how_to_install

needs_ray = [
    pytest.mark.ray,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own, at import and when it is shut down
]
GRID = {"system": ["vllm", "static"], "load": [0.5, 1.0]}


def without_time(folder):
    """The files of a run; in summary.json without how long each cell took."""
    found = {}
    for file in sorted(folder.iterdir()):
        lines = file.read_bytes().splitlines()
        found[file.name] = [line for line in lines if b'"wall_s"' not in line]
    return found


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """The file that a killed worker leaves; workers find the tests' own tasks by name."""
    folder = str(Path(ray_tasks.__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv(ray_tasks.MARKER, str(tmp_path / "marker"))
    return tmp_path / "marker"


class TestOnRay:
    """One local Ray for each test: they end it."""

    pytestmark = needs_ray

    def test_the_bytes_are_those_of_one_process_although_a_worker_dies(
        self, run, monkeypatch, marker
    ):
        """The worker of the third cell is killed once: the cell is retried, nothing is missing, and
        every file of the run folder is that of one process, wall times apart.
        """
        monkeypatch.setattr(runner, "new_run_id", lambda config: "20260101-000000-abcdef")
        alone, _ = run("alone", **GRID)
        monkeypatch.setattr(tasks, "cell", ray_tasks.cell_that_dies_once)
        spread, recorder = run("spread", **GRID, jobs="ray")
        assert marker.exists()
        assert spread.complete
        assert without_time(spread.folder) == without_time(alone.folder)
        assert [index for index, _ in recorder.cells] == [0, 1, 2, 3]

    def test_errors_come_back_as_they_were_raised(self, marker):
        """A task's own error stands in its place; the others are not touched."""
        with open_workers("ray") as workers:
            found = list(workers.settle(ray_tasks.fails, [0, 1, 2, 3], (MarsbenchError,)))
        assert [found[k] for k in (0, 2, 3)] == [0, 2, 3]
        assert marker.exists()
        assert type(found[1]) is PolicyError
        assert str(found[1]) == "no order"

    def test_an_address_without_ray_is_one_line(self):
        """Nobody listens there."""
        with pytest.raises(EngineError, match=r"--jobs ray://127\.0\.0\.1:9: no Ray there"):
            open_workers("ray://127.0.0.1:9").__enter__()


def test_the_command_line_knows_ray():
    """``run`` takes it; others say so; anything else is wrong for both."""
    assert options.workers("ray") == "ray"
    assert options.workers("ray://head:10001") == "ray://head:10001"
    assert options.workers("3") == 3
    with pytest.raises(ConfigError, match="marsbench run takes ray"):
        options.number_of_jobs("ray")
    for wrong in ("ray://", "rays", "0", "many"):
        with pytest.raises(ConfigError, match="--jobs"):
            options.workers(wrong)


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_line_says_what_to_install():
    """The extra is named."""
    with pytest.raises(ConfigError, match=re.escape(how_to_install("ray"))):
        open_workers("ray")
