"""What each parameter of a system is worth: one at a time is moved from its default.

Sessions and arrivals are the same for every value, and come from the tuning split, on which no
result is reported. Ratios are of session latency, moved over default, so above 1 is slower.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby

import numpy as np
import pandas as pd

from marsbench.config import Value
from marsbench.core import Session
from marsbench.engine import engine_kind
from marsbench.errors import ConfigError
from marsbench.experiment import tasks
from marsbench.experiment.cells import Point, points
from marsbench.experiment.lab import Lab
from marsbench.experiment.wiring import Setup, check_start, opened, try_out
from marsbench.report.intervals import Floats, Measure, Pairs, paired
from marsbench.system import System
from marsbench.trace.workload import original_session

DEFAULT = "default"
"""What stands for the parameter in the row of the system as it is."""
TAIL = Measure(99)

Grid = Mapping[str, Sequence[Value]]


@dataclass(frozen=True, slots=True)
class Move:
    """One parameter at one value, or, without a value, the system as it is."""

    parameter: str
    value: Value | None

    @property
    def params(self) -> dict[str, Value]:
        """Parameters that are added to those the experiment gives the system."""
        return {} if self.value is None else {self.parameter: self.value}


@dataclass(frozen=True, slots=True)
class SeedLatencies:
    """Holds the session latencies of one seed, in order of its sessions; NaN for one that failed."""

    sessions: tuple[Session, ...]
    of: Mapping[Move, Floats]


@dataclass(frozen=True, slots=True)
class Effect:
    """What one value of one parameter does at one place of the grid, over all seeds."""

    workload: str
    profile: str
    tool_cores: int
    host_kv_gib: float
    load: float | None
    rate_per_s: float | None
    parameter: str
    value: Value | None
    mean_latency_s: float | None
    """Mean over seeds of the mean over sessions that completed at this value and at the default."""
    ratio: float | None
    """Mean latency at this value over that at the default, geometric mean over seeds."""
    low: float | None
    high: float | None
    """The 95 % interval of ``ratio``."""
    p99_ratio: float | None
    """P99 latency at this value over that at the default, geometric mean over seeds."""
    pairs: int
    """How many sessions completed at this value and at the default, over all seeds."""
    unpaired: int
    """How many sessions are left out because they failed at one of the two or at both."""


def grid_of(system: System, given: Grid) -> dict[str, Sequence[Value]]:
    """Return the values to try: the system's own grid, with those given in place of it or beside it.

    Raises ConfigError if there are none.
    """
    grid = {**system.tunable, **given}
    if not grid:
        raise ConfigError(
            f"system {system.name!r} has no parameter grid; give one with --param NAME=VALUE,VALUE"
        )
    return grid


def named_system(lab: Lab) -> System:
    """Return the one system of the experiment.

    Raises ConfigError for several, and for tuned variants, which choose their own parameters.
    """
    if len(lab.config.system) != 1:
        names = ", ".join(lab.config.system)
        raise ConfigError(f"sensitivity takes one system, not {len(lab.config.system)}: {names}")
    chosen, system = next(iter(lab.systems.values()))
    if chosen.variant:
        raise ConfigError(
            f"system {chosen.name!r} chooses its parameters itself: give {chosen.base!r}, whose "
            "parameters are moved from their defaults"
        )
    return system


def check(lab: Lab, grid: Grid) -> None:
    """Raise for every name, flag and value that is wrong, before anything is measured."""
    config, system = lab.config, named_system(lab)
    if not engine_kind(config.engine.name).has_steps:
        raise ConfigError(
            f"sensitivity runs in virtual time and engine {config.engine.name} is a server: use sim"
        )
    lab.check()
    base = config.params.get(config.system[0], {})
    for profile in config.profile:
        setup = Setup.of(config, profile, config.tool_cores[0], max(config.host_kv_gib))
        with opened(setup, lab.engine) as engine:
            for move in _moves(grid)[1:]:
                params = {**base, **move.params}
                check_start(setup, system, params)
                try_out(setup, system, params, engine=engine)


def sensitivity(lab: Lab, grid: Grid) -> Iterator[list[Effect]]:
    """Yield the effects at each workload, profile, tool pool, host memory and load: first that of
    the default, then that of each value of each parameter.
    """
    moves = _moves(grid)
    for place, repeats in groupby(points(lab.config), lambda point: replace(point, seed=0)):
        yield effects_of(place, [_measure(lab, point, moves) for point in repeats])


def effects_of(place: Point, seeds: Sequence[SeedLatencies]) -> list[Effect]:
    """Return the effects at one place from what its seeds gave, whose first move is the default."""
    ids = [original_session(s.session_id) for seed in seeds for s in seed.sessions]
    numbers = pd.factorize(np.array(ids, dtype=object))[0].astype(np.int64)
    ends = np.cumsum([len(seed.sessions) for seed in seeds])[:-1]
    originals = np.split(numbers, ends)
    default = next(iter(seeds[0].of))
    found = []
    for move in seeds[0].of:
        pairs = []
        for seed, own in zip(seeds, originals, strict=True):
            moved, base = seed.of[move], seed.of[default]
            known = ~np.isnan(moved) & ~np.isnan(base)
            if known.any():
                pairs.append(Pairs(moved[known], base[known], own[known]))
        found.append(_row(place, move, pairs, num_sessions=len(ids)))
    return found


def frame(effects: Sequence[Effect]) -> pd.DataFrame:
    """Return effects as a table with a row for each and a column for each field."""
    return pd.DataFrame([asdict(effect) for effect in effects])


def _moves(grid: Grid) -> list[Move]:
    moved = [Move(name, value) for name, values in grid.items() for value in values]
    return [Move(DEFAULT, None), *dict.fromkeys(moved)]


def _measure(lab: Lab, point: Point, moves: Sequence[Move]) -> SeedLatencies:
    config, sessions = lab.config, lab.cell_sessions(point)
    name = config.system[0]
    base, arrivals = config.params.get(name, {}), lab.point_arrivals(point)
    setup = Setup.of(config, point.profile, point.tool_cores, point.host_kv_gib)
    lab.reporter.stage(f"{name} {point.describe()}: {len(moves)} simulations")
    with opened(setup, lab.engine) as engine:
        work = [
            tasks.TrialTask(
                setup, name, {**base, **move.params}, sessions, arrivals, point.seed, engine
            )
            for move in moves
        ]
        found = lab.pool.map(tasks.trial_latencies, work)
    latencies = [np.array(one, dtype=float) for one in found]  # None becomes NaN
    return SeedLatencies(sessions, dict(zip(moves, latencies, strict=True)))


def _row(place: Point, move: Move, pairs: Sequence[Pairs], *, num_sessions: int) -> Effect:
    mean = paired(pairs, Measure(), np.random.default_rng(0)) if pairs else None
    tail = paired(pairs, TAIL, np.random.default_rng(0)) if pairs else None
    num_pairs = sum(len(seed.better) for seed in pairs)
    return Effect(
        workload=place.workload,
        profile=place.profile,
        tool_cores=place.tool_cores,
        host_kv_gib=place.host_kv_gib,
        load=place.load,
        rate_per_s=place.rate_per_s,
        parameter=move.parameter,
        value=move.value,
        mean_latency_s=float(np.mean([seed.better.mean() for seed in pairs])) if pairs else None,
        ratio=mean.value if mean else None,
        low=mean.low if mean else None,
        high=mean.high if mean else None,
        p99_ratio=tail.value if tail else None,
        pairs=num_pairs,
        unpaired=num_sessions - num_pairs,
    )
