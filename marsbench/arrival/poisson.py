"""Memoryless arrivals: independent exponential gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from marsbench.arrival.base import ArrivalPlan, required_rate, scaled, since_first
from marsbench.core import Session


class Poisson:
    """Open-loop arrivals of independent users."""

    summary = "independent exponential gaps"
    defaults: Mapping[str, float] = {}

    def plan(
        self,
        sessions: Sequence[Session],
        *,
        rate_per_s: float | None,
        rng: np.random.Generator,
        params: Mapping[str, float],
    ) -> ArrivalPlan:
        rate = required_rate("poisson", rate_per_s)
        return scaled(since_first(rng.standard_exponential(len(sessions))), rate)


PROCESS = Poisson()
