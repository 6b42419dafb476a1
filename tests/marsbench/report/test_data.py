"""Run folders as the frames that reports draw from."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from marsbench.errors import ResultsError
from marsbench.report.data import load_runs, over_seeds


@pytest.fixture(scope="module")
def run(make_run):
    return make_run({"vllm": 3.0, "mars": 1.0}, loads=(0.9, 0.3), seeds=(0, 1), num_sessions=8)


def test_cells_carry_keys_counts_and_metrics(run):
    """One row a cell; MARS first; loads ascending."""
    data = load_runs([run])
    assert len(data.cells) == 8
    assert data.systems == ["mars", "vllm"]
    assert data.x_values == [0.3, 0.9]
    assert data.x_label == "load (share of capacity)"
    assert (data.cells["completed"] == 8).all()
    assert data.cells["theoretical_prefix_cache_hit_rate"].tolist() == [0.93] * 8
    assert len(data.at(0.3).cells) == 4
    assert len(data.sessions()) == 8 * 8


def test_two_runs_with_the_same_system_are_told_apart(run, make_run):
    """A system in two runs is two rows, named after its run; one in a single run keeps its name."""
    other = make_run({"mars": 1.0, "sglang": 2.0}, loads=(0.3,), run_id="r2", num_sessions=8)
    data = load_runs([run, other])
    assert data.systems == ["mars @ r1", "mars @ r2", "vllm", "sglang"]
    sessions = data.sessions()
    assert sessions.groupby("system").size()["mars @ r2"] == 8


def test_runs_without_load_are_drawn_against_the_rate(make_run, run):
    """Loads are used if every cell has one; else arrivals per second, else closed loop."""
    data = load_runs([run])
    data.cells.loc[0, "load"] = math.nan
    assert data.x == "rate_per_s"
    assert data.place(0.25) == "0.25 sessions/s"
    assert data.place(math.nan) == "closed loop"


def test_interval_over_seeds_by_hand():
    """Values 1, 2, 3: mean 2, standard error 1/√3, t(0.975, 2) = 4.3027; two seeds have none."""
    cells = pd.DataFrame(
        {"system": ["a", "a", "a", "b", "b"], "value_of": [1.0, 2.0, 3.0, 5.0, 6.0]}
    )
    table = over_seeds(cells, ["system"], "value_of").set_index("system")
    assert table.loc["a", "mean"] == 2.0
    assert table.loc["a", "half"] == pytest.approx(4.302653 / math.sqrt(3))
    assert table.loc["a", "seeds"] == 3
    assert math.isnan(table.loc["b", "half"])


def test_a_folder_without_cells_is_refused(tmp_path):
    """Nothing to report says so."""
    (tmp_path / "summary.json").write_text('{"summary_version": 1, "run_id": "x", "cells": []}')
    with pytest.raises(ResultsError, match="no finished cell"):
        load_runs([tmp_path])
