"""The workers of a gateway: started with it, started again if they die, and ended with it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import psutil
import uvicorn

from marsbench.gateway.app import Gateway
from marsbench.gateway.http.limits import BodyBudget, Connections
from marsbench.gateway.http.server import DrainingServer, server_config
from marsbench.gateway.workers.host import Counter, WorkerHost, counter_of
from marsbench.gateway.workers.setup import WorkerSetup
from marsbench.gateway.workers.shared import SharedCounts

logger = logging.getLogger(__name__)
START_S = 120.0
"""For a worker to take connections; its imports alone take a second, more on a busy machine."""
STOP_S = 10.0
"""For a worker to end, after which it is killed; it cuts off what is left after two."""
STEADY_S = 10.0
"""A worker that dies younger waits before it is started again."""
PAUSE_S, MAX_PAUSE_S = 0.5, 30.0


class Crew:
    """All workers of one gateway."""

    def __init__(
        self, gateway: Gateway, listeners: Sequence[socket.socket], log_format: str = "text"
    ) -> None:
        """``listeners``: one for each worker. They stay open here, so that connections wait while a
        worker is started again.
        """
        self.gateway = gateway
        self.restarts = 0
        self.processes: dict[int, asyncio.subprocess.Process] = {}
        self._listeners = list(listeners)
        self._log_format = log_format
        self._counts = SharedCounts.create(len(self._listeners) + 1)
        gateway.bodies = BodyBudget(gateway.settings.limits, self._counts.row("bodies", 0))
        self._last_word, given = os.pipe()
        os.write(given, b"!")
        os.close(given)
        self._hosts: dict[int, WorkerHost] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._spawning: set[asyncio.Task[None]] = set()
        self._stopping = False

    async def start(self) -> bool:
        """All of them; False if one does not come up."""
        counter = counter_of(self.gateway)
        self._put_on_page()
        numbers = range(1, len(self._listeners) + 1)
        await asyncio.gather(*(self._spawn(number, counter) for number in numbers))
        for number in numbers:
            try:
                async with asyncio.timeout(START_S):
                    await asyncio.wait(
                        {self._hosts[number].ready, self._hosts[number].lost},
                        return_when=asyncio.FIRST_COMPLETED,
                    )
            except TimeoutError:
                pass
            if not self._is_ready(number):
                logger.error("worker %d did not start", number)
                return False
        self._keepers = [asyncio.create_task(self._keep(number, counter)) for number in numbers]
        return True

    def drain(self) -> None:
        """No worker takes new turns."""
        for host in self._hosts.values():
            host.drain()

    async def stop(self) -> None:
        """End all workers; what they carry is cut off."""
        self._stopping = True
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._spawning, return_exceptions=True)
        for host in self._hosts.values():
            host.stop()
        await asyncio.gather(*(self._end(number) for number in list(self.processes)))
        self._counts.close()
        os.close(self._last_word)

    def _is_ready(self, number: int) -> bool:
        ready = self._hosts[number].ready
        return ready.done() and not ready.cancelled()

    async def _spawn(self, number: int, counter: Counter) -> None:
        ours, theirs = socket.socketpair()
        listener = self._listeners[number - 1]
        with theirs:
            setup = WorkerSetup(
                settings=self.gateway.settings,
                number=number,
                log_format=self._log_format,
                channel=theirs.fileno(),
                listener=listener.fileno(),
                counts=self._counts.descriptor,
                last_word=self._last_word,
            )
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "marsbench.gateway.workers.worker", str(number)),
                stdin=subprocess.PIPE,
                pass_fds=(setup.channel, setup.listener, setup.counts, setup.last_word),
            )
        self.processes[number] = process
        host = self._hosts[number] = WorkerHost(counter)
        await host.channel.open(ours)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died: ``ready`` tells
            process.stdin.write(pickle.dumps(setup))
            await process.stdin.drain()
            process.stdin.close()

    async def _keep(self, number: int, counter: Counter) -> None:
        """Start a worker again whenever it dies."""
        pause_s = PAUSE_S
        while True:
            began_s = time.monotonic()
            process, host = self.processes[number], self._hosts[number]
            status = await process.wait()
            await host.lost
            self._counts.clear(number)
            if self._stopping:
                return
            logger.error(
                "worker %d (process %d) ended with status %d: its %d turns are cancelled; starting "
                "another",
                number, process.pid, status, host.cancelled,
            )  # fmt: skip
            if time.monotonic() - began_s < STEADY_S:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
            else:
                pause_s = PAUSE_S
            self.restarts += 1
            spawning = asyncio.create_task(self._spawn(number, counter))
            self._spawning.add(spawning)
            spawning.add_done_callback(self._spawning.discard)
            try:
                await asyncio.shield(spawning)
            except OSError:
                logger.exception("worker %d could not be started; trying again", number)
                continue
            if self.gateway.guard.draining:
                self._hosts[number].drain()

    async def _end(self, number: int) -> None:
        process = self.processes[number]
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            logger.warning("worker %d did not end and is killed", number)
            process.kill()
            await process.wait()
        await self._hosts[number].lost

    def _put_on_page(self) -> None:
        meters = self.gateway.meters
        meters.gauge("workers", "HTTP processes.", lambda: len(self.processes))
        meters.counter("worker_restarts", "Workers that died.", lambda: self.restarts)
        meters.worker_gauge(
            "resident_memory_bytes", "Resident memory.", lambda: self._each(_resident_bytes)
        )
        meters.worker_counter("cpu_seconds", "CPU time.", lambda: self._each(_cpu_s))

    def _each(self, read: Callable[[psutil.Process], float]) -> Iterable[tuple[str, float]]:
        for number, process in sorted(self.processes.items()):
            with contextlib.suppress(psutil.Error):  # it has just died
                yield str(number), read(psutil.Process(process.pid))


def _resident_bytes(process: psutil.Process) -> float:
    return float(process.memory_info().rss)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


class MainServer(DrainingServer):
    """The main process of a gateway with workers: serves at most the metrics port itself."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway, crew: Crew) -> None:
        super().__init__(config, gateway)
        self._crew = crew

    async def startup(self, sockets: Any = None) -> None:
        """The control plane first, then the workers."""
        await super().startup(sockets=sockets)
        if not await self._crew.start():
            await self.shutdown(sockets=sockets)
            self.started = False
            self.should_exit = True

    async def shutdown(self, sockets: Any = None) -> None:
        """The workers first, whose last words belong into the records."""
        await self._crew.stop()
        await super().shutdown(sockets=sockets)

    def _begin_drain(self) -> None:
        super()._begin_drain()
        self._crew.drain()


def make_main_server(
    gateway: Gateway, listeners: Sequence[socket.socket], log_format: str = "text"
) -> MainServer:
    """A server for a gateway with a worker for each listener; ``run(sockets=[metrics port's])``."""
    config = server_config(gateway.settings, gateway.app, Connections(0))
    return MainServer(config, gateway, Crew(gateway, listeners, log_format))
