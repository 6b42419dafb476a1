"""Parameters of ``NAME-tuned`` (from the tuning split) and ``NAME-best`` (with hindsight)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from marsbench.config import TUNED
from marsbench.errors import ConfigError
from marsbench.experiment.wiring import system_named
from marsbench.registry import table, unknown
from marsbench.system import System

BEST = "-best"
MOST_STEPS = 24
"""A grid is widened so many times at most: a best value that keeps moving out has no optimum."""

Params = dict[str, float | str]


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
    """Return the system behind a name, and how its parameters are chosen.

    NAME-tuned and NAME-best exist for each with a parameter grid, and NAME@ROUTER for each router.
    """
    plain, at, router = name.partition("@")
    names = table("SYSTEMS")
    for suffix in (TUNED, BEST):
        base = plain.removesuffix(suffix)
        if plain in names or base == plain or (base not in names and "." not in base):
            continue
        system = system_named(base + at + router)
        if not system.tunable:
            raise ConfigError(
                f"system {name!r}: {base!r} has no parameters to tune; run {base!r} itself"
            )
        return Chosen(name, base + at + router, suffix.removeprefix("-")), system
    if plain not in names and "." not in plain:
        raise unknown("system", plain, [*names, *tunable_names()])
    return Chosen(name, name), system_named(name)


def tunable_names() -> list[str]:
    """Return the NAME-tuned and NAME-best names that exist besides the registered ones."""
    names = table("SYSTEMS")
    derived = [
        name + suffix for name in names if system_named(name).tunable for suffix in (TUNED, BEST)
    ]
    return [name for name in derived if name not in names]


def candidates(system: System) -> list[Params]:
    """Return every combination of a system's grid, in order of the grid."""
    keys = list(system.tunable)
    values = itertools.product(*system.tunable.values())
    return [dict(zip(keys, combination, strict=True)) for combination in values]


def search(
    system: System, measure: Callable[[list[Params]], list[float]]
) -> list[tuple[Params, float]]:
    """Measure the mean latencies of the grid's candidates, and of others for as long as the best is
    on its edge.
    """
    wanted = candidates(system)
    tried = list(zip(wanted, measure(wanted), strict=True))
    for _ in range(MOST_STEPS):
        wanted = beyond(system, tried)
        if not wanted:
            break
        tried += zip(wanted, measure(wanted), strict=True)
    return tried


def beyond(system: System, tried: Sequence[tuple[Params, float]]) -> list[Params]:
    """Return the best candidate so far, moved one step further out along each parameter (and along
    all of them) of which it has the least or the greatest value tried, unless that is the
    parameter's limit.
    """
    best = pick(tried)
    moves: Params = {}
    for name, grid in system.tunable.items():
        if any(isinstance(value, str) for value in grid):
            continue  # after a name comes no other
        low, high = system.limits.get(name, (0.0, math.inf))
        chosen = best[name]
        assert not isinstance(chosen, str), "numbers have numbers beside them"
        found = (params[name] for params, _ in tried)
        values = sorted({value for value in found if not isinstance(value, str)})
        if len(values) > 1 and chosen == values[0] > low:
            moves[name] = max(_next(values[1], values[0]), low)
        elif len(values) > 1 and chosen == values[-1] < high:
            moves[name] = min(_next(values[-2], values[-1]), high)
    moved = [{**best, name: value} for name, value in moves.items()]
    return [*moved, {**best, **moves}] if len(moved) > 1 else moved


def _next(inner: float, edge: float) -> float:
    """The value that follows ``edge`` as that follows ``inner``: in proportion, or from 0 by as much."""
    value = edge * edge / inner if inner > 0 and edge > 0 else 2 * edge - inner
    if isinstance(inner, int) and isinstance(edge, int):
        return math.ceil(value) if edge > inner else math.floor(value)
    return value


def pick(tried: Sequence[tuple[Params, float]]) -> Params:
    """Return the parameters with the lowest mean session latency; the first of equals."""
    params, latency_s = min(tried, key=lambda pair: pair[1])
    if math.isinf(latency_s):
        raise ConfigError("tuning: no session of the tuning split completes with any parameters")
    return params


def mean_latency_s(latencies_s: Sequence[float | None]) -> float:
    """Return the mean over completed sessions; infinite if none completed."""
    done = [latency for latency in latencies_s if latency is not None]
    return sum(done) / len(done) if done else math.inf
