"""Arrival processes by name, and the random source that keeps comparisons paired."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from marsbench.arrival.base import ArrivalPlan, ArrivalProcess
from marsbench.core import Session
from marsbench.errors import ConfigError
from marsbench.registry import unknown

if TYPE_CHECKING:
    import numpy as np

ARRIVALS: dict[str, str] = {
    "fixed": "marsbench.arrival.fixed.PROCESS",
    "poisson": "marsbench.arrival.poisson.PROCESS",
    "gamma": "marsbench.arrival.gamma.PROCESS",
    "burst": "marsbench.arrival.burst.PROCESS",
    "trace": "marsbench.arrival.trace.PROCESS",
    "closed": "marsbench.arrival.closed.PROCESS",
}
"""Name -> arrival process (an instance)."""


def arrivals(
    name: str,
    sessions: Sequence[Session],
    *,
    rate_per_s: float | None,
    rng: np.random.Generator,
    params: Mapping[str, float] | None = None,
) -> ArrivalPlan:
    """When the sessions arrive, by the process called ``name``.

    Raises ConfigError for an unknown name or parameter, or a rate the process cannot use.
    """
    process = load_process(name)
    given = params or {}
    for parameter in given:
        if parameter not in process.defaults:
            raise unknown(f"parameter of arrival {name!r}", parameter, process.defaults)
    full = {**process.defaults, **given}
    return process.plan(sessions, rate_per_s=rate_per_s, rng=rng, params=full)


def load_process(name: str) -> ArrivalProcess:
    """The arrival process called ``name``, or at a dotted path."""
    path = ARRIVALS.get(name, name)
    if name not in ARRIVALS and "." not in name:
        raise unknown("arrival", name, ARRIVALS)
    module, _, attribute = path.rpartition(".")
    try:
        process: ArrivalProcess = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"cannot load arrival {name!r}: {error}") from error
    return process


def arrival_rng(seed: int, workload: str) -> np.random.Generator:
    """The random source of arrivals: the same for every system and every rate."""
    import numpy as np  # not for those who only list arrival processes

    digest = hashlib.sha256(workload.encode()).digest()
    source = np.random.SeedSequence([seed, int.from_bytes(digest[:8], "big")])
    return np.random.Generator(np.random.PCG64(source))


__all__ = [
    "ARRIVALS",
    "ArrivalPlan",
    "ArrivalProcess",
    "arrival_rng",
    "arrivals",
    "load_process",
]
