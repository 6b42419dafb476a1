"""A whole experiment: paired cells, kept when cut off, resumed, repeated byte for byte."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from watched_engine import WatchedEngine

from marsbench.config import load_config
from marsbench.errors import ConfigError, PolicyError, ResultsError
from marsbench.runfolder import RunFolder, read_summary, read_table


def _same(folder) -> dict:
    """summary.json without what may differ between two runs."""
    summary = json.loads((folder / "summary.json").read_text())
    del summary["run_id"]
    for cell in summary["cells"]:
        del cell["metrics"]["wall_s"]
    return summary


def breaking(error: BaseException, *, at_session_count: int, on_system_call: int):
    """The simulator, but the given run (from 1) of so many arriving sessions raises."""
    calls = 0

    def check(plan):
        nonlocal calls
        if len(plan.sessions) == at_session_count and plan.arrivals.closed_loop is None:
            calls += 1
            if calls == on_system_call:
                raise error

    return WatchedEngine(before=check)


def test_run_folder_holds_the_contract(run):
    """Files of a run, one entry per cell in order of the grid, key and metrics in each."""
    result, recorder = run(system=["vllm", "static"], load=[0.5, 1.0])
    names = {path.name for path in result.folder.iterdir()}
    assert {"config.yaml", "environment.json", "summary.json", "events.parquet"} <= names
    assert "cells" not in names
    cells = result.summary["cells"]
    assert [(c["load"], c["system"]) for c in cells] == [
        (0.5, "vllm"), (0.5, "static"), (1.0, "vllm"), (1.0, "static"),
    ]  # fmt: skip
    assert cells[2]["rate_per_s"] == pytest.approx(2 * cells[0]["rate_per_s"])
    for cell in cells:
        assert cell["sessions"] == {"arrived": 6, "distinct": 6, "completed": 6, "failed": 0}
        assert cell["metrics"]["session_slowdown"]["mean"] >= 0.999
        assert 0 <= cell["metrics"]["theoretical_prefix_cache_hit_rate"] <= 1
    assert result.complete
    assert recorder.ended
    assert recorder.ticks > 0
    assert [index for index, _ in recorder.cells] == [0, 1, 2, 3]


def test_cells_of_a_point_are_paired(run):
    """Two systems see the same sessions arrive at the same times."""
    result, _ = run(system=["vllm", "static"])
    sessions = pd.read_parquet(result.folder / "sessions.parquet")
    first, second = (group for _, group in sessions.groupby("cell"))
    for column in ("session_id", "arrival_s", "ideal_s"):
        assert first[column].tolist() == second[column].tolist()


def test_loads_compress_the_same_arrivals(run):
    """At twice the load every session arrives in half the time."""
    result, _ = run(load=[0.5, 1.0])
    sessions = pd.read_parquet(result.folder / "sessions.parquet")
    slow, fast = (group["arrival_s"].to_numpy() for _, group in sessions.groupby("cell"))
    assert slow == pytest.approx(2 * fast, abs=1e-9)


def test_rerun_of_the_resolved_config_is_identical(run, tmp_path):
    """config.yaml of a run gives the same summary, apart from wall time and run id, whether the
    measurements are remembered or not and however many processes there are.
    """
    first, _ = run("a", system=["vllm", "static-best"], seeds=2)
    again = load_config([first.folder / "config.yaml"])
    flags = {name: getattr(again, name) for name in type(again).model_fields}
    second, recorder = run("b", **flags)
    assert _same(first.folder) == _same(second.folder)
    assert not [s for s in recorder.stages if "distinct" not in s], (
        "capacity and ideals are remembered"
    )


@pytest.mark.slow
def test_processes_do_not_change_results(run):
    """Two worker processes give what one process gives, in the same order."""
    alone, _ = run("a", system=["vllm", "static"], seeds=2)
    (alone.folder.parent / "cache").rename(alone.folder.parent / "old cache")
    spread, _ = run("b", system=["vllm", "static"], seeds=2, jobs=2)
    assert _same(alone.folder) == _same(spread.folder)


def test_failed_cell_keeps_the_others(run):
    """A policy that breaks fails its own cell; the run is incomplete and can be resumed."""
    broken = breaking(PolicyError("no order"), at_session_count=6, on_system_call=2)
    result, recorder = run(system=["vllm", "static", "fixed-ttl"], on=broken)
    assert not result.complete
    assert [(cell.system, str(error)) for cell, error in result.failures] == [
        ("static", "no order")
    ]
    assert [cell["system"] for cell in result.summary["cells"]] == ["vllm", "fixed-ttl"]
    assert recorder.cells[1][1] == "failed: no order"
    resumed, recorder = run(system=["vllm", "static", "fixed-ttl"], resume=True)
    assert [index for index, _ in recorder.cells] == [1]
    whole, _ = run("whole", system=["vllm", "static", "fixed-ttl"])
    assert resumed.complete
    assert _same(resumed.folder) == _same(whole.folder)
    assert resumed.summary["run_id"] == result.summary["run_id"]


def test_interrupt_keeps_finished_cells(run):
    """Ctrl-C in the second cell: the first is kept, the run says that it was interrupted."""
    broken = breaking(KeyboardInterrupt(), at_session_count=6, on_system_call=2)
    result, recorder = run(system=["vllm", "static"], on=broken)
    assert result.interrupted
    assert not result.complete
    assert recorder.ended
    assert [cell["system"] for cell in result.summary["cells"]] == ["vllm"]
    resumed, _ = run(system=["vllm", "static"], resume=True)
    assert [cell["system"] for cell in resumed.summary["cells"]] == ["vllm", "static"]


def test_run_cut_off_before_its_first_cell_is_no_run(run, tmp_path):
    """A folder without any finished cell is used again without being asked."""
    broken = breaking(AssertionError("early"), at_session_count=6, on_system_call=1)
    with pytest.raises(AssertionError):
        run(on=broken)
    assert (tmp_path / "run" / "config.yaml").is_file()
    result, _ = run(sessions=5)
    assert result.complete


def test_broken_invariant_stops_the_run(run, tmp_path):
    """An assertion is no user error: it surfaces, with a note on where finished cells are."""
    broken = breaking(AssertionError("blocks lost"), at_session_count=6, on_system_call=2)
    with pytest.raises(AssertionError, match="blocks lost") as caught:
        run(system=["vllm", "static"], on=broken)
    assert any(str(tmp_path / "run") in note for note in caught.value.__notes__)
    assert any("system static" in note for note in caught.value.__notes__)
    assert [cell["system"] for cell in read_summary(tmp_path / "run")["cells"]] == ["vllm"]


def test_full_disk_stops_the_run(run, monkeypatch):
    """If a cell cannot be stored no other can: the run ends, finished cells stay."""
    real = RunFolder.write_cell

    def fails(self, index, *rest):
        if index == 1:
            raise ResultsError("cannot write: No space left on device")
        real(self, index, *rest)

    monkeypatch.setattr(RunFolder, "write_cell", fails)
    result, _ = run(system=["vllm", "static", "fixed-ttl"])
    assert [cell["system"] for cell in result.summary["cells"]] == ["vllm"]
    assert "No space left" in str(result.failures[0][1])


def test_too_large_sessions_are_rejected_and_counted(run):
    """6,000 prompt tokens and more do not fit 300 blocks of 16; sessions that do not fit fail."""
    result, _ = run(rate_per_s=[0.1], engine={"name": "sim", "params": {"num_blocks": 410}})
    (cell,) = result.summary["cells"]
    counts = cell["sessions"]
    assert counts["failed"] > 0
    assert counts["completed"] + counts["failed"] == counts["arrived"] == 6


def test_nothing_fits_has_no_capacity(run):
    """Load is a share of capacity; where no session fits there is none, and the line says so."""
    with pytest.raises(ConfigError, match=r"no session fits .* give arrivals with --rate"):
        run(engine={"name": "sim", "params": {"num_blocks": 100}})


def test_hindsight_and_tuning_are_labelled(run):
    """-best says it looked, -tuned does not: its parameters come from the other split."""
    result, _ = run(system=["static-best", "static-tuned"])
    best, tuned = result.summary["cells"]
    assert best["hindsight"] is True
    assert min(latency for _, latency in best["tried"]) == pytest.approx(
        best["metrics"]["session_latency_s"]["mean"]
    )
    assert "hindsight" not in tuned
    environment = json.loads((result.folder / "environment.json").read_text())
    (record,) = environment["tuned"]
    assert record["params"] == tuned["params"]
    assert record["system"] == "static-tuned"


def test_clairvoyant_systems_are_labelled(run):
    """A system that sees the future is marked in every entry."""
    result, _ = run(system=["oracle", "vllm"])
    assert [cell.get("oracle") for cell in result.summary["cells"]] == [True, None]


def test_environment_says_what_results_depend_on(run, trace):
    """Inputs by hash, seeds, and the capacity with its curve."""
    result, _ = run(seeds=2)
    environment = json.loads((result.folder / "environment.json").read_text())
    assert environment["seeds"] == [0, 1]
    assert str(trace) in environment["input_sha256"]
    (capacity,) = environment["capacity"]
    assert max(rate for _, rate in capacity["curve"]) == capacity["sessions_per_s"]
    assert environment["run_id"] == result.summary["run_id"]


def test_closed_loop_needs_no_capacity(run):
    """A closed loop has no rate; its cells carry neither load nor rate."""
    result, recorder = run(arrival={"name": "closed", "params": {"n": 2}})
    (cell,) = result.summary["cells"]
    assert (cell["load"], cell["rate_per_s"]) == (None, None)
    assert not any("capacity" in stage for stage in recorder.stages)


def test_folder_of_another_run_is_not_touched(run, tmp_path):
    """A run is replaced only when told so, continued only if it is the same experiment, and a
    folder with anything else in it is left alone.
    """
    run()
    with pytest.raises(ConfigError, match="already holds a run; continue it with --resume"):
        run()
    with pytest.raises(ConfigError, match="another experiment: sessions was 6, now 5"):
        run(resume=True, sessions=5)
    _, recorder = run(resume=True)
    assert recorder.notes == [f"{tmp_path / 'run'} is complete: nothing to resume"]
    run(overwrite=True, sessions=5)
    (tmp_path / "run" / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match=r"holds 'thesis.tex', which is no part of a run"):
        run(overwrite=True)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"system": ["vlm"]}, "did you mean 'vllm'?"),
        ({"engine": "simm"}, "unknown engine 'simm'; did you mean 'sim'?"),
        ({"profile": ["h100-nvl/qwen3"]}, "unknown profile"),
        ({"tools": {"name": "modeled"}}, "did you mean 'modelled'?"),
        ({"arrival": "poison"}, "did you mean 'poisson'?"),
        ({"arrival": {"name": "poisson", "params": {"x": 1}}}, "unknown parameter"),
        ({"arrival": "closed", "load": [0.5]}, "has no rate"),
        ({"workload": ["swe-bensh"]}, "did you mean 'swe-bench'?"),
        ({"engine": {"name": "sim", "params": {"num_block": 1}}}, "did you mean 'num_blocks'?"),
        ({"engine": {"name": "sim", "params": {"num_blocks": "many"}}}, "expected int, got 'many'"),
        ({"engine": {"name": "sim", "params": {"num_blocks": 0}}}, "must be positive, got 0"),
        ({"params": {"vllm": {"windw": 3}}}, "unknown parameter of system 'vllm' 'windw'"),
        ({"system": ["static"], "params": {"static": {"windw": 3}}}, "did you mean 'window'?"),
        ({"system": ["static"], "params": {"static": {"window": 0}}}, "must be at least 1"),
        ({"params": {"vllm": {"policy": 3}}}, "params.vllm.policy: expected str, got 3"),
    ],
)
def test_wrong_names_are_found_before_anything_runs(run, tmp_path, flags, line):
    """Every name and flag is checked before the run folder is made."""
    with pytest.raises(ConfigError) as caught:
        run(**flags)
    assert line in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_every_recorded_session_is_replayed_once(run):
    """A trace of 16 sessions and a request for 16 gives each of them once, and the first line says
    how many are distinct."""
    result, recorder = run(sessions=16, rate_per_s=[0.01], load=[])
    assert result.summary["cells"][0]["sessions"]["distinct"] == 16
    ids = read_table(result.folder, "sessions")["session_id"].astype(str)
    assert sorted(ids) == sorted(f"s{k}" for k in range(16))
    assert recorder.stages[0].startswith(
        "small: 16 sessions a cell, 16 distinct; 16 distinct in all"
    )


def test_repeats_are_counted_and_said(run):
    """Forty sessions of a trace of 16 are 16 distinct ones, in the run's first line and its summary."""
    result, recorder = run(sessions=40, seeds=2, rate_per_s=[0.01], load=[])
    counts = [cell["sessions"] for cell in result.summary["cells"]]
    assert [(c["arrived"], c["distinct"]) for c in counts] == [(40, 16)] * 2
    assert "40 sessions a cell, 16 distinct; 16 distinct in all" in recorder.notes[0]
    assert "ask for fewer with --sessions" in recorder.notes[0]
