"""A gateway on a real socket with fake backends behind it, all in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.client
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

import httpx
import pytest
import uvicorn

from marsbench.core import PolicyContext
from marsbench.gateway.app import Gateway
from marsbench.gateway.backends.fake import FakeAnswer, FakeBackend
from marsbench.gateway.http.limits import BodyBudget
from marsbench.gateway.http.server import make_server
from marsbench.gateway.settings import GatewaySettings, Limits, Timeouts
from marsbench.gateway.workers.host import WorkerHost, counter_of
from marsbench.gateway.workers.setup import WorkerSetup
from marsbench.gateway.workers.shared import SharedCounts
from marsbench.gateway.workers.worker import HttpWorker
from marsbench.system import System

CONTEXT = PolicyContext(
    num_blocks=500,
    block_size=16,
    max_num_batched_tokens=8192,
    max_num_seqs=256,
    tool_cores=0,
    prefill_tokens_per_s=10_000.0,
)
STOCK = System(name="vllm", summary="stock")


def reserve() -> socket.socket:
    """A port of this machine on which nobody answers yet."""
    found = socket.socket()
    found.bind(("127.0.0.1", 0))
    return found


def listen() -> socket.socket:
    """A port of this machine that takes connections."""
    found = reserve()
    found.listen(256)
    return found


@dataclass
class Rig:
    """A running gateway, its backends and a client."""

    gateway: Gateway
    backends: list[FakeBackend]
    client: httpx.AsyncClient
    url: str
    server: object
    front: Gateway | HttpWorker
    """Who serves the clients: the gateway itself, or a worker of it."""
    backend_servers: list[uvicorn.Server] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)

    async def chat(self, messages, *, session="", stream=False, headers=None, **extra):
        """One chat request; the whole answer."""
        body = {"model": "fake", "messages": messages, "stream": stream, **extra}
        if session:
            body["session_id"] = session
        return await self.client.post("/v1/chat/completions", json=body, headers=headers)

    def events(self, *kinds):
        """(kind name, session, turn) of the log so far, in order."""
        rows = self.gateway.bus.log.to_numpy()
        return [(int(r[1]), int(r[2]), int(r[3])) for r in rows if not kinds or r[1] in kinds]


async def start(server: uvicorn.Server, *socks: socket.socket) -> uvicorn.Server:
    """Begin to serve, without the polling loop of a process that waits for signals."""
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup(sockets=list(socks))
    await server.on_tick(0)
    return server


async def stop(server: uvicorn.Server) -> None:
    """Stop as a crash would, but for the application's own end."""
    for listener in server.servers:
        listener.close()
    for connection in list(server.server_state.connections):
        connection.transport.abort()
    await asyncio.gather(*server.server_state.tasks, return_exceptions=True)
    await server.lifespan.shutdown()


def backend_server(app: FakeBackend) -> uvicorn.Server:
    """A server for a fake backend."""
    config = uvicorn.Config(
        app, http="httptools", ws="none", lifespan="off", log_level="critical", access_log=False
    )
    return uvicorn.Server(config)


@contextlib.asynccontextmanager
async def run_rig(
    *plans,
    system=STOCK,
    backends=None,
    limits=None,
    timeouts=None,
    headers=None,
    remote=False,
    **settings,
):
    """A gateway over one backend per plan (or the given backends); ``remote``: behind a worker."""
    fakes = (
        list(backends)
        if backends is not None
        else [FakeBackend(plan=plan) for plan in plans] or [FakeBackend()]
    )
    sockets = [listen() for _ in fakes]
    ports = [sock.getsockname()[1] for sock in sockets]
    running = [await start(backend_server(f), s) for f, s in zip(fakes, sockets, strict=True)]
    gateway_socket = listen()
    timeouts = {
        "start_s": 5.0,
        "telemetry_s": 0.1,
        "health_s": 0.1,
        "session_idle_s": 30.0,
        **(timeouts or {}),
    }
    made = GatewaySettings(
        backends=tuple(f"http://127.0.0.1:{port}" for port in ports),
        limits=Limits(**(limits or {})),
        timeouts=Timeouts(**timeouts),
        **settings,
    )
    gateway = Gateway(made, system, CONTEXT)
    if remote:
        serving = serve_remotely(gateway, gateway_socket)
    else:
        serving = serve_here(gateway, gateway_socket)
    url = f"http://127.0.0.1:{gateway_socket.getsockname()[1]}"
    async with (
        httpx.AsyncClient(
            base_url=url, timeout=20, headers=headers, trust_env=False, verify=False
        ) as client,
        contextlib.AsyncExitStack() as stack,
    ):
        for each in running:
            stack.push_async_callback(stop, each)
        server, front = await stack.enter_async_context(serving)
        stack.push_async_callback(client.aclose)
        yield Rig(gateway, fakes, client, url, server, front, running, ports)


@contextlib.asynccontextmanager
async def serve_here(gateway: Gateway, sock: socket.socket):
    """By the gateway's own server."""
    server = await start(make_server(gateway), sock)
    try:
        yield server, gateway
    finally:
        await stop(server)


@contextlib.asynccontextmanager
async def serve_remotely(gateway: Gateway, sock: socket.socket):
    """By a worker that talks to the gateway over a socket, all in one event loop."""
    counts = SharedCounts.create(2)
    gateway.bodies = BodyBudget(gateway.settings.limits, counts.row("bodies", 0))
    server = await start(make_server(gateway))
    host = WorkerHost(counter_of(gateway))
    ours, theirs = socket.socketpair()
    await host.channel.open(ours)
    setup = WorkerSetup(
        settings=gateway.settings, number=1, log_format="text", channel=theirs.detach(),
        listener=-1, counts=counts.descriptor, last_word=-1,
    )  # fmt: skip
    worker = HttpWorker(setup, counts)
    try:
        yield await start(worker.server, sock), worker
    finally:
        await stop(worker.server)
        await host.lost
        await stop(server)
        counts.close()


@pytest.fixture
def rig():
    """``async with rig(plan, ..., system=...) as r`` inside ``asyncio.run``."""
    return run_rig


@pytest.fixture(params=[False, True], ids=["alone", "worker"])
def any_rig(request):
    """A ``rig`` whose clients are served by the gateway itself, and one where a worker does it."""
    return functools.partial(run_rig, remote=request.param)


async def until(condition, timeout_s=5.0):
    """Wait for a condition of the running system."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - of anything, not of an event
            await asyncio.sleep(0.005)


@pytest.fixture
def eventually():
    """``await eventually(lambda: ...)``."""
    return until


@pytest.fixture
def rig_parts():
    """What a rig is made of, for tests that put one together in another order."""
    return sys.modules[__name__]


def wait_ready(port, process):
    """Until the process answers /ready with 200 (it starts in seconds, or many on a busy machine)."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/ready")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.05)
    raise AssertionError("not ready")


@pytest.fixture
def slow_backend():
    """A fake backend in a thread of its own, whose replies take 0.6 s; its URL."""
    config = uvicorn.Config(
        FakeBackend(plan=lambda _n, _b: FakeAnswer(output=("x ",) * 10, itl_s=0.06)),
        http="httptools", ws="none", lifespan="off", log_level="critical", access_log=False,
    )  # fmt: skip
    server = uvicorn.Server(config)
    sock = listen()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def process_of():
    """``with process_of(command, ...) as (url, process)``: a gateway as a process, once it is ready."""

    @contextlib.contextmanager
    def start_process(*arguments):
        with reserve() as found:
            port = found.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-c", "from marsbench.cli import main; main()", *arguments,
             "--port", str(port)],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            wait_ready(port, process)
            yield f"http://127.0.0.1:{port}", process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            process.stderr.close()

    return start_process
