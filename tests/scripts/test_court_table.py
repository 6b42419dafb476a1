"""The policy court's page against numbers worked out by hand."""

from __future__ import annotations

import json
import math

import court_table as script
import pandas as pd
import pytest

SYSTEMS = {
    "mars": 100.0,
    "static-tuned": 150.0,
    "vllm": 400.0,
    "mars-no-retention": 110.0,
    "oracle": 80.0,
}


def run_folder(path, systems, seeds=(0, 1, 2), host=None, scale=1.0):
    """Sessions of 1 and 3 times a system's mean / 2, longer by a tenth with every seed; the ideal is 50 s."""
    path.mkdir()
    cells, rows = [], []
    for system, mean in systems.items():
        for seed in seeds:
            mine = mean * (1 + 0.1 * seed) * scale
            latencies = [0.5 * mine, 1.5 * mine]
            cells.append(cell(system, seed, latencies, host))
            rows += [
                {"workload": "w.jsonl", "load": 0.9, "system": system, "seed": seed, "parent": -1,
                 "session_id": f"s{n}", "arrival_s": float(n), "latency_s": latency, "ideal_s": 50.0,
                 "slowdown": latency / 50, "host_kv_gib": host}
                for n, latency in enumerate(latencies)
            ]  # fmt: skip
    (path / "summary.json").write_text(json.dumps({"cells": cells}))
    pd.DataFrame(rows).to_parquet(path / "sessions.parquet")
    return path


def cell(system, seed, latencies, host):
    mean = sum(latencies) / 2
    in_time = sum(latency <= 150 for latency in latencies) / 2
    return {
        "workload": "/somewhere/w.jsonl", "load": 0.9, "system": system, "seed": seed,
        "rate_per_s": 0.02, "host_kv_gib": host,
        "sessions": {"arrived": 2, "distinct": 2, "failed": 0},
        "metrics": {
            "session_latency_s": {"mean": mean, "p99": max(latencies)},
            "session_goodput_per_s": {"2": 0.001, "3": 0.02 * in_time, "5": 0.02},
            "slo_attainment": {"3": in_time}, "unstable": system == "vllm",
        },
    }  # fmt: skip


@pytest.fixture
def out(tmp_path):
    """The page of one run folder, and where it lies."""
    run = run_folder(tmp_path / "run", SYSTEMS)
    assert call(run, "--out", tmp_path / "page") == 0
    return tmp_path / "page"


def call(*words):
    """The script with these words; its status."""
    argv, script.sys.argv = script.sys.argv, ["court_table.py", *map(str, words)]
    try:
        return script.main()
    finally:
        script.sys.argv = argv


def test_ratios_are_paired_over_seeds_with_an_interval(out):
    """Both sides grow alike with the seed, so the ratio is 1.5 in each: an interval of no width but for
    the sessions drawn again, which have the same ratio too.
    """
    pairs = pd.read_csv(out / "ratios.csv").set_index("system")
    static = pairs.loc["static-tuned"]
    assert static["seeds"] == 3
    assert static["mean"] == pytest.approx(1.5)
    assert static["mean_low"] == pytest.approx(1.5, rel=1e-3)
    assert static["p99"] == pytest.approx(1.5)
    assert "mars" not in pairs.index


def test_the_first_table_names_the_best_other_the_goodput_and_the_bound(out):
    """The oracle and ablations of MARS are no others; the mean over seeds is 110 s; of six sessions with
    50 to 180 s four end within 150 s.
    """
    page = (out / "README.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith("| w, 0 GiB, load 0.9"))
    parts = [part.strip() for part in line.strip("|").split("|")]
    assert parts[1:4] == ["110", "static-tuned", "1.50 (1.50-1.50)"]
    assert parts[4] == "13.30"
    assert parts[-1] == "0.80 (0.80-0.80)"
    assert "440°" in page, "a cell whose backlog grew is marked"


def test_ablations_are_told_apart_from_systems(out):
    """Mean without the part over mean with it, and no row among the systems."""
    page = (out / "README.md").read_text()
    worth = page.partition("## What each part of MARS is worth")[2].partition("## Every cell")[0]
    assert "| mars-no-retention | 1.100 | 1.10 (1.10-1.10) |" in worth
    assert "mars-no-retention" not in page.partition("## Every cell")[2]


def test_the_page_comes_from_the_stored_tables_alone(out):
    """Without runs the same page is written again, with the words of front.md before it."""
    before = (out / "README.md").read_text()
    (out / "front.md").write_text("# Words\n")
    assert call("--out", out) == 0
    assert (out / "README.md").read_text() == before.replace("# The policy court", "# Words", 1)


def test_runs_that_disagree_are_refused_and_repeats_count_once(tmp_path):
    """Two runs of the same cells: equal ones count once, different ones are no evidence of anything."""
    runs = [run_folder(tmp_path / "a", SYSTEMS), run_folder(tmp_path / "b", SYSTEMS)]
    rows, pairs = script.collect(runs)
    assert len(rows) == 3 * len(SYSTEMS)
    assert pairs.set_index("system").loc["static-tuned", "seeds"] == 3
    runs.append(run_folder(tmp_path / "c", SYSTEMS, scale=1.1))
    with pytest.raises(SystemExit, match="disagree"):
        script.collect(runs)


def test_host_memory_is_a_cell_of_its_own(tmp_path):
    """The same load with and without it is two rows; no interval below three seeds."""
    runs = [run_folder(tmp_path / "a", SYSTEMS), run_folder(tmp_path / "b", SYSTEMS, (0,), 64.0)]
    rows, pairs = script.collect(runs)
    assert set(rows["host_kv_gib"]) == {0.0, 64.0}
    few = pairs[pairs["host_kv_gib"] == 64].set_index("system").loc["vllm"]
    assert script.told(few, "mean") == "4.00"
    assert script.told(pd.Series({"mean": math.nan, "seeds": 5}), "mean") == ""


def test_a_folder_without_results_is_one_line(tmp_path, capsys):
    """Exit 2, before anything is written."""
    assert call(tmp_path, "--out", tmp_path / "page") == 2
    assert "no summary.json" in capsys.readouterr().err
    assert call("--out", tmp_path / "page") == 2
    assert "no tables yet" in capsys.readouterr().err
