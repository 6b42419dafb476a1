"""What a run may do with a folder: continue it, use it again, or leave it alone."""

from __future__ import annotations

import json

import pytest
import yaml
from watched_engine import WatchedEngine

from marsbench.config import dump_config, load_config
from marsbench.errors import ConfigError, PolicyError
from marsbench.experiment.resume import Before, examine


def breaking(error: BaseException):
    """The simulator, but every cell of six sessions that arrive raises."""

    def check(plan):
        if len(plan.sessions) == 6 and plan.arrivals.closed_loop is None:
            raise error

    return WatchedEngine(before=check)


@pytest.mark.parametrize("error", [PolicyError("no order"), KeyboardInterrupt()])
def test_run_without_a_finished_cell_is_not_complete(run, error):
    """Where every cell failed, or the first was interrupted, --resume runs all of them."""
    broken, _ = run(system=["vllm", "static"], on=breaking(error))
    assert not broken.complete
    assert broken.summary["cells"] == []
    resumed, recorder = run(system=["vllm", "static"], resume=True)
    assert [index for index, _ in recorder.cells] == [0, 1]
    assert [cell["system"] for cell in resumed.summary["cells"]] == ["vllm", "static"]
    assert not any("nothing to resume" in note for note in recorder.notes)


def test_run_without_a_finished_cell_may_be_replaced(run):
    """A folder in which nothing has finished is used for another experiment without being asked."""
    run(on=breaking(PolicyError("no order")))
    result, _ = run(sessions=5)
    assert result.complete


@pytest.fixture
def folder(tmp_path):
    """folder(config, cells) -> a run folder with the entries of these cells, merged."""

    def make(config, cells):
        path = tmp_path / "out"
        path.mkdir()
        (path / "config.yaml").write_text(dump_config(config))
        entries = [{"cell": index} for index in cells]
        summary = {"summary_version": 1, "run_id": "old", "cells": entries}
        (path / "summary.json").write_text(json.dumps(summary))
        return path

    return make


@pytest.mark.parametrize(("cells", "complete"), [([0, 1], True), ([1], False)])
def test_run_is_complete_when_it_has_every_cell(folder, cells, complete):
    """A merged folder counts as complete only if no cell of the experiment is missing from it."""
    config = load_config()
    path = folder(config, cells)
    found = examine(path, config, [0, 1], resume=True, overwrite=False)
    assert found == Before("old", complete=complete)


def live(**params):
    return load_config(flags={"engine": {"name": "vllm", "params": params}})


def test_corrected_interpreter_continues_the_run(folder):
    """Where a server is found is no part of the experiment, so a wrong path can be corrected."""
    path = folder(live(python="/wrong/python", num_blocks=64), [0])
    right = live(python="/right/python", num_blocks=64, start_timeout_s=900)
    assert examine(path, right, [0, 1], resume=True, overwrite=False).run_id == "old"


def test_other_flags_are_another_experiment(folder):
    """A flag of the engine that changes what it does is refused, with its old and new value."""
    path = folder(live(python="/a/python", num_blocks=64), [0])
    with pytest.raises(ConfigError, match=r"another experiment: engine was .*64.*, now .*65"):
        examine(path, live(num_blocks=65), [0, 1], resume=True, overwrite=False)


def test_results_without_an_experiment_cannot_be_continued(folder):
    """Without config.yaml nobody can say whether the cells belong to this experiment."""
    path = folder(load_config(), [0])
    (path / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"no config\.yaml"):
        examine(path, load_config(), [0], resume=True, overwrite=False)


def test_config_of_an_older_version_has_the_defaults(folder):
    """A key that the stored experiment does not have counts as its default."""
    path = folder(load_config(), [0])
    stored = yaml.safe_load((path / "config.yaml").read_text())
    del stored["cut"]
    (path / "config.yaml").write_text(yaml.safe_dump(stored))
    assert examine(path, load_config(), [0], resume=True, overwrite=False).complete
