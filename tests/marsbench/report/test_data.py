"""Run folders as the frames that reports draw from."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pandas as pd
import pytest

from marsbench.errors import ResultsError
from marsbench.report.data import load_runs, spread


@pytest.fixture(scope="module")
def run(make_run):
    return make_run({"vllm": 3.0, "mars": 1.0}, loads=(0.9, 0.3), seeds=(0, 1), num_sessions=8)


def test_cells_carry_keys_counts_and_metrics(run):
    """One row a cell; systems in the order of the run; loads ascending."""
    data = load_runs([run])
    assert len(data.cells) == 8
    assert data.systems == ["vllm", "mars"]
    assert data.x_values == [0.3, 0.9]
    assert data.x_label == "load (1.0 = 1,800 sessions/hour)"
    unknown = replace(data, cells=data.cells.assign(rate_per_s=float("nan")))
    assert unknown.x_label == "load (share of capacity)"
    assert (data.cells["completed"] == 8).all()
    assert data.cells["theoretical_prefix_cache_hit_rate"].tolist() == [0.93] * 8
    assert len(data.at(0.3).cells) == 4
    assert len(data.sessions()) == 8 * 8


def test_two_runs_with_the_same_system_are_told_apart(run, make_run):
    """A system in two runs is two rows, named after its run; one in a single run keeps its name."""
    other = make_run({"mars": 1.0, "sglang": 2.0}, loads=(0.3,), run_id="r2", num_sessions=8)
    data = load_runs([run, other])
    assert data.systems == ["vllm", "mars @ r1", "mars @ r2", "sglang"]
    sessions = data.sessions()
    assert sessions.groupby("system").size()["mars @ r2"] == 8


def test_runs_without_load_are_drawn_against_the_rate(make_run, run):
    """Loads are used if every cell has one; else arrivals per second, else closed loop."""
    data = load_runs([run])
    data.cells.loc[0, "load"] = math.nan
    assert data.x == "rate_per_s"
    assert data.place(0.25) == "900 sessions/hour"
    assert data.place(math.nan) == "closed loop"


def test_spread_of_seeds_stays_within_what_was_seen():
    """Values 1, 2, 300: mean 101, from 1 to 300. No bar of a figure reaches below the lowest seed."""
    cells = pd.DataFrame({"system": ["a", "a", "a", "b"], "value_of": [1.0, 2.0, 300.0, 5.0]})
    table = spread(cells, ["system"], "value_of").set_index("system")
    assert table.loc["a"].tolist() == [101.0, 1.0, 300.0, 3]
    assert table.loc["b"].tolist() == [5.0, 5.0, 5.0, 1]


def test_summaries_of_earlier_versions_are_read(run, tmp_path):
    """What they do not say is unknown: no distinct count, nothing called unstable."""
    summary = json.loads((run / "summary.json").read_text())
    for cell in summary["cells"]:
        del cell["sessions"]["distinct"], cell["metrics"]["unstable"]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    data = load_runs([tmp_path])
    assert data.cells["distinct"].isna().all()
    assert data.unstable(data.cells) == set()
    assert not data.has_sessions


def test_unstable_is_what_most_seeds_are(run):
    """One unstable seed of two is not most of them; two are."""
    data = load_runs([run]).at(0.9)
    data.cells.loc[:, "unstable"] = [1, 1, 0, 1]
    assert list(data.cells["system"]) == ["vllm", "mars", "vllm", "mars"]
    assert data.unstable(data.cells) == {"mars"}


def test_a_folder_without_cells_is_refused(tmp_path):
    """Nothing to report says so."""
    (tmp_path / "summary.json").write_text('{"summary_version": 1, "run_id": "x", "cells": []}')
    with pytest.raises(ResultsError, match="no finished cell"):
        load_runs([tmp_path])
