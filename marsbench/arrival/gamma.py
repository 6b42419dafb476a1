"""Bursty or regular arrivals: gamma-distributed gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from marsbench.arrival.base import ArrivalPlan, required_rate, scaled, since_first
from marsbench.core import Session
from marsbench.errors import ConfigError


class Gamma:
    """Gaps of mean 1 / rate and squared coefficient of variation 1 / shape.

    Shape 1 is Poisson; below 1 bursty, above 1 more regular.
    """

    summary = "gamma gaps; shape < 1 bursty, 1 Poisson, > 1 regular"
    defaults: Mapping[str, float] = {"shape": 0.25}

    def plan(
        self,
        sessions: Sequence[Session],
        *,
        rate_per_s: float | None,
        rng: np.random.Generator,
        params: Mapping[str, float],
    ) -> ArrivalPlan:
        rate = required_rate("gamma", rate_per_s)
        shape = params["shape"]
        if not shape > 0:
            raise ConfigError(f"arrival 'gamma': shape {shape} must be positive")
        gaps = rng.standard_gamma(shape, len(sessions)) / shape
        return scaled(since_first(gaps), rate)


PROCESS = Gamma()
