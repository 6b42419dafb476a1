"""What agents talk to: the gateway of the system under test, in this process, with the relay behind it.

Both run in a thread with an event loop of its own, so that neither the driver nor a report that is being
written holds up a token.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from marsbench.agents.relay import Relay
from marsbench.agents.task import ScriptedReply
from marsbench.core import PolicyContext
from marsbench.errors import EngineError
from marsbench.gateway.app import Gateway
from marsbench.gateway.control.bus import WallClock
from marsbench.gateway.http.server import bind, make_server
from marsbench.gateway.settings import GatewaySettings, Timeouts
from marsbench.records import EventLog
from marsbench.system import System

START_S = 60.0
STOP_S = 30.0
FOREVER_S = 1e7
"""Sessions, admissions and engines are given all the time they need; the driver has the deadline."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """The engine."""

    url: str
    """Without /v1."""
    model: str
    kind: str = "vllm"
    """As ``--engine`` of the gateway; ``openai``: nothing is known of it beyond the API."""
    api_key: str = ""
    publish: str = ""
    """ZeroMQ address at which a scheduler inside the engine listens to the gateway."""


class Front:
    """Gateway and relay. Use as a context manager."""

    def __init__(
        self,
        upstream: Upstream,
        system: System,
        context: PolicyContext,
        *,
        params: Mapping[str, float],
        scripts: Mapping[str, Sequence[ScriptedReply]],
        record: Path | None = None,
    ) -> None:
        """``record``: file that takes what runs through as a canonical trace."""
        exact = {} if upstream.kind == "openai" else {"ignore_eos": True}
        self.relay = Relay(upstream.url, scripts, exact)
        self.url = ""
        self.start_ns = 0
        """Of the gateway's clock, by CLOCK_MONOTONIC."""
        self._upstream = upstream
        self._system = system
        self._context = context
        self._params = params
        self._record = record
        self._gateway: Gateway | None = None
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._end: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="agents-gateway", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._started.wait(START_S):
            raise EngineError("the gateway for live agents did not start")
        self._raise_failure()
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._loop is not None and self._end is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(STOP_S)

    @property
    def log(self) -> EventLog:
        """What the gateway has written down; to be read after the end."""
        assert self._gateway is not None
        return self._gateway.bus.log

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - it is raised again where somebody waits
            self._failure = error
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        await self.relay.start()
        try:
            await self._serve_gateway(self._end)
        finally:
            await self.relay.stop()

    async def _serve_gateway(self, end: asyncio.Event) -> None:
        settings = GatewaySettings(
            backends=(self.relay.url,),
            port=0,
            system=self._system.name,
            params=self._params,
            engine=self._upstream.kind,
            tool_cores=self._context.tool_cores,
            upstream_key=self._upstream.api_key,
            publish=self._upstream.publish,
            record=self._record,
            timeouts=Timeouts(
                upstream_read_s=FOREVER_S,
                admission_s=FOREVER_S,
                session_idle_s=FOREVER_S,
                call_idle_s=FOREVER_S,
            ),
        )
        clock = WallClock()
        self.start_ns = time.monotonic_ns() - clock.now_ps() // 1000
        self._gateway = Gateway(settings, self._system, self._context, clock=clock)
        with bind(settings) as listener:
            host, port = listener.getsockname()[:2]
            self.url = f"http://{host}:{port}"
            server = make_server(self._gateway)
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            while not (server.started or serving.done()):  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.01)
            self._started.set()
            if not serving.done():
                await end.wait()
            server.should_exit = True
            await serving
