"""95 % intervals of paired ratios: Student's t over seeds on the logarithm of each seed's ratio.

One implementation for ``marsbench compare``, ``marsbench check`` and the claims. Seeds are the
independent repetitions of an experiment: within a seed, sessions wait for each other, so that one
long queue moves them all, and resampling sessions alone (or resampling three seeds) gives intervals
that are far too narrow. The variation of a seed's ratio over seeds contains the noise of the
sessions that were drawn for it, whatever the statistic is.

Where seeds replay the same recorded sessions, that noise does not show as variation over seeds.
Then the two ways in which observations hang together, by seed and by session, are added up
(Cameron, Gelbach and Miller 2011): V = V(seeds) + V(sessions) - V(both), the last two from
resampling original sessions jointly over all seeds, and in each seed on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CONFIDENCE = 0.95
POWER = 0.8
"""Chance of seeing a true effect of the minimum detectable size."""
MIN_SEEDS = 3
"""With fewer, Student's t is 12.7 standard errors wide: sessions are resampled instead, and the
reader is told that the interval does not cover variation between seeds."""
RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Ratio:
    """A paired ratio, geometric mean over seeds, above 1 = better, with its interval."""

    value: float
    low: float
    high: float
    smallest: float
    """The smallest improvement, as a ratio above 1, that would be seen as one in 80 of 100 runs."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """One seed's sessions as both sides ran them."""

    better: Floats
    """The side whose number goes up when the ratio goes up (values, one a session)."""
    worse: Floats
    originals: Ints
    """Which recorded session each one replays; equal in all seeds that replay it."""


@dataclass(frozen=True, slots=True)
class Measure:
    """Mean (``percentile`` None) or a percentile of a sample, with or without weights."""

    percentile: float | None = None

    def of(self, values: Floats) -> float:
        """Of a whole sample; percentiles by linear interpolation."""
        if self.percentile is None:
            return float(np.mean(values))
        return float(np.percentile(values, self.percentile))

    def weighted(self, values: Floats, weights: Floats) -> Floats:
        """Of each row of ``weights``, one column a value."""
        if self.percentile is None:
            return np.asarray(weights @ values / weights.sum(axis=1))
        order = np.argsort(values, kind="stable")
        reached = np.cumsum(weights[:, order], axis=1)
        at = (reached >= self.percentile / 100 * reached[:, -1:]).argmax(axis=1)
        return np.asarray(values[order][at])


def over_seeds(logs: Floats) -> Ratio | None:
    """The ratio from the logarithm of each seed's ratio; None if one is not finite or if there are
    fewer seeds than MIN_SEEDS.
    """
    if len(logs) < MIN_SEEDS or not np.isfinite(logs).all():
        return None
    return _ratio(float(np.mean(logs)), _seed_variance(logs), len(logs) - 1)


def unpaired(top: Floats, bottom: Floats) -> Ratio | None:
    """The ratio of two independent samples of logarithms, one value a seed (Welch); None below
    MIN_SEEDS on a side.
    """
    if min(len(top), len(bottom)) < MIN_SEEDS:
        return None
    parts = [(_seed_variance(logs), len(logs) - 1) for logs in (top, bottom)]
    variance = sum(part for part, _ in parts)
    spread = sum(part**2 / freedom for part, freedom in parts)
    freedom = variance**2 / spread if spread else float(parts[0][1])
    return _ratio(float(top.mean() - bottom.mean()), variance, freedom)


def paired(seeds: Sequence[Pairs], measure: Measure, rng: np.random.Generator) -> Ratio | None:
    """The ratio of a measure, ``better`` over ``worse``, from the sessions of every seed; None where
    a side of a seed has none to show (a share of 0).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.array([np.log(measure.of(s.better)) - np.log(measure.of(s.worse)) for s in seeds])
    if not np.isfinite(logs).all():
        return None
    mean = float(logs.mean())
    if len(seeds) < MIN_SEEDS:
        apart, num_drawn = _session_variance(seeds, measure, rng, jointly=False)
        return _ratio(mean, apart, num_drawn - 1)
    seed_variance, freedom = _seed_variance(logs), float(len(seeds) - 1)
    if not _share_sessions(seeds):
        return _ratio(mean, seed_variance, freedom)
    apart, _ = _session_variance(seeds, measure, rng, jointly=False)
    together, num_drawn = _session_variance(seeds, measure, rng, jointly=True)
    variance = seed_variance + max(together - apart, 0.0)
    parts = seed_variance**2 / freedom + together**2 / max(num_drawn - 1, 1)
    whole = (seed_variance + together) ** 2
    return _ratio(mean, variance, max(whole / parts, freedom) if parts else freedom)


def _seed_variance(logs: Floats) -> float:
    return float(np.var(logs, ddof=1)) / len(logs)


def _share_sessions(seeds: Sequence[Pairs]) -> bool:
    kinds = [np.unique(seed.originals) for seed in seeds]
    return len(np.unique(np.concatenate(kinds))) < sum(map(len, kinds))


def _session_variance(
    seeds: Sequence[Pairs], measure: Measure, rng: np.random.Generator, *, jointly: bool
) -> tuple[float, int]:
    """Variance of the mean log ratio when original sessions are drawn again with replacement, each
    with all its repeats, and how many there are to draw from (the fewest of a seed).
    """
    num_originals = 1 + max(int(seed.originals.max()) for seed in seeds)
    total = np.zeros(RESAMPLES)
    counted = np.full(RESAMPLES, float(len(seeds)))
    everyone = np.unique(np.concatenate([seed.originals for seed in seeds]))
    shared = _counts(everyone, num_originals, rng)
    for seed in seeds:
        own = np.unique(seed.originals)
        counts = shared if jointly else _counts(own, num_originals, rng)
        weights = counts[:, seed.originals]
        drawn = weights.sum(axis=1) > 0
        weights[~drawn] = 1.0
        with np.errstate(divide="ignore", invalid="ignore"):
            top, bottom = (measure.weighted(side, weights) for side in (seed.better, seed.worse))
            logs = np.log(top) - np.log(bottom)
        total += np.where(drawn, logs, 0.0)
        counted -= ~drawn
    means = total / np.maximum(counted, 1.0)
    means = means[np.isfinite(means)]
    fewest = min(len(np.unique(seed.originals)) for seed in seeds)
    variance = float(np.var(means, ddof=1)) if len(means) > 1 else 0.0
    return variance, len(everyone) if jointly else fewest


def _counts(originals: Ints, num_originals: int, rng: np.random.Generator) -> Floats:
    """How often each original is drawn, a row a resample."""
    counts = np.zeros((RESAMPLES, num_originals))
    share = np.full(len(originals), 1 / len(originals))
    counts[:, originals] = rng.multinomial(len(originals), share, size=RESAMPLES)
    return counts


def _ratio(mean_log: float, variance: float, freedom: float) -> Ratio:
    error, freedom = float(np.sqrt(variance)), max(freedom, 1.0)
    reach = float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom))
    half = reach * error
    smallest = (reach + float(stats.t.ppf(POWER, freedom))) * error
    low, value, high = np.exp([mean_log - half, mean_log, mean_log + half]).tolist()
    return Ratio(value, low, high, float(np.exp(smallest)))
