"""Sessions that arrive in groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from marsbench.arrival.base import ArrivalPlan, required_rate, scaled
from marsbench.core import Session
from marsbench.errors import ConfigError


class Burst:
    """Groups of ``size`` sessions at once, evenly spaced so that the mean rate is as asked."""

    summary = "groups of `size` sessions at once, evenly spaced"
    defaults: Mapping[str, float] = {"size": 8}

    def plan(
        self,
        sessions: Sequence[Session],
        *,
        rate_per_s: float | None,
        rng: np.random.Generator,
        params: Mapping[str, float],
    ) -> ArrivalPlan:
        rate = required_rate("burst", rate_per_s)
        size = int(params["size"])
        if size < 1 or size != params["size"]:
            raise ConfigError(f"arrival 'burst': size {params['size']} must be a whole number >= 1")
        return scaled([float(index // size * size) for index in range(len(sessions))], rate)


PROCESS = Burst()
