"""Driver ``openhands``: the sessions of a cell are live agents around a real engine."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from marsbench.agents.cell import AgentCell, AgentOutcome
from marsbench.agents.decisions import FOLDER
from marsbench.agents.driver import run_agents
from marsbench.agents.front import Upstream
from marsbench.agents.keeping import keep_cell, report
from marsbench.agents.options import AgentOptions
from marsbench.agents.task import Task, TaskSource
from marsbench.agents.venv import find_python
from marsbench.core import PolicyContext
from marsbench.engine.base import CoreStats
from marsbench.engine.kind import Opening, Value
from marsbench.engine.live.engine import LiveEngine
from marsbench.engine.live.load import load_warning
from marsbench.engine.plan import CellOutcome, CellPlan, Engine, Json, Progress
from marsbench.engine.profile import load_profile
from marsbench.errors import ConfigError
from marsbench.events import FIELDS, Kind
from marsbench.records import EventLog
from marsbench.registry import load, table, unknown
from marsbench.system import System


class LiveAgents:
    """A ``drivers.base.Driver``."""

    def __init__(self, params: Mapping[str, Value]) -> None:
        """See ``options.AgentOptions`` for the parameters."""
        known = {entry.name: str(entry.type) for entry in dataclasses.fields(AgentOptions)}
        given: dict[str, Value] = {}
        for name, value in params.items():
            if name not in known:
                raise ConfigError(f"driver.params: {unknown('parameter', name, known)}")
            given[name] = _typed(name, value, known[name])
        self._options = AgentOptions(**given)  # type: ignore[arg-type]  # checked one by one

    @contextmanager
    def around(self, engine: Engine, opening: Opening) -> Iterator[Engine]:
        """See ``Driver.around``; the engine must be a server."""
        if not isinstance(engine, LiveEngine):
            raise ConfigError(
                "driver openhands needs a real server: use --engine vllm, or --engine openai with "
                "-c engine.params.url=http://HOST:PORT"
            )
        find_python(self._options.python, self._options.name)  # before anything slow: is it there?
        with tempfile.TemporaryDirectory(prefix="marsbench-link-") as folder:
            yield AgentsEngine(engine, self._options, opening, Path(folder))


class AgentsEngine:
    """An ``engine.plan.Engine`` whose sessions are agents."""

    def __init__(
        self, engine: LiveEngine, options: AgentOptions, opening: Opening, folder: Path
    ) -> None:
        self._engine = engine
        self._options = options
        self._opening = opening
        self._publish = f"ipc://{folder}/gateway"
        self._cells = 0
        self._seen: dict[str, Json] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """The engine belongs to whoever opened it."""

    def run(self, plan: CellPlan, log: EventLog, progress: Progress | None = None) -> CellOutcome:
        """See ``Engine.run``."""
        tasks = [task_of(session.session_id) for session in plan.sessions]
        served = self._engine.serve(plan, {"listen": self._publish})
        upstream = Upstream(
            url=served.url,
            model=served.model,
            kind=served.kind,
            api_key=served.api_key,
            publish=self._publish if served.hosts_policies else "",
        )
        system, context, params = _system(plan)
        self._cells += 1
        cell = AgentCell(
            session_ids=[session.session_id for session in plan.sessions],
            tasks=tasks,
            arrivals=plan.arrivals,
            system=system,
            context=context,
            upstream=upstream,
            params=params,
            salt=f"{self._opening.run_id}/{self._cells}",
        )
        outcome = run_agents(
            cell,
            self._options,
            log,
            keep=lambda found: self._keep(found, log, cell, _cell_name(plan, system)),
            progress=progress,
            note=self._opening.note,
        )
        self._seen = {"agents": dict(outcome.versions), "same_path": outcome.same_path}
        found = {**report(outcome, self._options), "folder": _cell_name(plan, system)}
        return CellOutcome(_stats(log), {"agents": found}, tuple(_doubts(outcome)))

    def described(self) -> Mapping[str, Json]:
        """The server, and the agents' packages."""
        return {**self._engine.described(), **self._seen}

    def _keep(self, outcome: AgentOutcome, log: EventLog, cell: AgentCell, name: str) -> None:
        logs = self._opening.log_folder
        if logs is None:
            return
        folder = logs.parent / FOLDER / name
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        keep_cell(folder, outcome, log, self._options, cell.system.name)


def task_of(session_id: str) -> Task:
    """The task behind a session's id: ``WORKLOAD/TASK``."""
    name = session_id.partition("/")[0]
    if name in table("WORKLOADS"):
        found = load("WORKLOADS", name)
        source = found() if isinstance(found, type) else found
        if isinstance(source, TaskSource):
            return source.task(session_id)
    raise ConfigError(
        f"session {session_id!r} is no task that an agent could work on; use --workload tasks"
    )


def _system(plan: CellPlan) -> tuple[System, PolicyContext, Mapping[str, float]]:
    """The plan's system as a gateway builds it: policies of its own, told of the same deployment."""
    identity = plan.identity
    if identity is None:
        raise ConfigError("a system that knows the future cannot serve live agents; leave it out")
    system = load("SYSTEMS", identity.system)
    assert isinstance(system, System)
    flags, params = plan.flags, dict(identity.params)
    context = dataclasses.replace(
        load_profile(identity.profile).policy_context(plan.tool_cores, identity.seed),
        num_blocks=flags.num_blocks,
        block_size=flags.block_size,
        max_num_batched_tokens=flags.max_num_batched_tokens,
        max_num_seqs=flags.max_num_seqs,
        params=params,
    )
    return system, context, params


def _cell_name(plan: CellPlan, system: System) -> str:
    """The same for the same cell of another run, and no other cell's."""
    told = repr((plan.identity, plan.arrivals, [s.session_id for s in plan.sessions], plan.flags))
    return f"{system.name}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def _stats(log: EventLog) -> CoreStats:
    """The counters that the log ends with; 0 where the server does not tell."""
    rows = log.to_numpy()
    last = rows[rows[:, 1] == Kind.RUN_END][-1, 5:].tolist()
    told = dict(zip(FIELDS[Kind.RUN_END], last, strict=False))
    return CoreStats(
        steps=max(0, told["steps"]),
        busy_ps=told["gpu_busy_ps"],
        preemptions=max(0, told["preemptions"]),
    )


def _doubts(outcome: AgentOutcome) -> Iterator[str]:
    for result in outcome.results:
        if result.reason:
            yield f"{result.session_id}: {result.reason}"
    for left in outcome.left_behind:
        yield f"left behind: {left}"
    if (busy := load_warning(outcome.others_cpu_share)) is not None:
        yield busy
    if outcome.wrong_lengths:
        yield f"{outcome.wrong_lengths} turns got another number of tokens than their scripts say"


def _typed(name: str, value: Value, kind: str) -> Value:
    wanted = {"str": str, "int": int, "float": float}[kind]
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise ConfigError(f"driver.params.{name}: expected {kind}, got {value!r}")
    return value
