"""Runs the gateway: a server that drains on SIGTERM and cuts off clients that stall in their heads."""

from __future__ import annotations

import asyncio
import logging
import socket
from asyncio.events import TimerHandle
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from marsbench.errors import ConfigError
from marsbench.gateway.app import Gateway
from marsbench.gateway.http.guard import App
from marsbench.gateway.http.limits import ConnectionCount, Connections, Count, OwnCount
from marsbench.gateway.problems import error_body
from marsbench.gateway.settings import GatewaySettings

logger = logging.getLogger(__name__)
POLL_S = 0.05
BACKLOG = 2048


def _nothing() -> None:
    """Nobody writes."""


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with a time and a size for request heads."""

    header_s = 10.0
    header_bytes = 64 << 10
    connections_at_most = 4096
    by_address: ConnectionCount = Connections(0)
    all_open: Count = OwnCount()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        # Cut without an answer, which would cost what the limit is to save.
        self._number = self.by_address.opened(address, transport.abort)
        self.all_open.own += 1
        self._head_bytes = 0
        self._in_head = True
        self._pause: Callable[[], None] = _nothing
        self._resume: Callable[[], None] = _nothing
        self._timer: TimerHandle | None = self.loop.call_later(self.header_s, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.by_address.closed(self._number)
        self.all_open.own -= 1
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > self.header_bytes:
                self._refuse(431, "the request's headers are too large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["marsbench.wire"] = self  # type: ignore[typeddict-unknown-key]
        self._in_head = True
        self._head_bytes = 0
        if self._timer is None:
            self._timer = self.loop.call_later(self.header_s, self._too_slow)

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._in_head = False
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.header_bytes:
            self._refuse(431, "the request's headers are too large")
            return
        elsewhere = self.all_open.total - self.all_open.own
        self.limit_concurrency = max(self.connections_at_most - elsewhere, 1)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.cycle is not None and not self.transport.is_closing():
            super().on_message_complete()

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():  # closing would wait for a client that reads
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    # --- marsbench.gateway.backends.carry.Wire

    def write_part(self, data: bytes) -> None:
        """Write a chunk of the current response's body."""
        if not self.transport.is_closing():
            self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def when_full(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Set what to call when the client reads too slowly, and when it reads again."""
        self._pause, self._resume = pause, resume
        if self.flow.write_paused:
            pause()

    def abort(self) -> None:
        """Cut the connection."""
        self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._resume()

    def _too_slow(self) -> None:
        self._timer = None
        if self._head_bytes or self.cycle is None:
            self._refuse(408, "the request's head did not arrive in time")

    def _refuse(self, status: int, message: str) -> None:
        body = error_body(status, message)
        head = (
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(STATUS_LINE[status] + head.encode() + body)
        self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class DrainingServer(uvicorn.Server):
    """First signal: refuse new turns, finish those in flight, stop. Second: stop at once."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._drain: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: Any = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets=sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain on a signal. It is called between two instructions of the main thread."""
        if self._gateway.guard.draining or self._loop is None or not self.started:
            self.should_exit = True
            return
        self._gateway.guard.draining = True
        self._loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        self._gateway.drain()
        self._drain = asyncio.get_running_loop().create_task(self._finish_in_flight())

    async def _finish_in_flight(self) -> None:
        logger.warning("draining: finishing turns in flight, refusing new ones")
        try:
            async with asyncio.timeout(self._gateway.settings.timeouts.drain_s):
                while not self._gateway.idle:  # noqa: ASYNC110 - two queues, polled for seconds
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            logger.warning("draining took too long; what is left is cut off")
        self.should_exit = True


def make_server(gateway: Gateway) -> DrainingServer:
    """Make a server for a gateway; ``run()`` or ``await serve()`` it."""
    by_address = Connections(gateway.settings.limits.client_connections)
    return DrainingServer(server_config(gateway.settings, gateway.app, by_address), gateway)


def server_config(
    settings: GatewaySettings,
    app: App,
    by_address: ConnectionCount,
    all_open: Count | None = None,
) -> uvicorn.Config:
    """Return how a gateway, or a worker of one, serves HTTP."""
    protocol = type(
        "GatewayProtocol",
        (PatientProtocol,),
        {
            "header_s": settings.limits.header_s,
            "header_bytes": settings.limits.header_bytes,
            "connections_at_most": settings.limits.connections,
            "by_address": by_address,
            "all_open": all_open or OwnCount(),
        },
    )
    return uvicorn.Config(
        app,
        http=protocol,
        loop="uvloop",
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="warning",
        timeout_keep_alive=round(settings.limits.keep_alive_s),
        timeout_graceful_shutdown=2,
        limit_concurrency=settings.limits.connections,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
    )


def bind(settings: GatewaySettings) -> socket.socket:
    """Open a gateway's listening socket; ConfigError if the address cannot be had."""
    return listen(settings.host, settings.port)


def bind_all(settings: GatewaySettings) -> list[socket.socket]:
    """Open a gateway's listening sockets, one for each worker; ConfigError if the address cannot
    be had.

    Those of workers share their port: the kernel spreads connections over them.
    """
    first = bind(settings)
    if settings.workers == 1:
        return [first]
    host, port = first.getsockname()[:2]
    first.close()  # it was alone on its port; those that share it would not notice others
    found: list[socket.socket] = []
    try:
        for _ in range(settings.workers):
            found.append(listen(host, port, shared=True))  # noqa: PERF401 - closed if one fails
    except ConfigError:
        for sock in found:
            sock.close()
        raise
    return found


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Open a listening socket; ConfigError if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        found.bind((host, port))
        found.listen(BACKLOG)
    except OSError as error:
        found.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another port or host"
        ) from error
    return found


def build_gateway(settings: GatewaySettings) -> Gateway:
    """Build the gateway of an operator's settings: the system by name, the deployment by
    profile.
    """
    from marsbench.engine.profile import load_profile
    from marsbench.registry import load
    from marsbench.system import System

    system = load("SYSTEMS", settings.system)
    if not isinstance(system, System):
        raise ConfigError(f"--system {settings.system!r} is not a marsbench.system.System")
    profile = load_profile(settings.profile)
    return Gateway(settings, system, profile.policy_context(settings.tool_cores, seed=0))
