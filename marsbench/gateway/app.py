"""The gateway as an ASGI application: routes, start, background work, end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette

from marsbench.core import PolicyContext, to_ps
from marsbench.engine.life import listeners_of
from marsbench.engine.link.sockets import Inlet
from marsbench.engine.link.wire import EngineState
from marsbench.engine.priority import request_priority
from marsbench.errors import ConfigError
from marsbench.events import Status
from marsbench.extras import require
from marsbench.gateway.backends.lines import BackendLine, open_lines
from marsbench.gateway.backends.pool import Backend, BackendPool
from marsbench.gateway.backends.proxy import Proxy
from marsbench.gateway.backends.routing import StickyLeastLoaded
from marsbench.gateway.control.bus import EventBus, EventSink, WallClock
from marsbench.gateway.control.desk import LocalDesk, TurnObserver
from marsbench.gateway.control.plane import Plane
from marsbench.gateway.control.sessions import LiveSession
from marsbench.gateway.control.slots import ToolSlots
from marsbench.gateway.control.views import FleetView, ReplicaView, Shared
from marsbench.gateway.http.guard import DRAINING, App, Guard, with_cors
from marsbench.gateway.http.limits import BodyBudget
from marsbench.gateway.http.routes import PROBLEMS, routes
from marsbench.gateway.monitoring.gauges import put_on_page
from marsbench.gateway.monitoring.meters import Meters
from marsbench.gateway.monitoring.publisher import Publisher
from marsbench.gateway.recording.recorder import TraceRecorder
from marsbench.gateway.settings import GatewaySettings
from marsbench.system import Policies, System, is_null

if TYPE_CHECKING:
    from marsbench.gateway.monitoring.traces import Traces
    from marsbench.gateway.recording.run import GatewayLoad, RunRecorder

logger = logging.getLogger(__name__)

MAX_EVENTS, FEW_EVENTS = 500_000, 20_000
"""Of the event log: where a run folder is written from it, and where nobody reads it."""
REAP_S = 1.0
START_POLL_S = 0.5
PLUGIN_SILENCE_S = 600.0
"""An idle engine takes no steps and says nothing; one that is silent for longer is not there."""


class Gateway:
    """Everything of one running gateway. ``app`` is what a server runs."""

    def __init__(
        self,
        settings: GatewaySettings,
        system: System,
        context: PolicyContext,
        *,
        clock: WallClock | None = None,
    ) -> None:
        if system.clairvoyant is not None:
            raise ConfigError(
                f"system {system.name!r} knows the future of a recorded workload; a gateway cannot "
                "run it (choose another --system)"
            )
        system.build(dataclasses.replace(context, params=dict(settings.params)))  # are they right?
        self.settings = settings
        self.clock = clock or WallClock()
        self.meters = Meters(settings.system)
        self.bus: EventBus
        self.control: Plane
        self.pool: BackendPool
        self.slots: ToolSlots
        self.lines: list[BackendLine]
        self.desk: LocalDesk
        self.proxy: Proxy
        self.recorder: TraceRecorder | None = None
        if settings.record is not None:
            self.recorder = TraceRecorder(settings.record, append=settings.append)
        self.run: RunRecorder | None = None
        if settings.out is not None:
            from marsbench.gateway.recording.run import run_recorder  # pandas: a second, 60 MiB

            self.run = run_recorder(settings, settings.out)
        self._taken = 0
        """Rows of the event log that the run folder has taken in."""
        self.publisher: Publisher | None = None
        if settings.publish:
            self.publisher = Publisher(settings.publish)
        self._inlets = [Inlet(address) for address in settings.engine_streams]
        self.traces: Traces | None = None
        if settings.otlp:
            require("otlp", "--otlp")
            from marsbench.gateway.monitoring.traces import Traces

            self.traces = Traces(settings.otlp, settings.system, self.clock.now_ps)
        self._system = system
        self._context = context
        self._work: list[asyncio.Task[None]] = []
        self.inner: App = Starlette(
            routes=routes(self), lifespan=self._lifespan, exception_handlers=PROBLEMS
        )
        self.bodies = BodyBudget(settings.limits)
        rate = lambda client: self.desk.rate(client)  # noqa: E731, PLW0108 - the desk comes later
        self.guard = Guard(self.inner, settings, self.meters.count, rate)
        self.app = with_cors(self.guard, settings)

    @property
    def idle(self) -> bool:
        """True if no turn is in flight and no tool call waits."""
        return not (self.proxy.in_flight or self.desk.turns or self.slots.queued)

    def drain(self) -> None:
        """Refuse new turns, and those that are not admitted yet; let the others finish."""
        self.guard.draining = True
        self.control.refuse_pending(DRAINING)

    # --- start and end -----------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            await self._start(stack)
            try:
                yield
            finally:
                await self._stop()

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        """Build the parts once the backends have said what they are."""
        settings = self.settings
        self.slots = ToolSlots(Policies().tools, settings.timeouts.lease_s)
        shared = Shared({}, self.slots, settings.tool_cores)
        self.lines = await open_lines(settings, stack)
        backends = [self._backend(index, line, shared) for index, line in enumerate(self.lines)]
        views = [backend.view for backend in backends]
        probe = BackendPool(settings, backends, StickyLeastLoaded(), self.clock)
        await self._wait_for_backends(probe)
        policies = self._policies(views)
        self.slots = shared.tools = ToolSlots(policies.tools, settings.timeouts.lease_s)
        self.pool = BackendPool(settings, backends, policies.routing, self.clock)
        fleet = FleetView(views, shared)
        # Scheduling and retention run inside the engine and hear its own events there.
        here = (policies.admission, policies.tools, policies.routing)
        kept = MAX_EVENTS if self.run is not None else FEW_EVENTS
        self.bus = EventBus(self.clock, listeners_of(here), self._sinks(), kept)
        shared.active = self.bus.active
        if self.traces is not None:
            self.traces.strings = self.bus.log.strings
        if self.publisher is not None:
            self.publisher.active = self.bus.active
        self.control = Plane(
            policies,
            fleet,
            shared,
            self.bus,
            self.pool.route,
            admission_s=settings.timeouts.admission_s,
        )
        self.slots.attach(self.control)
        self.control.waited.append(
            lambda session, wait_s: self.meters.admission_s.labels(session.tenant).observe(wait_s)
        )
        self.slots.waited.append(
            lambda session, wait_s: self.meters.tool_queue_s.labels(session.tenant).observe(wait_s)
        )
        self.desk = LocalDesk(
            settings,
            self.control,
            self.pool,
            self.meters,
            priority=self._priority,
            observers=self._observers(),
        )
        self.proxy = Proxy(settings, self.lines, self.meters.count, self.clock.now_s)
        put_on_page(self)
        timeouts = settings.timeouts
        for seconds, step in (
            (timeouts.health_s, self.pool.check),
            (timeouts.telemetry_s, self._telemetry_step),
            (min(REAP_S, timeouts.session_idle_s / 2), self._reap_step),
        ):
            self._work.append(asyncio.create_task(self._every(seconds, step)))

    async def _wait_for_backends(self, pool: BackendPool) -> None:
        """Until one answers: what it says of its memory is what policies will be told."""
        timeouts = self.settings.timeouts
        latest_s = self.clock.now_s() + timeouts.start_s
        await pool.check()
        while not pool.healthy and self.clock.now_s() < latest_s:
            await asyncio.sleep(min(timeouts.health_s, START_POLL_S))
            await pool.check()
        if not pool.healthy:
            logger.warning("no backend answers; policies are told what the profile says")
        await pool.read_telemetry()

    async def _stop(self) -> None:
        for work in self._work:
            work.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        if self.run is not None:
            self._follow(self.run)
            part = self.run.last(self.clock.now_ps())
            await asyncio.to_thread(self.run.write, part)
            await asyncio.to_thread(self.run.finish)
        for session in list(self.control.table.sessions.values()):
            self.control.end(session, Status.OK)
        self.control.close()
        if self.recorder is not None:
            self.recorder.close()
        if self.publisher is not None:
            self.publisher.close()
        if self.traces is not None:
            await asyncio.to_thread(self.traces.close)
        for inlet in self._inlets:
            inlet.close()

    def _backend(self, index: int, line: BackendLine, shared: Shared) -> Backend:
        view = ReplicaView(index, shared, self._context.num_blocks, self._context.block_size)
        return Backend(index, line, view, engine=self.settings.engine)

    def _policies(self, views: Sequence[ReplicaView]) -> Policies:
        """The system's policies, told what the backends said about their memory."""
        context = dataclasses.replace(
            self._context,
            num_blocks=sum(view.num_blocks for view in views),
            block_size=views[0].block_size,
            tool_cores=self.settings.tool_cores,
            params=dict(self.settings.params),
        )
        policies = self._system.build(context)
        if is_null(policies.routing):
            policies.routing = StickyLeastLoaded()
        return policies

    def _sinks(self) -> list[EventSink]:
        sinks: list[EventSink] = []
        if self.publisher is not None:
            sinks.append(self.publisher)
        if self.recorder is not None:
            sinks.append(self.recorder)
        if self.traces is not None:
            sinks.append(self.traces)
        return sinks

    def _observers(self) -> list[TurnObserver]:
        found: list[TurnObserver] = []
        if self.recorder is not None:
            self.control.ended.append(self.recorder.ended)
            found.append(self.recorder)
        if self.traces is not None:
            found.append(self.traces)
        return found

    def _priority(self, session: LiveSession) -> int | None:
        """The priority sent with a session's current turn; None where the engine knows no priorities."""
        if self._system.engine.get("policy") != "priority":
            return None
        return request_priority(self._system.priority, session.state)

    # --- background --------------------------------------------------------------------------

    async def _telemetry_step(self) -> None:
        await self.pool.read_telemetry()
        self._hear_plugins()
        if self.publisher is not None:
            self.publisher.beat(self.clock.now_ps())
        self.bus.make_room()
        self.control.look_for_overdue()
        self.control.ask()
        self.slots.dispatch()
        if self.run is not None:
            self.run.load(self.clock.now_ps(), self._load(), self.settings.tool_cores)

    def _hear_plugins(self) -> None:
        """What the schedulers say of themselves."""
        for view, inlet in zip(self.pool.views, self._inlets, strict=False):
            for message in inlet.poll():
                if isinstance(message, EngineState):
                    view.told_pinned_blocks = message.pinned_blocks
            if inlet.age_s > PLUGIN_SILENCE_S:
                view.told_pinned_blocks = -1

    async def _reap_step(self) -> None:
        self.proxy.drop_stalled(self.settings.limits.send_s)
        self.slots.expire()
        timeouts = self.settings.timeouts
        self.control.reap(timeouts.session_idle_s, timeouts.call_idle_s)
        if self.recorder is not None:
            self.recorder.forget(self.clock.now_ps() - to_ps(timeouts.call_idle_s))
            await asyncio.to_thread(self.recorder.sync)
        if self.run is not None:
            self._follow(self.run)
            part = self.run.due(self.clock.now_ps())
            if part is not None:
                await asyncio.to_thread(self.run.write, part)

    def _follow(self, run: RunRecorder) -> None:
        rows, self._taken = self.bus.since(self._taken)
        run.take(rows, self.bus.log)

    def _load(self) -> GatewayLoad:
        """How busy backends and tools are."""
        from marsbench.gateway.recording.run import GatewayLoad

        fleet = self.control.fleet
        read = [view.metrics for view in self.pool.views if view.metrics is not None]
        return GatewayLoad(
            free_blocks=fleet.free_blocks,
            num_blocks=fleet.num_blocks,
            turns_running=fleet.num_running,
            tools_running=self.slots.running,
            tools_queued=self.slots.queued,
            preemptions=sum(metrics.preemptions for metrics in read) if read else -1,
        )

    async def _every(self, seconds: float, step: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Repeat a step for ever; one that fails (a policy of somebody else's) is logged."""
        while True:
            await asyncio.sleep(seconds)
            task = asyncio.create_task(step())
            try:
                await asyncio.wait({task})
            finally:
                task.cancel()
            if not task.cancelled() and (error := task.exception()) is not None:
                self.meters.count("failed_steps")
                logger.error("background work failed", exc_info=error)
