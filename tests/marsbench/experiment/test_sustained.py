"""Capacity searches as runs: toys of known capacity, real cells, kept when cut off and continued."""

from __future__ import annotations

import json
import math

import pytest
from watched_engine import WatchedEngine

from marsbench.config import load_config
from marsbench.errors import ConfigError, PolicyError
from marsbench.experiment import sustained
from marsbench.experiment.sustained import find_capacity
from marsbench.report.capacity import rows_of
from marsbench.runfolder import read_capacity, read_table


@pytest.fixture
def find(trace, tmp_path, recorder):
    """find(out="a", slo=..., **flags) -> (result, capacity.json, notes)."""

    def go(
        out="run", *, slo="p95 slowdown <= 3", jobs=1, resume=False, on=None, sustain=None, **flags
    ):
        given = {
            "workload": [str(trace)], "system": ["vllm"], "sessions": 16, "seeds": 3,
            "capacity": {"sessions": 8}, "tuning": {"sessions": 4}, "tool_cores": [2],
            "sustain": {"slo": slo, "precision": 0.1, **(sustain or {})},
        }  # fmt: skip
        told = recorder()
        result = find_capacity(
            load_config(flags={**given, **flags}), tmp_path / out, reporter=told, jobs=jobs,
            resume=resume, cache=tmp_path / "cache", engine=on,
        )  # fmt: skip
        return result, read_capacity(result.folder), told

    return go


def toy(monkeypatch, capacities, *, attained=lambda rate, top: 1 / (1 - rate / top)):
    """Cells answer by a formula: mean slowdown of a queue with processor sharing, unstable past its
    capacity, which is ``capacities[system]`` sessions per second, moved by 10 % with the seed.
    """

    def answer(task):
        rate, top = task.key.rate_per_s, capacities[task.key.system] * 1.1**task.key.seed
        slow = attained(rate, top) if rate < top else math.inf
        metrics = {
            "unstable": int(rate >= top), "session_slowdown": {"mean": slow},
            "session_latency_s": {"mean": 10 * slow}, "sessions_per_s": min(rate, top),
        }  # fmt: skip
        return {
            **task.key.as_dict(), "sessions": {"arrived": 100, "completed": 100, "failed": 0},
            "metrics": metrics,
        }  # fmt: skip

    monkeypatch.setattr(sustained.tasks, "cell", answer)


def test_known_capacities_are_found(find, monkeypatch):
    """A mean slowdown of at most 4 is met up to three quarters of a toy's capacity: each seed's
    bracket holds that, and the ratio of two toys is that of their capacities.
    """
    toy(monkeypatch, {"vllm": 0.2, "mars": 0.5})
    _, found, _ = find(
        slo="mean slowdown <= 4", system=["vllm", "mars"], sustain={"precision": 0.02}
    )
    for search in found["scenarios"][0]["searches"]:
        top = {"vllm": 0.2, "mars": 0.5}[search["system"]] * 1.1 ** search["seed"]
        assert search["best"] <= 0.75 * top < search["failed"]
        assert search["failed"] == pytest.approx(1.02 * search["best"])
        assert len(search["tried"]) <= 14
    vllm, mars = rows_of(found)
    assert vllm.sustained.value == pytest.approx(0.75 * 0.2 * 1.1, rel=0.02)
    assert mars.ratio.low <= 2.5 <= mars.ratio.high
    assert mars.ratio.value == pytest.approx(2.5, rel=0.02)


def test_an_unstable_rate_is_not_sustained(find, monkeypatch):
    """However lax the objective, the capacity ends where queues grow."""
    toy(monkeypatch, {"vllm": 0.2})
    _, found, _ = find(slo="mean slowdown <= 1000000", seeds=1, sustain={"precision": 0.02})
    (search,) = found["scenarios"][0]["searches"]
    assert search["best"] < 0.2 <= search["failed"]
    assert rows_of(found)[0].limit == "unstable"


def test_a_bracket_that_is_hit_is_said(find, monkeypatch):
    """A toy of enormous capacity sustains at least the top of the ladder; one with none, nothing."""
    toy(monkeypatch, {"vllm": 1e9, "mars": 1e-9})
    _, found, _ = find(slo="mean slowdown <= 4", system=["vllm", "mars"], sustain={"most": 3600.0})
    vllm, mars = rows_of(found)
    assert vllm.sustained.bound == "at least"
    assert 1 / 1.1 < vllm.sustained.value <= 1.0
    assert "raise --most" in vllm.notes[0]
    assert mars.sustained is None
    assert "fails even at" in mars.notes[0]


def test_curves_that_are_not_monotone_are_said(find, monkeypatch):
    """Good below 0.05 and again between 0.11 and 0.2: what counts is the lower part."""

    def bumpy(rate, top):
        return 9.0 if 0.05 < rate < 0.11 else 1.0

    toy(monkeypatch, {"vllm": 0.2}, attained=bumpy)
    sustain = {"least": 18.0, "most": 3600.0, "precision": 0.02}
    _, found, _ = find(slo="mean slowdown <= 4", seeds=1, sustain=sustain)
    (search,) = found["scenarios"][0]["searches"]
    assert search["best"] <= 0.2
    low = search["best"] <= 0.05
    assert search["failed"] == pytest.approx(1.02 * search["best"])
    assert not low or all(0.11 <= island <= 0.2 for island in search["islands"])


def test_cells_are_kept_and_a_search_is_continued(find):
    """Ctrl-C in the fifth cell: four are kept. Continued, the search asks them of the folder, and
    finds what it finds in one go; what is complete is not run again.
    """
    calls = 0

    def stop(plan):
        nonlocal calls
        if len(plan.sessions) == 16 and plan.arrivals.closed_loop is None:
            calls += 1
            if calls == 5:
                raise KeyboardInterrupt

    cut, found, told = find(on=WatchedEngine(before=stop), system=["vllm", "mars"])
    assert cut.interrupted
    assert not found["complete"]
    assert len(told.cells) == 4
    whole, expected, all_told = find("whole", system=["vllm", "mars"])
    assert whole.complete
    resumed, found, told = find(system=["vllm", "mars"], resume=True)
    assert resumed.complete
    assert len(told.cells) == len(all_told.cells) - 4
    for name in ("run_id",):
        found.pop(name), expected.pop(name)
    strip(found), strip(expected)
    assert found == expected
    again, _, told = find(system=["vllm", "mars"], resume=True)
    assert not told.cells
    assert again.complete
    cells = read_table(whole.folder, "sessions")["cell"].nunique()
    assert cells == len(whole.summary["cells"]) == len(all_told.cells)


def strip(found):
    """Cells have other numbers in a search that was cut off."""
    for scenario in found["scenarios"]:
        for search in scenario["searches"]:
            for tried in search["tried"]:
                del tried["cell"]


@pytest.mark.slow
def test_processes_do_not_change_what_is_found(find):
    """Two worker processes find what one finds."""
    _, alone, _ = find("a", seeds=2)
    _, spread, _ = find("b", seeds=2, jobs=2)
    assert alone.pop("run_id")
    assert spread.pop("run_id")
    assert alone == spread


def test_systems_are_paired_on_every_rung(find):
    """At one rate and seed two systems see the same sessions at the same times."""
    result, _, _ = find(system=["vllm", "static"], seeds=1)
    cells = {c["cell"]: c for c in result.summary["cells"]}
    sessions = read_table(result.folder, "sessions")
    seen: dict = {}
    for cell, rows in sessions.groupby("cell"):
        arrived = list(zip(rows["session_id"], rows["arrival_s"], strict=True))
        seen.setdefault(cells[cell]["rate_per_s"], []).append(arrived)
    shared = [found for found in seen.values() if len(found) > 1]
    assert shared
    assert all(first == second for first, second in shared)


def test_agents_are_searched_in_a_closed_loop(find):
    """Whole numbers of agents; the cell of the best one had just so many sessions at once."""
    result, found, _ = find(
        slo="mean slowdown <= 1.5", seeds=1, sustain={"closed_loop": True, "most": 64}
    )
    (search,) = found["scenarios"][0]["searches"]
    assert isinstance(search["best"], int)
    assert search["failed"] == search["best"] + 1
    assert search["agents"] == search["best"]
    entry = next(
        cell for cell in result.summary["cells"]
        if cell["active"] == search["best"]
    )  # fmt: skip
    assert entry["rate_per_s"] is None
    assert entry["sessions"]["arrived"] >= sustained.SESSIONS_PER_AGENT * search["best"]
    (row,) = rows_of(found)
    assert row.sessions_per_hour == pytest.approx(3600 * entry["metrics"]["sessions_per_s"])


def test_a_cell_that_fails_ends_its_own_search(find):
    """The other system's capacity is found; the run is incomplete and says why."""

    calls = 0

    def second(plan):
        nonlocal calls
        if len(plan.sessions) == 16 and plan.arrivals.closed_loop is None:
            calls += 1
            if calls == 2:
                raise PolicyError("no order")

    result, found, _ = find(system=["vllm", "static"], seeds=1, on=WatchedEngine(before=second))
    assert not result.complete
    assert [(cell.system, str(error)) for cell, error in result.failures] == [
        ("static", "no order")
    ]
    assert [s["system"] for s in found["scenarios"][0]["searches"]] == ["vllm"]
    resumed, found, _ = find(system=["vllm", "static"], seeds=1, resume=True)
    assert resumed.complete
    assert [s["system"] for s in found["scenarios"][0]["searches"]] == ["vllm", "static"]


def test_host_memory_is_searched_apart(find, monkeypatch):
    """Two sizes of host memory are two scenarios, each with its own unit of load."""
    toy(monkeypatch, {"vllm": 0.2})
    _, found, _ = find(slo="mean slowdown <= 4", seeds=1, host_kv_gib=[0.0, 4.0])
    assert [scenario["host_kv_gib"] for scenario in found["scenarios"]] == [0.0, 4.0]
    assert all(len(scenario["searches"]) == 1 for scenario in found["scenarios"])


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"slo": "p95 slowdwn <= 3"}, "did you mean 'slowdown'"),
        ({"sessions": 11}, "fewer than 12 sessions"),
        ({"arrival": "closed", "load": []}, "has a pace of its own"),
        ({"sustain": {"least": 9.0, "most": 9.0}}, "--least 9 is not below --most 9"),
        ({"sustain": {"least": 9.0, "most": 9.1}}, "widen the bracket"),
        ({"sustain": {"least": 1.5, "closed_loop": True}}, "whole numbers"),
        ({"sustain": {"precision": 0.0}}, "sustain.precision"),
    ],
)
def test_mistakes_are_found_before_anything_runs(find, flags, line):
    """One line, and no cell."""
    with pytest.raises(ConfigError, match=line):
        find(**flags)


def test_no_objective_is_a_mistake_and_run_does_not_search(trace, run):
    """A search needs --slo; ``marsbench run`` refuses an experiment that is a search."""
    with pytest.raises(ConfigError, match="give --slo"):
        sustained.for_search(load_config(flags={"workload": [str(trace)]}))
    with pytest.raises(ConfigError, match="marsbench capacity"):
        run(sustain={"slo": "p95 slowdown <= 3"})


def test_the_document_is_plain_json(find, monkeypatch):
    """capacity.json holds no infinity, though a bound may have met one."""
    toy(monkeypatch, {"vllm": 0.2})
    result, _, _ = find(slo="mean slowdown <= 4", seeds=1)
    text = (result.folder / "capacity.json").read_text()
    json.loads(text, parse_constant=pytest.fail)
