"""Published ranges against numbers worked out by hand."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from marsbench.report.factors import read_factors
from marsbench.report.published import HEADER, PublishedRange, held_table, hold


def entry(system, seed, load, mean, *, goodput=1.0, unstable=0):
    """One cell of a summary of 10 sessions."""
    return {
        "workload": "w", "profile": "h100-nvl/m", "tool_cores": 8, "load": load, "system": system,
        "seed": seed, "rate_per_s": 0.2 * load,
        "sessions": {"arrived": 10, "distinct": 10, "completed": 10, "failed": 0},
        "metrics": {
            "session_latency_s": {"mean": mean, "p90": 2 * mean, "p95": mean, "p99": mean},
            "session_slowdown": {"p99": 2.0}, "session_goodput_per_s": {"3": goodput},
            "sessions_per_s": 1.0, "prefix_cache_hit_rate": 0.5, "jain_slowdown": 0.9,
            "max_wait_s": 1.0, "makespan_s": 100.0, "tool_utilisation": 0.1, "unstable": unstable,
        },
    }  # fmt: skip


@pytest.fixture
def factors(tmp_path):
    """factors(entries) -> what one run folder of these cells says of system ``ours``."""

    def read(*entries):
        (tmp_path / "run").mkdir()
        content = {"summary_version": 1, "run_id": "r", "cells": list(entries)}
        (tmp_path / "run/summary.json").write_text(json.dumps(content))
        return read_factors([tmp_path / "run"], "ours")

    return read


def claim(**more):
    given = {"part": "main", "claim": "mean", "measure": "mean_s", "over": ["a", "b"], "low": 1.5,
             "high": 4.0, "source": "section 5"}  # fmt: skip
    return PublishedRange.model_validate({**given, **more})


def cells(factor, *, load=1.0, system="a", seeds=3, **more):
    """``ours`` at 10 s and another so many times slower, in each of three seeds."""
    return [
        made for seed in range(seeds)
        for made in (entry(system, seed, load, 10 * factor, **more),)
    ]  # fmt: skip


def ours(load=1.0, seeds=3):
    return [entry("ours", seed, load, 10.0) for seed in range(seeds)]


def test_factors_of_each_cell_and_system(factors):
    """Over a 2, over b 8 at one load: geometric mean 4 within 1.5 to 4, one of two cells inside."""
    (one,) = hold([claim()], factors(*ours(), *cells(2.0), *cells(8.0, system="b", unstable=1)))
    assert one.factor == pytest.approx(4)
    assert (one.lowest, one.highest) == pytest.approx((2, 8))
    assert (one.inside, one.reached, one.cells, one.unstable) == (1, 2, 2, 1)
    assert (one.low, one.high) == pytest.approx((4, 4))
    header, table = held_table([one])
    assert len(header) == len(HEADER) == len(table[0])
    assert table[0][1:4] == ["section 5", "1.5-4x", "4.00x"]
    assert "2 (1 unstable)" in table[0]


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(5.0, "above"), (2.0, "within"), (1.2, "not reached"), (0.5, "not reached")],
)
def test_verdicts(factors, factor, verdict):
    """Above the range, within it, or not reached."""
    (one,) = hold([claim()], factors(*ours(), *cells(factor)))
    assert one.verdict == verdict


def test_in_part(factors):
    """Where the mean misses the range and a cell reaches it, it is reached in part."""
    (one,) = hold([claim()], factors(*ours(), *cells(1.0), *cells(1.6, system="b")))
    assert one.verdict == "in part"


def test_light_loads_are_left_out_where_the_paper_means_heavy_ones(factors):
    """From load 0.9 on only the cell at 1.0 counts; systems that the range is not over never do."""
    found = factors(
        *ours(), *ours(0.5), *cells(2.0), *cells(9.0, load=0.5), *cells(7.0, system="c")
    )
    (one,) = hold([claim(from_load=0.9)], found)
    assert (one.factor, one.cells) == (pytest.approx(2), 1)
    assert hold([claim(over=["d"])], found) == []


def test_up_to_has_no_low_end(factors):
    """A range without a low end asks for no more than to be better at all."""
    held = hold([claim(low=None)], factors(*ours(), *cells(1.1)))
    assert held[0].verdict == "within"
    assert held[0].published.text == "up to 4x"


def test_goodput_and_few_seeds_have_no_interval(factors):
    """Goodput may be 0 in a seed, and two seeds say nothing of variation."""
    found = factors(*ours(seeds=2), *cells(2.0, seeds=2, goodput=0.5))
    good, mean = hold([claim(measure="goodput"), claim()], found)
    assert good.factor == pytest.approx(2)
    assert (good.low, mean.low) == (None, None)
    assert held_table([mean])[1][0][4] == "-"


def test_a_range_is_checked():
    """Ends in order, a measure that exists, at least one system, no key that nobody reads."""
    for wrong in ({"low": 5.0}, {"measure": "speed"}, {"over": []}, {"sorce": "x"}):
        with pytest.raises(ValidationError):
            claim(**wrong)
