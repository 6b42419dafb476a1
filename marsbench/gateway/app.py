"""The gateway as an ASGI application: routes, start, background work, end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

import aiohttp
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from marsbench.admission.base import FirstReplica
from marsbench.core import PolicyContext
from marsbench.engine.recorder import listeners_of
from marsbench.errors import ConfigError
from marsbench.events import Status
from marsbench.gateway.backends import Backend, Pool
from marsbench.gateway.bus import EventBus, EventSink, WallClock
from marsbench.gateway.control import ControlPlane
from marsbench.gateway.endpoints import Completions, Models, SessionEnd, ToolEndpoints
from marsbench.gateway.exchange import PATHS
from marsbench.gateway.guard import DRAINING, Guard
from marsbench.gateway.meters import Meters
from marsbench.gateway.problems import ApiProblem, error_body
from marsbench.gateway.proxy import Proxy, TurnObserver
from marsbench.gateway.recorder import Recorder
from marsbench.gateway.routing import StickyLeastLoaded
from marsbench.gateway.sessions import LiveSession
from marsbench.gateway.settings import GatewaySettings
from marsbench.gateway.slots import ToolSlots
from marsbench.gateway.stream import Publisher
from marsbench.gateway.telemetry import FleetView, ReplicaView, Shared
from marsbench.system import Policies, System

logger = logging.getLogger(__name__)

JSON = "application/json"
REAP_S = 1.0
START_POLL_S = 0.5
KEEP_ALIVE_S = 3.0
"""Of idle connections to backends; uvicorn, which vLLM runs on, closes its own after 5 s."""


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
        self.meters = Meters()
        self.bus: EventBus
        self.control: ControlPlane
        self.pool: Pool
        self.slots: ToolSlots
        self.proxy: Proxy
        self.recorder: Recorder | None = None
        if settings.record is not None:
            self.recorder = Recorder(settings.record, append=settings.append)
        self._active: dict[int, LiveSession] = {}
        self.publisher: Publisher | None = None
        if settings.publish:
            self.publisher = Publisher(settings.publish, self._active)
        self._system = system
        self._context = context
        self._work: list[asyncio.Task[None]] = []
        self._starlette = Starlette(
            routes=self._routes(),
            lifespan=self._lifespan,
            exception_handlers={
                HTTPException: _http_problem,
                ApiProblem: _api_problem,
                Exception: _server_problem,
            },
        )
        self.guard = Guard(self._starlette, settings, self.meters, self.clock.now_s)
        self.app = self.guard

    @property
    def idle(self) -> bool:
        """True if no turn is in flight and no tool call waits."""
        return not self.proxy.in_flight and not self.slots.queued

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
        self.slots = ToolSlots(Policies().tools, settings.waits.lease_s)
        shared = Shared(self._active, self.slots, settings.tool_cores)
        backends = [
            await self._backend(index, url, shared, stack)
            for index, url in enumerate(settings.backends)
        ]
        views = [backend.view for backend in backends]
        probe = Pool(settings, backends, StickyLeastLoaded(), self.clock)
        await self._wait_for_backends(probe)
        policies = self._policies(views)
        self.slots = shared.tools = ToolSlots(policies.tools, settings.waits.lease_s)
        self.pool = Pool(settings, backends, policies.routing, self.clock)
        fleet = FleetView(views, shared)
        # Scheduling and retention run inside the engine and hear its own events there.
        here = (policies.admission, policies.tools, policies.routing)
        self.bus = EventBus(self.clock, listeners_of(here), self._sinks())
        self.control = ControlPlane(
            policies,
            fleet,
            shared,
            self.bus,
            self.pool.route,
            admission_s=settings.waits.admission_s,
        )
        self.slots.attach(self.control)
        self.proxy = Proxy(
            settings,
            self.control,
            self.pool,
            self.meters,
            priority=self._priority,
            observers=self._observers(),
        )
        self._gauges()
        waits = settings.waits
        for seconds, step in (
            (waits.health_s, self.pool.check),
            (waits.telemetry_s, self._telemetry_step),
            (min(REAP_S, waits.session_idle_s / 2), self._reap_step),
        ):
            self._work.append(asyncio.create_task(self._every(seconds, step)))

    async def _wait_for_backends(self, pool: Pool) -> None:
        """Until one answers: what it says of its memory is what policies will be told."""
        waits = self.settings.waits
        latest_s = self.clock.now_s() + waits.start_s
        await pool.check()
        while not pool.healthy and self.clock.now_s() < latest_s:
            await asyncio.sleep(min(waits.health_s, START_POLL_S))
            await pool.check()
        if not pool.healthy:
            logger.warning("no backend answers; policies are told what the profile says")
        await pool.read_telemetry()

    async def _stop(self) -> None:
        for work in self._work:
            work.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        for session in list(self.control.table.sessions.values()):
            self.control.end(session, Status.OK)
        self.control.close()
        if self.recorder is not None:
            self.recorder.close()
        if self.publisher is not None:
            self.publisher.close()

    async def _backend(
        self, index: int, url: str, shared: Shared, stack: contextlib.AsyncExitStack
    ) -> Backend:
        waits = self.settings.waits
        client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=waits.connect_s, sock_read=waits.upstream_read_s
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )
        await stack.enter_async_context(client)
        view = ReplicaView(index, shared, self._context.num_blocks, self._context.block_size)
        url = url.rstrip("/").removesuffix("/v1")
        return Backend(index, url, client, view, is_vllm=self.settings.engine == "vllm")

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
        if isinstance(policies.routing, FirstReplica):
            policies.routing = StickyLeastLoaded()
        return policies

    def _sinks(self) -> list[EventSink]:
        sinks: list[EventSink] = []
        if self.publisher is not None:
            sinks.append(self.publisher)
        if self.recorder is not None:
            sinks.append(self.recorder)
        return sinks

    def _observers(self) -> list[TurnObserver]:
        if self.recorder is None:
            return []
        self.control.ended.append(self.recorder.ended)
        return [self.recorder]

    def _priority(self, session: LiveSession) -> int | None:
        """VLLM's per-request priority under the system, where its engine knows priorities."""
        if self._system.engine.get("policy") != "priority":
            return None
        if self._system.priority == "session_arrival":
            top = session
            while top.parent is not None:
                top = top.parent
            return top.arrival_ps // 1_000_000_000  # milliseconds: vLLM's priority is an integer
        if self._system.priority == "continuation_first":
            return 0 if session.turn_index else 1
        return 0

    # --- background --------------------------------------------------------------------------

    async def _telemetry_step(self) -> None:
        await self.pool.read_telemetry()
        if self.publisher is not None:
            self.publisher.beat(self.clock.now_ps())
        self.control.ask()
        self.slots.dispatch()

    async def _reap_step(self) -> None:
        self.proxy.drop_stalled(self.settings.limits.send_s)
        self.slots.expire()
        self.control.reap(self.settings.waits.session_idle_s)
        if self.recorder is not None:
            await asyncio.to_thread(self.recorder.sync)

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
                self.meters.failed_steps.inc()
                logger.error("background work failed", exc_info=error)

    # --- routes ------------------------------------------------------------------------------

    def _routes(self) -> list[Route]:
        routes = []
        for prefix in ("", "/s/{session_id}"):
            for api, path in PATHS.items():
                routes.append(Route(prefix + path, Completions(self, api), methods=["POST"]))
            routes.append(Route(prefix + "/v1/models", Models(self), methods=["GET"]))
        tools = ToolEndpoints(self)
        routes += [
            Route("/v1/sessions/{session_id}/end", SessionEnd(self), methods=["POST"]),
            Route("/v1/tools/acquire", tools.acquire, methods=["POST"]),
            Route("/v1/tools/renew", tools.renew, methods=["POST"]),
            Route("/v1/tools/release", tools.release, methods=["POST"]),
            Route("/metrics", self._metrics),
            Route("/health", self._health),
            Route("/ready", self._ready),
        ]
        return routes

    async def _metrics(self, request: Request) -> Response:
        return Response(self.meters.page(), media_type="text/plain; version=0.0.4")

    async def _health(self, request: Request) -> Response:
        return Response(b'{"status":"ok"}', media_type=JSON)

    async def _ready(self, request: Request) -> Response:
        if self.guard.draining:
            return Response(error_body(503, "draining"), 503, media_type=JSON)
        if not self.pool.healthy:
            return Response(error_body(503, "no backend is healthy"), 503, media_type=JSON)
        return Response(b'{"status":"ready"}', media_type=JSON)

    def _gauges(self) -> None:
        gauge = self.meters.gauge
        control, fleet = self.control, self.control.fleet
        gauge("pending_turns", "Turns that wait for admission.", lambda: control.num_pending)
        gauge("turns_in_flight", "Requests being served.", lambda: len(self.proxy.in_flight))
        gauge("active_sessions", "Admitted, unfinished sessions.", lambda: len(fleet.active))
        gauge("sessions", "Unfinished sessions.", lambda: len(control.table.sessions))
        gauge("tools_running", "Tool calls that run.", lambda: self.slots.running)
        gauge("tools_queued", "Tool calls that wait for a slot.", lambda: self.slots.queued)
        gauge("healthy_backends", "Backends that get turns.", lambda: len(self.pool.healthy))
        gauge("kv_free_blocks", "Free KV blocks of all backends.", lambda: fleet.free_blocks)
        gauge("kv_blocks", "KV blocks of all backends.", lambda: fleet.num_blocks)
        gauge("prefix_cache_hit_rate", "Of recent turns.", lambda: fleet.prefix_cache_hit_rate)
        gauge("policy_overrides", "Turns let in against the policy.", lambda: control.overrides)
        gauge("lease_expiries", "Tool leases that ran out.", lambda: self.slots.expired)
        recorder = self.recorder
        if recorder is not None:
            gauge("recorded_sessions", "Sessions in the trace.", lambda: recorder.num_sessions)
            gauge("record_failures", "Sessions not written.", lambda: recorder.failures)


async def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = f"{request.method} {request.url.path}: {error.detail.lower()}"
    return Response(error_body(error.status_code, text), error.status_code, media_type=JSON)


async def _api_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiProblem)
    headers = {k.decode(): v.decode() for k, v in error.headers()}
    headers["connection"] = "close"  # the request's body may not have been read
    return Response(error.body(), error.status, headers)


async def _server_problem(request: Request, error: Exception) -> Response:
    return Response(error_body(500, "the gateway failed; see its log"), 500, media_type=JSON)
