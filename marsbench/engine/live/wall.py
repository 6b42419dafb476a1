"""Cells on the wall clock: the same replay as in virtual time, around a real server.

The loop is open: arrival times are fixed before the run and latency counts from them, so a client
or server that falls behind cannot make its own latencies look better (no coordinated omission).
What the client adds is on record: GPU_SUBMIT is when a turn was really sent, ``send_error_s`` how
much later than it could have been.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from marsbench.core import PS_PER_S
from marsbench.engine.agenda import FOREVER
from marsbench.engine.base import CoreStats, Request
from marsbench.engine.life import Life, listeners_of
from marsbench.engine.live.client import Client, Completion
from marsbench.engine.live.clock import Clock
from marsbench.engine.live.core import LiveCore
from marsbench.engine.live.metrics import ServerMetrics
from marsbench.engine.live.prompts import Prompts, Vocabulary
from marsbench.engine.live.tools import ModelledTools, RunningTools
from marsbench.engine.live.warmup import warm_up
from marsbench.engine.plan import CellPlan, Progress
from marsbench.engine.replay import Replay
from marsbench.errors import EngineError
from marsbench.events import Status
from marsbench.records import ROW, EventLog
from marsbench.system import Policies
from marsbench.tools.executor import ToolExecutor

if TYPE_CHECKING:
    from marsbench.engine.link.outside import OutsideLink


@dataclass(frozen=True, slots=True)
class Site:
    """The server that a cell runs against, and how it is used."""

    connect: Callable[[Clock], Client]
    """Makes its client."""
    vocabulary: Vocabulary | None = None
    """Ids that prompts are made of."""
    salt: str = ""
    """Cells of different salt share no content in the server's cache."""
    warm_up_turns: int = 0
    """Turns that are answered before time begins."""
    hosts_policies: bool = False
    """A scheduler in the server runs the system's engine-side policies."""
    link: OutsideLink | None = None
    """Joins those policies to the ones that run here."""
    check: Callable[[int], None] = lambda _failed_turns: None
    """Called when turns have failed, with how many so far; raises EngineError if the server is gone."""


@dataclass(slots=True)
class LiveOutcome:
    """What a live run gives beside its event log."""

    stats: CoreStats
    completions: list[tuple[Request, Completion]]
    """Every turn with the client's record of it, in order of end."""
    server: ServerMetrics
    """Counters of the server over the run."""
    send_error_s: list[float] = field(default_factory=list)
    """For each turn: how long after it could be sent its last byte went out, seconds."""
    tool_cpu_s: float = 0.0
    """CPU time of the tool calls that have ended."""
    stalls_s: list[float] = field(default_factory=list)
    """How long each time the server was silent with turns to run, seconds."""


def run_live(
    plan: CellPlan, log: EventLog, site: Site, progress: Progress | None = None
) -> LiveOutcome:
    """Run a cell against a server to its end and fill ``log``. The call blocks and needs no event
    loop.

    Raises EngineError for a system that the server cannot run, and if a warm-up turn fails.
    """
    refuse_engine_policies(plan.policies, hosted=site.hosts_policies)
    return asyncio.run(_run(plan, log, site, progress))


async def _run(plan: CellPlan, log: EventLog, site: Site, progress: Progress | None) -> LiveOutcome:
    clock, woken = Clock(), asyncio.Event()
    life = Life(log, listeners_of(plan.policies.all()))
    tools: RunningTools | ModelledTools
    if isinstance(plan.tools, ToolExecutor):
        tools = RunningTools(plan.tools, clock, woken.set)
    else:
        tools = ModelledTools(plan.tools)
    prompts = Prompts(site.vocabulary, salt=site.salt)
    async with site.connect(clock) as client, _executor_open(plan.tools):
        core = LiveCore(plan.flags, life, client, prompts=prompts, wake=woken.set)
        await warm_up(client, core.config, turns=site.warm_up_turns, salt=site.salt)
        await core.open()  # sizes: the replay's telemetry takes them as they are
        replay = Replay(
            plan, life, core, tools, progress, stamp=lambda due_ps: max(due_ps, clock.now_ps())
        )
        replay.number_prefixes()
        beside = _Beside(core, tools, site.link)
        gc.collect()
        gc.freeze()  # what exists already is not looked through again while requests must go out
        try:
            clock.restart()
            beside.start(replay, clock, site.salt)
            await _Loop(replay, core, tools, clock, woken, site.check).run()
            await beside.last_words()
        finally:
            gc.unfreeze()
            await beside.stop()
    replay.end(clock.now_ps())
    _sort_by_time(log)
    return LiveOutcome(
        core.stats,
        core.completions,
        core.gathered,
        _send_errors(core),
        tools.busy_core_ps(clock.now_ps()) / PS_PER_S,
        core.stalls_s,
    )


def refuse_engine_policies(policies: Policies, *, hosted: bool) -> None:
    """Raise EngineError for a system that a stock server cannot run."""
    if not (policies.stock_engine() or hosted):
        raise EngineError(
            "this system schedules inside the engine, which a stock server does not: start the "
            "server with the system's scheduler class, or use engine sim or vllm-core"
        )


@asynccontextmanager
async def _executor_open(tools: object) -> AsyncIterator[None]:
    """Open the tools for a run; those that really run are closed in any case."""
    if not isinstance(tools, ToolExecutor):
        yield
        return
    try:
        await tools.open()
        yield
    finally:
        await tools.close()


class _Beside:
    """The tasks that go on beside the loop: polling the server, and the link to its scheduler."""

    def __init__(
        self, core: LiveCore, tools: RunningTools | ModelledTools, link: OutsideLink | None
    ) -> None:
        self._core = core
        self._tools = tools
        self._link = link
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, replay: Replay, clock: Clock, salt: str) -> None:
        """Begin both; the clock has just been set to zero."""
        self._core.begin()
        self._tasks.append(asyncio.create_task(self._core.keep_polling()))
        if self._link is not None:
            self._link.begin(salt=salt, states=replay.states, ear=self._core, now_ps=clock.now_ps)
            replay.life.listeners.append(self._link.event)
            self._tasks.append(asyncio.create_task(self._link.keep_up()))

    async def last_words(self) -> None:
        """Take in what the server still has to say about the run."""
        await self._core.poll()
        if self._link is not None:
            self._link.pump()

    async def stop(self) -> None:
        """End both, so that nothing is left running."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._core.close()
        if isinstance(self._tools, RunningTools):
            await self._tools.cancel()


class _Loop:
    """Handles what is due, and sleeps until something is or somebody wakes it."""

    def __init__(
        self,
        replay: Replay,
        core: LiveCore,
        tools: RunningTools | ModelledTools,
        clock: Clock,
        woken: asyncio.Event,
        check: Callable[[int], None],
    ) -> None:
        """``woken`` is set whenever a server or a tool has answered; ``check`` is described at
        ``Site``.
        """
        self._replay = replay
        self._core = core
        self._tools = tools
        self._clock = clock
        self._woken = woken
        self._check = check
        self._failed_turns = 0

    async def run(self) -> None:
        """Drive the run until all sessions have ended."""
        replay, core = self._replay, self._core
        while True:
            now = self._clock.now_ps()
            external = replay.next_external_ps()
            if external <= now:
                replay.external(external)
            elif replay.life.finished:
                replay.engine_finished(now)
            elif core.failed:
                self._failed_turns += 1
                self._check(self._failed_turns)
                request, done = core.failed.pop(0)
                status = Status.TIMEOUT if done.status == "timeout" else Status.ERROR
                replay.failed(request, done.end_ps, status)
            elif now >= replay.next_sample_ps():
                replay.sample(now)
                if self._failed_turns:  # the server may have ended a moment after they failed
                    self._check(self._failed_turns)
            elif core.idle() and not self._tools.running and external == FOREVER:
                if not replay.waits_for_admission:
                    return
                replay.nothing_runs(now)
            else:
                await self._sleep(min(external, replay.next_sample_ps()))
            for part in (core, self._tools):
                broken = getattr(part, "broken", None)
                if broken is not None:
                    raise broken

    async def _sleep(self, due_ps: int) -> None:
        delay_s = max(0, due_ps - self._clock.now_ps()) / PS_PER_S
        timer = asyncio.get_running_loop().call_later(delay_s, self._woken.set)
        await self._woken.wait()
        timer.cancel()
        self._woken.clear()


def _send_errors(core: LiveCore) -> list[float]:
    """Return for each turn when it was sent minus when it was ready, or let in where admission
    holds turns back.
    """
    return [
        (done.sent_ps - request.due_ps) / PS_PER_S
        for request, done in core.completions
        if done.sent_ps >= 0 and done.tries == 1
    ]


def _sort_by_time(log: EventLog) -> None:
    """Put rows in order of time, ties as they are: what a client learns late was appended late."""
    rows = np.frombuffer(log.rows, dtype=np.int64).reshape(-1, ROW)
    ordered = rows[np.argsort(rows[:, 0], kind="stable")].copy()
    del rows
    log.rows[:] = type(log.rows)("q", ordered.tobytes())
