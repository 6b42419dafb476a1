"""A closed loop: a new session arrives when one ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from marsbench.arrival.base import ArrivalPlan
from marsbench.core import Session
from marsbench.errors import ConfigError


class Closed:
    """Keeps ``n`` sessions in the system; the load follows what the system completes."""

    summary = "keeps `n` sessions in the system"
    defaults: Mapping[str, float] = {"n": 8}

    def plan(
        self,
        sessions: Sequence[Session],
        *,
        rate_per_s: float | None,
        rng: np.random.Generator,
        params: Mapping[str, float],
    ) -> ArrivalPlan:
        if rate_per_s is not None:
            raise ConfigError("arrival 'closed' has no rate: leave --rate out, or use 'poisson'")
        n = int(params["n"])
        if n < 1 or n != params["n"]:
            raise ConfigError(f"arrival 'closed': n {params['n']} must be a whole number >= 1")
        return ArrivalPlan(times_ps=None, closed_loop=n)


PROCESS = Closed()
