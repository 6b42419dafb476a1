"""The one interval of compare, check and claims: by hand, and its coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from marsbench.report.intervals import MIN_SEEDS, Measure, Pairs, over_seeds, paired

RNG = np.random.default_rng(0)


def test_by_hand():
    """Log ratios 0.1, 0.2, 0.3: mean 0.2, standard error 0.1/√3, t(0.975, 2) = 4.302653."""
    found = over_seeds(np.array([0.1, 0.2, 0.3]))
    half = 4.302653 * 0.1 / np.sqrt(3)
    assert found.value == pytest.approx(np.exp(0.2))
    assert (found.low, found.high) == pytest.approx((np.exp(0.2 - half), np.exp(0.2 + half)))
    # 80 of 100 runs see an effect of t(0.975) + t(0.8) = 4.302653 + 1.060660 standard errors
    assert found.smallest == pytest.approx(np.exp((4.302653 + 1.060660) * 0.1 / np.sqrt(3)))


def test_too_few_seeds_or_nothing_to_divide_give_none():
    """Two seeds have no interval over seeds; a seed whose share is 0 has no ratio."""
    assert over_seeds(np.array([0.1, 0.2])) is None
    assert over_seeds(np.array([0.1, 0.2, np.inf])) is None
    none = Pairs(np.zeros(3), np.ones(3), np.arange(3))
    assert paired([none] * MIN_SEEDS, Measure(), RNG) is None


def test_weighted_measures_are_those_of_the_repeated_sample():
    """A weight of 2 is a value that stands twice in the sample."""
    values, weights = np.array([5.0, 1.0, 3.0]), np.array([[2.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    assert Measure().weighted(values, weights).tolist() == pytest.approx([11 / 3, 3.0])
    assert Measure(50).weighted(values, weights).tolist() == [5.0, 3.0]


def covered(num_seeds, measure, *, shared, between=0.3, own=0.0, sims=600, sessions=40):
    """Share of intervals that hold the true ratio. ``between`` is the spread of a seed's ratio, ``own``
    that of a session's; a shared set of sessions is replayed in every seed.
    """
    rng = np.random.default_rng(num_seeds)
    hits = 0
    for _ in range(sims):
        seeds = []
        size, taste = rng.lognormal(0, 0.7, sessions), rng.normal(0, own, sessions)
        for seed in range(num_seeds):
            if not shared:
                size, taste = rng.lognormal(0, 0.7, sessions), rng.normal(0, own, sessions)
            effect = 0.7 + rng.normal(0, between) + taste
            slow = size * np.exp(effect) * rng.lognormal(0, 0.4, sessions)
            fast = size * rng.lognormal(0, 0.4, sessions)
            names = np.arange(sessions) + (0 if shared else seed * sessions)
            seeds.append(Pairs(slow, fast, names))
        found = paired(seeds, measure, rng)
        truth = np.exp(0.7 + (own**2 / 2 if measure.percentile is None else 0.0))
        hits += found.low <= truth <= found.high
    return hits / sims


@pytest.mark.parametrize("num_seeds", [3, 5, 10])
@pytest.mark.parametrize("measure", [Measure(), Measure(95)], ids=["mean", "p95"])
def test_ninety_five_percent_means_that(num_seeds, measure):
    """At 3, 5 and 10 seeds that differ by 0.3 (log ratio), 93 to 97 of 100 intervals hold the truth."""
    assert 0.93 <= covered(num_seeds, measure, shared=False) <= 0.97


def test_resampling_three_seeds_would_not_hold_it():
    """The percentile bootstrap over three seeds misses the truth in about a quarter of all cases."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(600):
        logs = rng.normal(0.7, 0.3, 3)
        means = logs[rng.integers(0, 3, (400, 3))].mean(axis=1)
        low, high = np.percentile(means, [2.5, 97.5])
        hits += low <= 0.7 <= high
    assert hits / 600 < 0.8


def test_sessions_that_all_seeds_replay_count_as_one_draw():
    """If sessions differ in what they gain and every seed replays the same ones, seeds agree with each
    other and all err alike: the interval covers the sessions too."""
    options = {"shared": True, "between": 0.05, "own": 0.4, "sims": 60}
    assert 0.9 <= covered(5, Measure(), **options) <= 1.0


def test_one_seed_covers_its_own_sessions():
    """A single seed's interval is about its sessions: without an effect of the seed it covers."""
    assert 0.9 <= covered(1, Measure(), shared=False, between=0.0, own=0.2, sims=60) <= 0.99
