"""Evenly spaced arrivals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from marsbench.arrival.base import ArrivalPlan, required_rate, scaled
from marsbench.core import Session


class Fixed:
    """One session every 1 / rate seconds."""

    summary = "one session every 1 / rate seconds"
    defaults: Mapping[str, float] = {}

    def plan(
        self,
        sessions: Sequence[Session],
        *,
        rate_per_s: float | None,
        rng: np.random.Generator,
        params: Mapping[str, float],
    ) -> ArrivalPlan:
        rate = required_rate("fixed", rate_per_s)
        return scaled([float(index) for index in range(len(sessions))], rate)


PROCESS = Fixed()
