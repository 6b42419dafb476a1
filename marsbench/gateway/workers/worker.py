"""One HTTP process of several: ``python -m marsbench.gateway.workers.worker NUMBER``, started by ``crew``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route

from marsbench.gateway.backends.lines import BackendLine, open_lines
from marsbench.gateway.backends.messages import Receive, Send
from marsbench.gateway.backends.proxy import Proxy
from marsbench.gateway.control.bus import WallClock
from marsbench.gateway.http.endpoints import reply
from marsbench.gateway.http.guard import Guard, with_cors
from marsbench.gateway.http.limits import BodyBudget, ConnectionCount, Connections, Scope, read_body
from marsbench.gateway.http.routes import PROBLEMS, carrying_routes
from marsbench.gateway.http.server import server_config
from marsbench.gateway.monitoring.logs import log_to_stderr
from marsbench.gateway.workers import wire
from marsbench.gateway.workers.remote import RemoteDesk
from marsbench.gateway.workers.setup import WorkerSetup
from marsbench.gateway.workers.shared import SharedCounts

logger = logging.getLogger(__name__)
TIDY_S = 1.0
TOLD = ("marsbench.key", "marsbench.tenant", "marsbench.client")
"""What the guard finds out about a request."""


class HttpWorker:
    """A ``marsbench.gateway.http.front.HttpSide`` whose desk is in another process."""

    def __init__(self, setup: WorkerSetup, counts: SharedCounts) -> None:
        settings = setup.settings
        self.settings = settings
        self.clock = WallClock()
        self.bodies = BodyBudget(settings.limits, counts.row("bodies", setup.number))
        self.desk = RemoteDesk(self._drain, self._stop)
        self.lines: list[BackendLine] = []
        self.guard = Guard(
            Starlette(
                routes=[*carrying_routes(self), Route("/{path:path}", Forward(self))],
                lifespan=self._lifespan,
                exception_handlers=PROBLEMS,
            ),
            settings,
            self.desk.count,
            self.desk.rate,
        )
        self.proxy: Proxy
        self.server = WorkerServer(
            server_config(
                settings,
                with_cors(self.guard, settings),
                self._by_address(),
                counts.row("connections", setup.number),
            ),
            self.desk,
        )
        self._setup = setup

    def run(self) -> int:
        """Until the main process says so, or has gone; the exit code."""
        with socket.socket(fileno=self._setup.listener) as listener:
            self.server.run(sockets=[listener])
        if self.desk.lost:
            with contextlib.suppress(BlockingIOError):  # another worker has said it
                if os.read(self._setup.last_word, 1):
                    print("marsbench: the main process has died; its workers end", file=sys.stderr)
        return int(self.desk.lost)

    def _by_address(self) -> ConnectionCount:
        return self.desk if self.settings.limits.client_connections else Connections(0)

    def _drain(self) -> None:
        self.guard.draining = True

    def _stop(self) -> None:
        self.guard.draining = True
        self.server.should_exit = True

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            channel = self.desk.channel()
            await channel.open(socket.socket(fileno=self._setup.channel))
            self.lines += await open_lines(self.settings, stack)
            self.proxy = Proxy(self.settings, self.lines, self.desk.count, self.clock.now_s)
            tidy = asyncio.create_task(self._tidy())
            try:
                yield
            finally:
                tidy.cancel()
                channel.close()

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(TIDY_S)
            for line in self.lines:
                line.upstream.tidy()
            self.proxy.drop_stalled(self.settings.limits.send_s)


class Forward:
    """What is no turn and comes from no backend: the main process answers."""

    def __init__(self, worker: HttpWorker) -> None:
        self._worker = worker

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        worker = self._worker
        with worker.bodies.hold() as share:
            raw = await read_body(scope, receive, worker.settings.limits, share)
            client = scope.get("client")

            def call(ask: int) -> wire.Call:
                return wire.Call(
                    ask=ask,
                    method=scope["method"],
                    path=scope["path"],
                    raw_path=scope["raw_path"],
                    query=scope["query_string"],
                    headers=list(scope["headers"]),
                    client=None if client is None else tuple(client),
                    told={name: scope[name] for name in TOLD if name in scope},
                    body=raw,
                )

            answer = asyncio.create_task(worker.desk.call(call))
            gone = asyncio.create_task(_disconnected(receive))
            try:
                await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
                if answer.done():
                    found = answer.result()
                    headers = [h for h in found.headers if h[0] != b"content-length"]
                    await reply(send, found.status, headers, found.body)
            finally:
                gone.cancel()
                answer.cancel()


class WorkerServer(uvicorn.Server):
    """It stops when the main process says so; signals are that one's."""

    def __init__(self, config: uvicorn.Config, desk: RemoteDesk) -> None:
        super().__init__(config)
        self._desk = desk

    async def startup(self, sockets: Any = None) -> None:
        """The main process is told that connections are taken."""
        await super().startup(sockets=sockets)
        self._desk.ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None."""
        yield


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def main() -> None:
    """A worker's life."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    setup: WorkerSetup = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the process that started it
    log_to_stderr(setup.log_format)
    os.set_blocking(setup.last_word, False)
    counts = SharedCounts(setup.counts, setup.settings.workers + 1)
    sys.exit(HttpWorker(setup, counts).run())


if __name__ == "__main__":
    main()
