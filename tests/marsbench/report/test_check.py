"""The gate: which row fails, and how surely, on summaries made by hand."""

from __future__ import annotations

import copy
import json
from xml.etree import ElementTree as ET

import pytest

from marsbench.cli import RunFailed
from marsbench.cli import check as cli
from marsbench.errors import ConfigError
from marsbench.report.check import WATCHED, CheckOutcome, check, self_check, tolerances_of
from marsbench.report.check_files import markdown

TOLERANCES = tolerances_of(())


def entry(system, seed, *, latency=100.0, hits=0.8, failed=0, engine="sim", arrived=20, **more):
    """One cell of a summary."""
    return {
        "workload": "swe", "system": system, "engine": engine, "profile": "h100", "load": 0.9,
        "rate_per_s": 0.01, "seed": seed, "tool_cores": 8,
        "sessions": {"arrived": arrived, "distinct": arrived, "completed": arrived - failed,
                     "failed": failed},
        "metrics": {
            "session_latency_s": {"mean": latency * (1 + seed / 10), "p95": 3 * latency},
            "session_slowdown": {"mean": 2.0}, "session_goodput_per_s": {"3": 0.01},
            "slo_attainment": {"3": 0.9}, "sessions_per_s": 0.01, "ttft_s": {"mean": 1.5},
            "prefix_cache_hit_rate": hits, "preemptions": 0, "recomputed_tokens": 1000,
        },
        **more,
    }  # fmt: skip


CELLS = [entry(system, seed) for system in ("vllm", "mars") for seed in range(3)]


@pytest.fixture
def folder(tmp_path):
    """folder(cells) -> a run folder with that summary."""

    def write(cells, name):
        path = tmp_path / name
        path.mkdir()
        content = {"summary_version": 1, "run_id": name, "cells": cells}
        (path / "summary.json").write_text(json.dumps(content))
        return path

    return write


@pytest.fixture
def reference(folder):
    return folder(CELLS, "reference")


def set_value(cells, system, metric, factor):
    """The cells with one metric of one system multiplied in every seed."""
    changed = copy.deepcopy(cells)
    name, _, part = metric.partition(".")
    for cell in changed:
        if cell["system"] == system:
            held = cell["metrics"]
            if part:
                held[name][part] *= factor
            else:
                held[name] *= factor
    return changed


def test_an_unchanged_rerun_passes(folder, reference):
    """Every row is the same, and the reference passes against itself."""
    rows = check(folder(copy.deepcopy(CELLS), "run"), reference, TOLERANCES)
    assert len(rows) == 2 * len(WATCHED)
    assert {row.outcome for row in rows} == {CheckOutcome.SAME}
    self_check(reference, TOLERANCES)


LOWER = ("session_latency_s.mean", "session_latency_s.p95", "session_slowdown.mean", "ttft_s.mean")
HIGHER = ("session_goodput_per_s.3", "slo_attainment.3", "sessions_per_s", "prefix_cache_hit_rate")


@pytest.mark.parametrize(
    ("metric", "factor"), [*((m, 1.05) for m in LOWER), *((m, 0.95) for m in HIGHER)]
)
def test_five_per_cent_worse_fails_in_its_row_only(folder, reference, metric, factor):
    """One metric of one system 5 % worse in its own direction: that row fails and no other; 5 % better
    fails nothing.
    """
    rows = check(folder(set_value(CELLS, "mars", metric, factor), "run"), reference, TOLERANCES)
    failed = [row for row in rows if row.outcome.fails]
    assert [(row.system, row.metric) for row in failed] == [("mars", metric)]
    assert failed[0] == rows[0]
    assert failed[0].change == pytest.approx(0.05)
    better = set_value(CELLS, "mars", metric, 2 - factor)
    rows = check(folder(better, "better"), reference, TOLERANCES)
    assert [row.metric for row in rows if row.outcome is CheckOutcome.BETTER] == [metric]
    assert not any(row.outcome.fails for row in rows)


def test_a_little_worse_passes_unless_nothing_may_change(folder, reference):
    """Two per cent is within the tolerance; with ``exact`` it is a change, better or worse."""
    for factor in (1.02, 0.98):
        run = folder(set_value(CELLS, "vllm", "ttft_s.mean", factor), f"run-{factor}")
        assert {row.outcome for row in check(run, reference, TOLERANCES)} == {CheckOutcome.SAME}
        loud = [r for r in check(run, reference, TOLERANCES, exact=True) if r.outcome.fails]
        assert [(r.system, r.metric, r.outcome) for r in loud] == [
            ("vllm", "ttft_s.mean", CheckOutcome.CHANGED)
        ]


def test_on_a_live_engine_a_change_must_be_more_than_chance(folder, reference):
    """Seeds at +30, -10 and +1 per cent are 6 % worse on average: unsure live, worse in virtual time;
    6 % in each seed is worse in both.
    """
    factors = dict(enumerate((1.3, 0.9, 1.01)))
    for live in ({}, {"live": {"requests": 1}}):
        noisy, steady = ([{**copy.deepcopy(c), **live} for c in CELLS] for _ in range(2))
        for one, other in zip(noisy, steady, strict=True):
            one["metrics"]["ttft_s"]["mean"] *= factors[one["seed"]]
            other["metrics"]["ttft_s"]["mean"] *= 1.06
        name = "live" if live else "virtual"
        row = check(folder(noisy, f"noisy-{name}"), reference, TOLERANCES)[0]
        assert row.metric == "ttft_s.mean"
        assert row.outcome is (CheckOutcome.UNSURE if live else CheckOutcome.WORSE)
        assert row.low < 0 < row.change < row.high
        assert row.detectable > row.change
        row = check(folder(steady, f"steady-{name}"), reference, TOLERANCES)[0]
        assert (row.outcome, row.metric) == (CheckOutcome.WORSE, "ttft_s.mean")


def test_other_seeds_are_compared_as_independent_samples(folder, reference):
    """Without a seed in common nothing is paired, and the interval is that of two samples."""
    other = [{**copy.deepcopy(c), "seed": c["seed"] + 7} for c in CELLS]
    rows = check(folder(other, "run"), reference, TOLERANCES)
    row = next(r for r in rows if r.metric == "session_latency_s.mean")
    assert not row.paired
    # the same three latencies, 10 % apart: no change, uncertain by the spread of both samples
    assert row.change == pytest.approx(0.0)
    assert row.low < 0 < row.high


def test_sessions_that_fail_and_cells_that_are_gone_fail(folder, reference):
    """From no failed session to one; and a cell of the reference that the run does not have."""
    one = [entry(c["system"], c["seed"], failed=int(c["system"] == "mars")) for c in CELLS]
    loud = [r for r in check(folder(one, "run"), reference, TOLERANCES) if r.outcome.fails]
    assert [(r.system, r.metric) for r in loud] == [("mars", "failed")]
    gone = [c for c in CELLS if c["system"] != "mars"]
    rows = check(folder(gone, "gone"), reference, TOLERANCES)
    assert {r.outcome for r in rows if r.system == "mars"} == {CheckOutcome.MISSING}
    short = [c for c in CELLS if (c["system"], c["seed"]) != ("mars", 2)]
    rows = check(folder(short, "short"), reference, TOLERANCES)
    assert {r.outcome for r in rows if r.system == "mars"} == {CheckOutcome.MISSING}


def test_runs_of_other_experiments_cannot_be_checked(folder, reference):
    """Nothing in common is wrong use, not a pass."""
    other = [{**c, "workload": "else"} for c in CELLS]
    with pytest.raises(ConfigError, match="no cell in common"):
        check(folder(other, "run"), reference, TOLERANCES)


def test_tolerances():
    """One for all, one for a metric with all its parts, one for a metric that is not watched."""
    assert set(tolerances_of(["2%"]).values()) == {0.02}
    found = tolerances_of(["session_latency_s=10%", "preemptions=0.5"])
    assert (found["session_latency_s.mean"], found["session_latency_s.p95"]) == (0.1, 0.1)
    assert (found["preemptions"], found["ttft_s.mean"]) == (0.5, 0.05)
    with pytest.raises(ConfigError, match="unknown metric 'tft_s'; did you mean 'ttft_s'"):
        tolerances_of(["tft_s=1%"])
    with pytest.raises(ConfigError, match="expected METRIC=5%"):
        tolerances_of(["ttft_s=much"])
    with pytest.raises(ConfigError, match="neither"):
        tolerances_of(["gpu_utilisation=1%"])


def test_command_writes_what_machines_read(folder, reference, tmp_path, monkeypatch, capsys):
    """A pass prints one line; a failure exits 1, names the row, and is in the XML and the summary."""
    cli.command(folder(copy.deepcopy(CELLS), "same"), against=reference)
    assert capsys.readouterr().out == f"{2 * len(WATCHED)} rows: {2 * len(WATCHED)} same\n"
    run = folder(set_value(CELLS, "mars", "ttft_s.mean", 1.2), "run")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    with pytest.raises(RunFailed, match=r"1 of 18 rows fail, first ttft_s.mean of mars") as error:
        cli.command(run, against=reference, junit=tmp_path / "ci" / "j.xml", github_summary=True)
    assert error.value.code == 1
    assert "+20.0%" in capsys.readouterr().out
    suite = ET.parse(tmp_path / "ci" / "j.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("18", "1")
    (failed,) = suite.findall("testcase[failure]")
    assert failed.get("name") == "ttft_s.mean"
    assert "mars" in failed.get("classname")
    text = (tmp_path / "summary.md").read_text()
    assert text.startswith("### marsbench check: failed")
    assert text.count("| WORSE |") == 1
    monkeypatch.delenv("GITHUB_STEP_SUMMARY")
    with pytest.raises(ConfigError, match="GITHUB_STEP_SUMMARY is not set"):
        cli.command(run, against=reference, github_summary=True)


def test_a_pass_says_so_in_markdown(folder, reference):
    """A heading and a line, no empty table."""
    rows = check(folder(copy.deepcopy(CELLS), "run"), reference, TOLERANCES)
    text = markdown(rows, reference, reference)
    assert text.startswith("### marsbench check: passed")
    assert "|" not in text
