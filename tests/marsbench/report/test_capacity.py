"""What a capacity search found: brackets over seeds, ratios, bounds, and how all of it is said."""

from __future__ import annotations

import math

import numpy as np
import pytest

from marsbench.errors import ConfigError
from marsbench.report.capacity import (
    Estimate,
    capacity_table,
    estimate,
    ratio,
    rows_of,
    sentence,
    warnings_of,
)


def bracket(seed, best, failed, least=0.001):
    return {"seed": seed, "best": best, "failed": failed, "least": least}


def search(system, seed, best, failed, *, agents=5.0, islands=(), unstable=False):
    tried = [
        {"value": value, "unstable": unstable and not ok, "failed": "" if ok else "p95 slowdown <= 3",
         "sustained": ok, "cell": 0, "bounds": {"p95 slowdown <= 3": 2.0 if ok else 4.0}}
        for value, ok in ((best, True), (failed, False)) if value is not None
    ]  # fmt: skip
    return {**bracket(seed, best, failed), "system": system, "agents": agents, "sessions": 100,
            "sessions_per_s": best, "islands": list(islands), "tried": tried}  # fmt: skip


def found(*searches, loop="open", **more):
    scenario = {
        "workload": "swe", "profile": "h100", "engine": "sim", "tool_cores": 8, "host_kv_gib": 0.0,
        "num_gpus": 2, "unit_per_s": 0.02, "drawn": 300, "distinct": 300, "searches": list(searches),
        **more,
    }  # fmt: skip
    return {"slo": "p95 slowdown <= 3", "loop": loop, "complete": True, "scenarios": [scenario]}


def test_brackets_by_hand():
    """The capacity of one seed is the middle of its bracket; over equal seeds the interval is the
    bracket itself, since no search looked closer.
    """
    same = estimate([bracket(k, 1.0, 1.21) for k in range(3)])
    assert same == Estimate(pytest.approx(1.1), pytest.approx(1.0), pytest.approx(1.21))
    apart = estimate([bracket(0, 1.0, 1.0201), bracket(1, 2.0, 2.0402), bracket(2, 4.0, 4.0804)])
    assert apart.value == pytest.approx(2.02)
    t = 4.302652729696142 * math.log(2) / math.sqrt(3)
    assert (apart.low, apart.high) == pytest.approx((2.02 * math.exp(-t), 2.02 * math.exp(t)))
    assert estimate([]) is None
    assert estimate([bracket(0, 1.0, 1.1)]).low is None


def test_whole_numbers_of_agents_have_no_middle():
    """If 7 agents are sustained and 8 are not, the capacity is 7."""
    seven = estimate([bracket(k, 7, 8) for k in range(3)])
    assert (seven.value, seven.low, seven.high) == pytest.approx((7, 7, 7))


def test_a_bracket_that_is_hit_gives_a_bound_and_no_interval():
    """Where a seed met the top, the mean is "at least"; where one met the bottom, "below"; both: none."""
    top, bottom = bracket(0, 2.0, None), bracket(0, None, 0.001)
    inside = [bracket(1, 1.0, 1.0201), bracket(2, 1.0, 1.0201)]
    up = estimate([top, *inside])
    assert (up.bound, up.low, up.high) == ("at least", None, None)
    assert up.text(3600).startswith("at least ")
    down = estimate([bottom, *inside])
    assert down.bound == "below"
    assert estimate([top, bottom, *inside]) is None
    assert estimate([bottom, bottom]) is None


def test_ratios_are_paired_and_bounds_carry_over():
    """Seeds that differ tenfold and a system always twice as good: ratio 2 within its brackets."""
    base = [bracket(k, 10.0**k, 10.0**k * 1.0201) for k in range(3)]
    twice = [bracket(k, 2 * 10.0**k, 2 * 10.0**k * 1.0201) for k in range(3)]
    same = ratio(twice, base)
    assert same.value == pytest.approx(2)
    assert (same.low, same.high) == pytest.approx((2 / 1.0201, 2 * 1.0201))
    top = [bracket(k, 40.0, None) for k in range(3)]
    assert ratio(top, base).bound == "at least"
    assert ratio(base, top).bound == "below"
    assert ratio(top, top) is None
    assert ratio(base, base[:0]) is None


@pytest.mark.parametrize("num_seeds", [3, 5, 10])
@pytest.mark.parametrize("spread", [0.1, 0.4])
def test_intervals_cover_the_truth(num_seeds, spread):
    """A capacity of 1 that varies over seeds by 10 or 40 % and is searched on rungs 3 % apart is
    inside 93 to 97 of 100 intervals.
    """
    rng = np.random.default_rng(1)
    inside, repeats, step = 0, 3000, math.log(1.03)
    for _ in range(repeats):
        rungs = np.floor(rng.normal(0, spread, num_seeds) / step)
        brackets = [
            bracket(k, math.exp(r * step), math.exp(r * step + step)) for k, r in enumerate(rungs)
        ]
        one = estimate(brackets)
        inside += one.low <= 1 <= one.high
    assert 0.93 <= inside / repeats <= 0.97


def test_a_row_says_all_of_it():
    """Rate in sessions per hour, its load, agents per GPU, ratio to the baseline, what fails first."""
    base = [search("vllm", k, 0.01, 0.0103, unstable=True) for k in range(3)]
    ours = [search("mars", k, 0.02, 0.0206, agents=8.0) for k in range(3)]
    document = found(*base, *ours)
    vllm, mars = rows_of(document)
    assert (vllm.limit, mars.limit) == ("unstable", "p95 slowdown <= 3")
    assert mars.load == pytest.approx(0.02 * math.sqrt(1.03) / 0.02)
    assert (mars.seeds, mars.evaluations, mars.agents) == ((0, 1, 2), 6, 8.0)
    assert mars.ratio.value == pytest.approx(2)
    header, table = capacity_table([vllm, mars], closed=False)
    named = dict(zip(header, table[1], strict=True))
    assert named["sessions/hour"] == "73.1"
    assert named["agents/GPU"] == "4"
    assert (named["against"], named["ratio"], named["seeds"]) == ("vllm", "2.00x", "0-2")
    assert sentence(mars, document) == (
        "mars sustains 73.1 sessions/hour (72–74.2) with p95 slowdown <= 3: 2.00x of vllm (1.94–2.06)"
    )
    assert not mars.notes
    assert not warnings_of(document)
    (_, against_mars) = rows_of(document, "mars")
    assert against_mars.ratio is None
    with pytest.raises(ConfigError, match="did you mean 'mars'"):
        rows_of(document, "marss")


def test_agents_are_counted_in_a_closed_loop():
    """Whole agents, the sessions they complete an hour, and no load."""
    document = found(*(search("vllm", k, 7, 8, agents=7.0) for k in range(3)), loop="closed")
    document["scenarios"][0]["searches"][0]["sessions_per_s"] = 0.01
    for one in document["scenarios"][0]["searches"]:
        one["sessions_per_s"] = 0.01
    (row,) = rows_of(document)
    header, table = capacity_table([row], closed=True)
    named = dict(zip(header, table[0], strict=True))
    assert named["agents"] == "7"
    assert (named["agents/GPU"], named["sessions/hour"]) == ("3.5", "36")
    assert row.load is None


def test_what_makes_a_search_doubtful_is_said():
    """Ends of the ladder, curves that are not monotone, cells that never settle, few seeds, draws
    from few recordings.
    """
    document = found(
        search("vllm", 0, 0.01, None), search("vllm", 1, 0.01, 0.0103, islands=[0.02]),
        search("mars", 0, None, 0.001, agents=None), search("mars", 1, 0.01, 0.0103, agents=60.0),
        distinct=50,
    )  # fmt: skip
    vllm, mars = rows_of(document)
    text = " | ".join([*vllm.notes, *mars.notes, *warnings_of(document)])
    assert "met the top of the bracket, 36 /h, in 1 of 2 seeds: raise --most" in text
    assert "passes again up to 72 /h above a failure in 1 of 2 seeds, not counted" in text
    assert "fails even at 3.6 /h, the least tried, in 1 of 2 seeds" in text
    assert "100 sessions and 60 in the system at once: give more --sessions" in text
    assert "fewer than 3 seeds" in text
    assert "300 sessions from 50 distinct ones" in text
    assert sentence(vllm, document).startswith("vllm sustains at least ")
