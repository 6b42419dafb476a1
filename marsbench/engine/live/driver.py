"""Runs a cell on the wall clock: the life cycle of the virtual-time driver, around a real server.

The loop is open: arrival times are fixed before the run and latency counts from them, so a client
or server that falls behind cannot make its own latencies look better (no coordinated omission).
What the client adds is on record: GPU_SUBMIT is when a turn was really sent, ``send_error_s`` how
much later than it could have been.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from marsbench.core import PS_PER_S, Session
from marsbench.engine.agenda import FOREVER
from marsbench.engine.base import CoreStats, Request
from marsbench.engine.driver import Driver
from marsbench.engine.live.client import Client, Completion
from marsbench.engine.live.clock import Clock
from marsbench.engine.live.core import Hints, LiveCore, LiveListener
from marsbench.engine.live.metrics import ServerMetrics
from marsbench.engine.live.prompts import Prompts, Vocabulary
from marsbench.engine.live.tools import ModelledTools, RunningTools
from marsbench.engine.live.warmup import warm_up
from marsbench.engine.sessions import CallState, SessionState
from marsbench.engine.telemetry import SAMPLE_PS, Telemetry
from marsbench.errors import EngineError
from marsbench.events import Status
from marsbench.records import ROW, EventLog
from marsbench.system import Policies
from marsbench.tools.base import ToolAssumptions, ToolModel
from marsbench.tools.executor import ToolExecutor

if TYPE_CHECKING:
    from marsbench.arrival.base import ArrivalPlan
    from marsbench.engine.link.outside import OutsideLink


@dataclass(slots=True)
class LiveOutcome:
    """What a live run gave beside its event log."""

    stats: CoreStats
    completions: list[tuple[Request, Completion]]
    """Every turn with the client's record of it, in order of end."""
    server: ServerMetrics
    """Counters of the server over the run."""
    send_error_s: list[float] = field(default_factory=list)
    """For each turn: how long after it could be sent its last byte went out, seconds."""


def run_live(
    *,
    sessions: Sequence[Session],
    arrivals: ArrivalPlan,
    core_factory: Callable[[LiveListener], LiveCore],
    policies: Policies,
    tools: ToolModel | ToolExecutor,
    log: EventLog,
    connect: Callable[[Clock], Client],
    tool_cores: int = 0,
    tool_speed: float = 1.0,
    assumptions: ToolAssumptions | None = None,
    priority: str = "none",
    progress: Callable[[int, int], None] | None = None,
    vocabulary: Vocabulary | None = None,
    salt: str = "",
    hints: Hints | None = None,
    warm_up_turns: int = 0,
    scheduler_in_server: bool = False,
    link: OutsideLink | None = None,
) -> LiveOutcome:
    """Run a cell against a server to its end and fill ``log``. Blocks; needs no event loop.

    The arguments are those of ``engine.driver.run_cell`` and, for the server, ``connect``, which
    makes its client. ``tools`` is a model (its calls then take modelled time on the wall clock) or
    an executor. ``warm_up_turns`` are answered before time begins; EngineError if one fails.
    ``scheduler_in_server``: the server runs the system's engine-side policies itself; ``link`` joins
    them to those that run here.
    """
    refuse_engine_policies(policies, scheduler_in_server=scheduler_in_server)
    clock = Clock()
    woken = asyncio.Event()
    executor = tools if isinstance(tools, ToolExecutor) else None
    driver = LiveDriver(
        sessions=sessions,
        arrivals=arrivals,
        policies=policies,
        tools=(
            RunningTools(tools, clock, woken.set)
            if isinstance(tools, ToolExecutor)
            else ModelledTools(tools)
        ),
        log=log,
        tool_cores=tool_cores,
        tool_speed=tool_speed,
        assumptions=assumptions or ToolAssumptions(),
        priority=priority,
        progress=progress,
    )
    prompts = Prompts(vocabulary, salt=salt)

    async def run() -> LiveOutcome:
        async with connect(clock) as client, _opened(executor):
            core = core_factory(driver)
            core.connect(client, prompts=prompts, wake=woken.set, hints=hints)
            await warm_up(client, core.config, turns=warm_up_turns, salt=salt)
            return await driver.run_on_wall_clock(core, clock, woken, link, salt)

    return asyncio.run(run())


def refuse_engine_policies(policies: Policies, *, scheduler_in_server: bool) -> None:
    """Raise EngineError for a system that a stock server cannot run."""
    if not (policies.stock_engine() or scheduler_in_server):
        raise EngineError(
            "this system schedules inside the engine, which a stock server does not: start the "
            "server with the system's scheduler class, or use engine sim or vllm-core"
        )


@asynccontextmanager
async def _opened(executor: ToolExecutor | None) -> AsyncIterator[None]:
    """Tools that really run are closed in any case."""
    if executor is None:
        yield
        return
    try:
        await executor.open()
        yield
    finally:
        await executor.close()


class LiveDriver(Driver):
    """The driver with the wall clock for a clock; see ``run_live``."""

    async def run_on_wall_clock(
        self,
        core: LiveCore,
        clock: Clock,
        woken: asyncio.Event,
        link: OutsideLink | None = None,
        salt: str = "",
    ) -> LiveOutcome:
        """Run to the end. ``woken`` is set whenever a server or a tool has answered."""
        self._clock, self._woken = clock, woken
        self._core = self._live = core
        self._due_ps: dict[tuple[int, int], int] = {}
        for state in self._states:  # numbered here, not by arrival: it may differ between runs
            prefix = state.recorded.shared_prefix
            if prefix is not None:
                self._prefixes.setdefault(prefix.prefix_id, len(self._prefixes))
        await core.open()
        self._view = Telemetry(self, core, self._tool_cores)
        gc.collect()
        gc.freeze()  # what exists already is not looked through again while requests must go out
        clock.restart()
        core.begin()
        beside = [asyncio.create_task(core.keep_polling())]
        if link is not None:
            link.begin(salt=salt, states=self._states, ear=core, now_ps=clock.now_ps)
            self._listeners.append(link.event)
            beside.append(asyncio.create_task(link.keep_up()))
        try:
            await self._loop()
            await core.poll()
            if link is not None:
                link.pump()
        finally:
            gc.unfreeze()
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await core.close()
            if isinstance(self.tools, RunningTools):
                await self.tools.cancel()
        now = clock.now_ps()
        self._sample(now)
        self._end(now)
        _sort_by_time(self.log)
        return LiveOutcome(core.stats, core.completions, core.gathered, self._send_errors())

    async def _loop(self) -> None:
        core = self._live
        while True:
            now = self._clock.now_ps()
            external = self._next_external()
            if external <= now:
                self._handle_external(external)
            elif self._finished:
                self._handle_finished(now)
            elif now - self._sampled_ps >= SAMPLE_PS:
                self._sample(now)
            elif core.idle() and not self.tools.running and external == FOREVER:
                if not self._pending:
                    return
                self._wait_for_admission(now)
            else:
                await self._sleep(external)
            self._stop_if_broken()

    async def _sleep(self, until_ps: int) -> None:
        """Until the next thing known to happen, or until something wakes the loop."""
        due_ps = min(until_ps, self._sampled_ps + SAMPLE_PS)
        delay_s = max(0, due_ps - self._clock.now_ps()) / PS_PER_S
        timer = asyncio.get_running_loop().call_later(delay_s, self._woken.set)
        await self._woken.wait()
        timer.cancel()
        self._woken.clear()

    def _stop_if_broken(self) -> None:
        for part in (self._live, self.tools):
            broken = getattr(part, "broken", None)
            if broken is not None:
                raise broken

    # --- where the wall clock differs --------------------------------------------------------

    def _submit(self, state: SessionState, at_ps: int) -> None:
        """What is late is sent now, and says so."""
        self._due_ps[state.session, state.turn_index] = at_ps
        super()._submit(state, max(at_ps, self._clock.now_ps()))

    def _start_tool(self, call: CallState, at_ps: int) -> None:
        super()._start_tool(call, max(at_ps, self._clock.now_ps()))

    def on_failed(self, request: Request, at_ps: int, completion: Completion) -> None:
        """The turn will not finish: its session has failed."""
        status = Status.TIMEOUT if completion.status == "timeout" else Status.ERROR
        state = self._states[request.session]
        self._end_session(state, at_ps, status)
        if self._pending:
            self._admit(at_ps)

    def _send_errors(self) -> list[float]:
        """Per turn: wire time minus when it was ready (or let in, where admission holds back)."""
        due = self._due_ps
        return [
            (done.sent_ps - due[request.session, request.turn_index]) / PS_PER_S
            for request, done in self._live.completions
            if done.sent_ps >= 0 and done.tries == 1
        ]


def _sort_by_time(log: EventLog) -> None:
    """Put rows in order of time (what a client learns late was appended late); ties stay."""
    rows = np.frombuffer(log.rows, dtype=np.int64).reshape(-1, ROW)
    ordered = rows[np.argsort(rows[:, 0], kind="stable")].copy()
    del rows
    log.rows[:] = type(log.rows)("q", ordered.tobytes())
