"""What a worker process does: plain data in, one or several simulations, plain data out."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from marsbench.arrival import ArrivalPlan
from marsbench.config import Value
from marsbench.core import Session
from marsbench.engine import engine_kind
from marsbench.engine.plan import Engine, Progress
from marsbench.experiment.capacity import enough_sessions, saturated_rate
from marsbench.experiment.infinite_cache import infinite_cache_hit_rate
from marsbench.experiment.stream.target import CellStream, Target, cell_stream
from marsbench.experiment.tuning import mean_latency_s
from marsbench.experiment.wiring import (
    Outcome,
    Setup,
    latencies_s,
    simulate,
    stock_system,
    system_named,
)
from marsbench.metrics import CellFacts, Cut, summarise
from marsbench.runfolder import RunFolder
from marsbench.tables import CellKey, CellTables, build_tables


@dataclass(frozen=True, slots=True)
class RateTask:
    """The rate of stock vLLM in a closed loop of ``active`` sessions."""

    setup: Setup
    sessions: tuple[Session, ...]
    active: int
    engine: Engine | None = None


@dataclass(frozen=True, slots=True)
class IdealTask:
    """Asks for the latency that each session has when it runs alone."""

    setup: Setup
    sessions: tuple[Session, ...]
    engine: Engine | None = None


@dataclass(frozen=True, slots=True)
class TrialTask:
    """Session latencies of one system with one set of parameters."""

    setup: Setup
    system: str
    params: Mapping[str, Value]
    sessions: tuple[Session, ...]
    arrivals: ArrivalPlan
    seed: int
    engine: Engine | None = None


@dataclass(frozen=True, slots=True)
class CellTask:
    """One cell, simulated, measured and stored. With several candidates of parameters the one
    with the lowest mean latency is kept, with hindsight.
    """

    index: int
    key: CellKey
    folder: RunFolder
    setup: Setup
    system: str
    candidates: tuple[Mapping[str, Value], ...]
    sessions: tuple[Session, ...]
    arrivals: ArrivalPlan
    ideal_s: Mapping[str, float | None]
    cut: Cut
    labels: Mapping[str, bool | int]
    """Further entries of the cell in ``summary.json``."""
    engine: Engine | None = None
    progress: Progress | None = None
    stream: Target | None = None
    """Where the cell's events are sent while they happen."""


def rate(task: RateTask) -> float:
    """Return the sessions per second of a saturated closed loop."""
    sessions = enough_sessions(task.sessions, task.active)
    plan = ArrivalPlan(times_ps=None, closed_loop=task.active)
    outcome = simulate(task.setup, stock_system(), {}, sessions, plan, seed=0, engine=task.engine)
    return saturated_rate(outcome.log, sessions)


def ideal(task: IdealTask) -> list[float | None]:
    """Return the latency of each session alone, seconds; None if it cannot run."""
    return [
        latencies_s(_alone(task.setup, session, task.engine).log, [session])[0]
        for session in task.sessions
    ]


def _alone(setup: Setup, session: Session, engine: Engine | None) -> Outcome:
    plan = ArrivalPlan(times_ps=(0,), closed_loop=None)
    return simulate(setup, stock_system(), {}, [session], plan, seed=0, engine=engine)


def trial(task: TrialTask) -> float:
    """Return the mean session latency, seconds; infinite if nothing completed."""
    return mean_latency_s(trial_latencies(task))


def trial_latencies(task: TrialTask) -> list[float | None]:
    """Simulate the trial and return the latency of each session, seconds; None if it failed."""
    outcome = simulate(
        task.setup,
        system_named(task.system),
        task.params,
        task.sessions,
        task.arrivals,
        seed=task.seed,
        engine=task.engine,
    )
    return latencies_s(outcome.log, task.sessions)


def cell(task: CellTask) -> dict[str, Any]:
    """Simulate a cell, store it, and return its entry of ``summary.json``."""
    with cell_stream(task.stream, task.index, task.key) as stream:
        return _cell(task, stream)


def _cell(task: CellTask, stream: CellStream) -> dict[str, Any]:
    outcome, params, tried, wall_s = _best(task, stream)
    ideal_s = [_nan(task.ideal_s.get(session_id)) for session_id in outcome.log.session_ids]
    with_loads = task.key.host_kv_gib is not None
    tables = build_tables(
        outcome.log,
        ideal_s=ideal_s,
        with_loads=with_loads,
        with_replicas=task.key.replicas is not None,
    )
    facts = CellFacts(
        wall_s=wall_s,
        num_gpus=task.setup.replicas,
        theoretical_prefix_cache_hit_rate=infinite_cache_hit_rate(
            task.sessions, outcome.engine.block_size
        ),
    )
    entry = summarise(task.key, tables, facts, task.cut)
    entry |= {**task.labels, **outcome.ran.measured}
    if warnings := [*outcome.ran.warnings, *_doubts(task.setup, tables)]:
        entry["warnings"] = warnings
    if params:
        entry["params"] = dict(params)
    if len(tried) > 1:
        entry["tried"] = [[dict(candidate), latency_s] for candidate, latency_s in tried]
    task.folder.write_cell(task.index, entry, outcome.log, tables)
    stream.done(outcome.log)
    return entry


def _doubts(setup: Setup, tables: CellTables) -> list[str]:
    """What the cell's own numbers say against them; on a server the ideal is another engine's."""
    if engine_kind(setup.engine).has_steps:
        return []
    from marsbench.experiment.agreement import quicker_than_ideal  # it loads scipy

    found = quicker_than_ideal(tables.sessions["slowdown"].astype(float).tolist())
    return [] if found is None else [found]


def _best(
    task: CellTask, stream: CellStream
) -> tuple[Outcome, Mapping[str, Value], list[tuple[Mapping[str, Value], float]], float]:
    """Outcome, parameters and wall time of the best candidate, and what all of them gave."""
    system = system_named(task.system)
    kept: tuple[float, Outcome, Mapping[str, Value], float] | None = None
    tried: list[tuple[Mapping[str, Value], float]] = []
    for params in task.candidates:
        start = time.perf_counter()
        outcome = simulate(
            task.setup,
            system,
            params,
            task.sessions,
            task.arrivals,
            seed=task.key.seed,
            engine=task.engine,
            progress=task.progress,
            named=task.system,
            log=stream.new_log(),
        )
        stream.ended(outcome.log)
        wall_s = time.perf_counter() - start
        latency_s = mean_latency_s(latencies_s(outcome.log, task.sessions))
        tried.append((params, latency_s))
        if kept is None or latency_s < kept[0]:
            kept = (latency_s, outcome, params, wall_s)
    assert kept is not None
    return kept[1], kept[2], tried, kept[3]


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
