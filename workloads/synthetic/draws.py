"""Lognormal mixtures drawn through normal scores, so that session effects keep the marginals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, model_validator
from scipy.special import ndtr

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SCORE_LIMIT = 5.0
"""Scores beyond ±5 (six draws in ten million) take the value at ±5."""
SCORE_STEP = 0.005


class Distribution(BaseModel):
    """A mixture of lognormals with an atom at zero, an offset and hard limits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mixture: tuple[tuple[float, float, float], ...]
    """(weight, μ, σ) of ln x; weights sum to one. σ = 0 is a constant."""
    p_empty: float = 0.0
    """Probability of exactly zero."""
    offset: float = 0.0
    """Added to every draw that is not empty."""
    low: float = 0.0
    high: float = float("inf")
    """Larger draws become this value: a cap, or the censor of a timeout."""

    @model_validator(mode="after")
    def _sound(self) -> Distribution:
        weights = [weight for weight, _, _ in self.mixture]
        if not weights or min(weights) <= 0 or abs(sum(weights) - 1) > 0.011:
            raise ValueError(f"mixture weights {weights} must be positive and sum to 1")
        if min(sigma for _, _, sigma in self.mixture) < 0:
            raise ValueError("sigma must not be negative")
        if not 0 <= self.p_empty < 1:
            raise ValueError(f"p_empty {self.p_empty} must lie in [0, 1)")
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


def constant(value: float) -> Distribution:
    """Return the distribution that always gives ``value`` (> 0)."""
    return Distribution(mixture=((1.0, float(np.log(value)), 0.0),))


class Quantiles:
    """Tables of quantiles of several distributions over a common grid of normal scores.

    A draw is ``table(score)`` with a standard normal score. Because only the score is random,
    a score that is part session effect, part own noise (still standard normal) leaves the
    distribution unchanged and correlates the draws of one session.
    """

    def __init__(self, distributions: Sequence[Distribution]) -> None:
        num = round(2 * SCORE_LIMIT / SCORE_STEP) + 1
        self._scores = np.linspace(-SCORE_LIMIT, SCORE_LIMIT, num)
        self._table = np.stack([self._values(d) for d in distributions])

    def __call__(self, rows: Ints, scores: Floats) -> Floats:
        """Return one value for each pair of a table's row and a score."""
        position = (np.clip(scores, -SCORE_LIMIT, SCORE_LIMIT) + SCORE_LIMIT) / SCORE_STEP
        cell = np.minimum(position.astype(np.int64), self._table.shape[1] - 2)
        share = position - cell
        below, above = self._table[rows, cell], self._table[rows, cell + 1]
        return np.asarray(below + share * (above - below), dtype=np.float64)

    def one(self, row: int, score: float) -> float:
        """Return a single value."""
        return float(self(np.array([row]), np.array([score]))[0])

    def _values(self, spec: Distribution) -> Floats:
        probability = ndtr(self._scores)
        filled = np.clip((probability - spec.p_empty) / (1 - spec.p_empty), 0.0, 1.0)
        values = np.exp(_log_quantiles(spec, filled)) + spec.offset
        values = np.clip(values, spec.low, spec.high)
        return np.where(probability <= spec.p_empty, 0.0, values)


def _log_quantiles(spec: Distribution, probability: Floats) -> Floats:
    """Return the inverse of the mixture's distribution function, in the logarithm of x."""
    weights, mus, sigmas = (np.array(column) for column in zip(*spec.mixture, strict=True))
    weights = weights / weights.sum()
    sigmas = np.maximum(sigmas, 1e-9)
    # Each component brings its own fine grid, so narrow ones are not stepped over.
    steps = np.linspace(-SCORE_LIMIT - 1, SCORE_LIMIT + 1, 1201)
    grid = np.unique(np.concatenate([mu + s * steps for mu, s in zip(mus, sigmas, strict=True)]))
    cumulative = (weights * ndtr((grid[:, None] - mus) / sigmas)).sum(axis=1)
    return np.asarray(np.interp(probability, cumulative, grid), dtype=np.float64)


def session_scores(noise: Floats, session: float, share: Floats | float) -> Floats:
    """Return standard normal scores of which a ``share`` of the variance belongs to the session."""
    return np.asarray(np.sqrt(share) * session + np.sqrt(1 - np.asarray(share)) * noise)
