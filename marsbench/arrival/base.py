"""Protocol of arrival processes: when each session of a workload enters the system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from marsbench.core import Session, to_ps
from marsbench.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class ArrivalPlan:
    """Either arrival times, or how many sessions a closed loop keeps in the system."""

    times_ps: tuple[int, ...] | None
    """Arrival of each session, in the order of the sessions given (not necessarily sorted)."""
    closed_loop: int | None = None
    """A new session arrives when one ends; so many are in the system at once."""

    def __post_init__(self) -> None:
        assert (self.times_ps is None) != (self.closed_loop is None), "times or a closed loop"


class ArrivalProcess(Protocol):
    """Decides when sessions arrive. Sees neither the system under test nor the clock."""

    summary: str
    defaults: Mapping[str, float]
    """Accepted parameters and their defaults."""

    def plan(
        self,
        sessions: Sequence[Session],
        *,
        rate_per_s: float | None,
        rng: np.random.Generator,
        params: Mapping[str, float],
    ) -> ArrivalPlan:
        """Called once per (workload, rate, seed) with all parameters filled in.

        Randomness must be drawn at unit rate and then scaled, so that a higher rate compresses
        the same arrivals. The first session arrives at 0 (but see ``trace``).
        """
        ...


def scaled(unit_times: Sequence[float], rate_per_s: float) -> ArrivalPlan:
    """Times of a process of mean rate 1/s, run at ``rate_per_s``."""
    return ArrivalPlan(tuple(to_ps(time / rate_per_s) for time in unit_times))


def since_first(gaps: npt.NDArray[np.float64]) -> list[float]:
    """Arrival times if each session came one gap after the one before, counted from the first."""
    times: list[float] = (gaps.cumsum() - gaps[:1].sum()).tolist()
    return times


def required_rate(name: str, rate_per_s: float | None) -> float:
    """The rate, or one line that says how to give it."""
    if rate_per_s is None:
        raise ConfigError(f"arrival {name!r} needs a rate: give --rate, or use 'closed' or 'trace'")
    if not rate_per_s > 0 or rate_per_s == float("inf"):
        raise ConfigError(f"arrival {name!r}: rate {rate_per_s} must be a positive number")
    return rate_per_s
