"""Arrivals at the recorded times of a trace, as they were or scaled to a rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from marsbench.arrival.base import ArrivalPlan, required_rate, scaled
from marsbench.core import Session
from marsbench.errors import ConfigError


class Trace:
    """Recorded arrival times from the earliest one on, without a rate; else with its rate.

    The rate of a recording is (sessions - 1) / (last - first).
    """

    summary = "recorded times, scaled to the rate if one is given"
    defaults: Mapping[str, float] = {}

    def plan(
        self,
        sessions: Sequence[Session],
        *,
        rate_per_s: float | None,
        rng: np.random.Generator,
        params: Mapping[str, float],
    ) -> ArrivalPlan:
        times = _recorded(sessions)
        if rate_per_s is None:
            return scaled(times, 1.0)
        rate = required_rate("trace", rate_per_s)
        span = max(times, default=0.0)
        if span <= 0:
            raise ConfigError(
                "arrival 'trace': all sessions arrive at once, so no rate can be set: "
                "leave --rate out, or use 'poisson'"
            )
        unit_rate = (len(times) - 1) / span
        return scaled([time * unit_rate for time in times], rate)


def _recorded(sessions: Sequence[Session]) -> list[float]:
    """Arrival times since the earliest one."""
    times: list[float] = []
    for session in sessions:
        if session.arrival_s is None:
            raise ConfigError(
                f"arrival 'trace': session {session.session_id!r} has no recorded arrival: "
                "use 'poisson' or 'fixed' with a rate"
            )
        times.append(session.arrival_s)
    first = min(times, default=0.0)
    return [time - first for time in times]


PROCESS = Trace()
