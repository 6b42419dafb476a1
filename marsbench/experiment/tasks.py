"""What a worker process does: plain data in, one or several simulations, plain data out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from marsbench.arrival import ArrivalPlan
from marsbench.config import Value
from marsbench.core import Session
from marsbench.experiment.capacity import enough_sessions, saturated_rate
from marsbench.experiment.infinite_cache import infinite_cache_hit_rate
from marsbench.experiment.stream.target import CellStream, Target, cell_stream
from marsbench.experiment.tuning import mean_latency_s
from marsbench.experiment.wiring import (
    Outcome,
    Progress,
    RunCell,
    Setup,
    latencies_s,
    simulate,
    stock_system,
    system_named,
)
from marsbench.metrics import CellFacts, Cut, summarise
from marsbench.runfolder import RunFolder
from marsbench.tables import CellKey, build_tables


@dataclass(frozen=True, slots=True)
class RateTask:
    """The rate of stock vLLM in a closed loop of ``active`` sessions."""

    setup: Setup
    sessions: tuple[Session, ...]
    active: int
    run_cell: RunCell | None = None


@dataclass(frozen=True, slots=True)
class IdealTask:
    """Each session alone."""

    setup: Setup
    sessions: tuple[Session, ...]
    run_cell: RunCell | None = None


@dataclass(frozen=True, slots=True)
class TrialTask:
    """Mean session latency of one system with one set of parameters."""

    setup: Setup
    system: str
    params: Mapping[str, Value]
    sessions: tuple[Session, ...]
    arrivals: ArrivalPlan
    seed: int
    run_cell: RunCell | None = None


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
    labels: Mapping[str, bool]
    run_cell: RunCell | None = None
    progress: Progress | None = None
    measured: Callable[[], Mapping[str, Any]] | None = None
    """Asked after the run for what else belongs to the cell's entry."""
    stream: Target | None = None
    """Where its events are sent while they happen."""


def rate(task: RateTask) -> float:
    """Sessions per second of a saturated closed loop."""
    sessions = enough_sessions(task.sessions, task.active)
    plan = ArrivalPlan(times_ps=None, closed_loop=task.active)
    outcome = simulate(
        task.setup, stock_system(), {}, sessions, plan, seed=0, run_cell=task.run_cell
    )
    return saturated_rate(outcome.log, sessions)


def ideal(task: IdealTask) -> list[float | None]:
    """Latency of each session alone; None if it cannot run."""
    return [
        latencies_s(_alone(task.setup, session, task.run_cell).log, [session])[0]
        for session in task.sessions
    ]


def _alone(setup: Setup, session: Session, run_cell: RunCell | None) -> Outcome:
    plan = ArrivalPlan(times_ps=(0,), closed_loop=None)
    return simulate(setup, stock_system(), {}, [session], plan, seed=0, run_cell=run_cell)


def trial(task: TrialTask) -> float:
    """Mean session latency, seconds; infinite if nothing completed."""
    outcome = simulate(
        task.setup,
        system_named(task.system),
        task.params,
        task.sessions,
        task.arrivals,
        seed=task.seed,
        run_cell=task.run_cell,
    )
    return mean_latency_s(latencies_s(outcome.log, task.sessions))


def cell(task: CellTask) -> dict[str, Any]:
    """Simulate a cell and store it; its entry of ``summary.json``."""
    with cell_stream(task.stream, task.index, task.key) as stream:
        return _cell(task, stream)


def _cell(task: CellTask, stream: CellStream) -> dict[str, Any]:
    outcome, params, tried, wall_s = _best(task, stream)
    ideal_s = [_nan(task.ideal_s.get(session_id)) for session_id in outcome.log.session_ids]
    tables = build_tables(outcome.log, ideal_s=ideal_s)
    facts = CellFacts(
        wall_s=wall_s,
        theoretical_prefix_cache_hit_rate=infinite_cache_hit_rate(
            task.sessions, outcome.engine.block_size
        ),
    )
    entry = summarise(task.key, tables, facts, task.cut)
    entry |= task.labels
    if task.measured is not None:
        entry |= task.measured()
    if params:
        entry["params"] = dict(params)
    if len(tried) > 1:
        entry["tried"] = [[dict(candidate), latency_s] for candidate, latency_s in tried]
    task.folder.write_cell(task.index, entry, outcome.log, tables)
    stream.done(outcome.log)
    return entry


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
            run_cell=task.run_cell,
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
