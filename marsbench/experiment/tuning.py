"""Parameters of ``NAME-tuned`` (from the tuning split) and ``NAME-best`` (with hindsight)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from marsbench.errors import ConfigError
from marsbench.experiment.wiring import system_named
from marsbench.registry import table, unknown
from marsbench.system import System

TUNED = "-tuned"
BEST = "-best"

Params = dict[str, float]


@dataclass(frozen=True, slots=True)
class Chosen:
    """A system name of an experiment, resolved."""

    name: str
    """As given."""
    base: str
    """The registered name or dotted path."""
    variant: str = ""
    """"", "tuned" or "best"."""


def resolve(name: str) -> tuple[Chosen, System]:
    """The system behind a name; NAME-tuned and NAME-best exist for each with a parameter grid."""
    names = table("SYSTEMS")
    for suffix in (TUNED, BEST):
        base = name.removesuffix(suffix)
        if name in names or base == name or (base not in names and "." not in base):
            continue
        system = system_named(base)
        if not system.tunable:
            raise ConfigError(
                f"system {name!r}: {base!r} has no parameters to tune; run {base!r} itself"
            )
        return Chosen(name, base, suffix.removeprefix("-")), system
    if name not in names and "." not in name:
        raise unknown("system", name, [*names, *tunable_names()])
    return Chosen(name, name), system_named(name)


def tunable_names() -> list[str]:
    """The NAME-tuned and NAME-best names that exist besides the registered ones."""
    names = table("SYSTEMS")
    derived = [
        name + suffix for name in names if system_named(name).tunable for suffix in (TUNED, BEST)
    ]
    return [name for name in derived if name not in names]


def candidates(system: System) -> list[Params]:
    """Every combination of a system's grid, in order of the grid."""
    keys = list(system.tunable)
    values = itertools.product(*system.tunable.values())
    return [dict(zip(keys, combination, strict=True)) for combination in values]


def pick(tried: Sequence[tuple[Params, float]]) -> Params:
    """The parameters with the lowest mean session latency; the first of equals."""
    params, latency_s = min(tried, key=lambda pair: pair[1])
    if math.isinf(latency_s):
        raise ConfigError("tuning: no session of the tuning split completes with any parameters")
    return params


def mean_latency_s(latencies_s: Sequence[float | None]) -> float:
    """Mean over completed sessions; infinite if none completed."""
    done = [latency for latency in latencies_s if latency is not None]
    return sum(done) / len(done) if done else math.inf


def grid_size(tunable: Mapping[str, Sequence[float]]) -> int:
    """How many combinations a grid has."""
    return math.prod(len(values) for values in tunable.values())
