"""Worker processes and the agents in them, as the driver sees them."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marsbench.agents.runner import processes
from marsbench.agents.runner.protocol import MAX_LINE_BYTES, VERSION, WorkOrder, decode, encode
from marsbench.errors import EngineError

START_S = 180.0
"""For an agent's packages to be imported."""
STOP_S = 20.0
LOG_LINES = 12


class AgentGoneError(EngineError):
    """An agent's process ended before it had finished, and why."""


@dataclass
class LiveAgent:
    """One agent in a worker. Futures fail with AgentGoneError when its process ends."""

    order: WorkOrder
    prepared: asyncio.Future[dict[str, Any]]
    finished: asyncio.Future[dict[str, Any]]
    judged: asyncio.Future[dict[str, Any]]
    gone: asyncio.Future[dict[str, Any]]
    """Its process has ended and all that it had started; never fails."""
    tools: list[dict[str, Any]] = field(default_factory=list)

    def fail(self, why: str) -> None:
        """Nothing more will come of it."""
        for future in (self.prepared, self.finished, self.judged):
            if not future.done():
                future.set_exception(AgentGoneError(why))
                future.exception()  # somebody may not wait for it


class WorkerProcess:
    """One worker process."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log_path: Path) -> None:
        self.ready: dict[str, Any] = {}
        self.agents: dict[str, LiveAgent] = {}
        self._command = command
        self._env = env
        self._log_path = log_path
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Until its packages are imported; EngineError with the log's end if that fails."""
        with self._log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=dict(self._env),
                limit=MAX_LINE_BYTES,
                start_new_session=True,  # Ctrl-C reaches us only; we then stop it in order
            )
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(START_S):
                line = await self._process.stdout.readline()
        except TimeoutError:
            line = b""
        if not line:
            await self.stop()
            raise EngineError(
                f"a worker for live agents did not start (log: {self._log_path})\n{self._log_end()}"
            )
        self.ready = decode(line)
        if self.ready.get("protocol") != VERSION:
            raise EngineError("the worker for live agents speaks another version of the protocol")
        self._reader = asyncio.create_task(self._read())

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process is not None
        return self._process.pid

    def prepare(self, order: WorkOrder) -> LiveAgent:
        """Start an agent's process; it gets ready at once."""
        loop = asyncio.get_running_loop()
        agent = LiveAgent(
            order,
            prepared=loop.create_future(),
            finished=loop.create_future(),
            judged=loop.create_future(),
            gone=loop.create_future(),
        )
        self.agents[order.session] = agent
        self.say(order.message())
        return agent

    def say(self, message: Mapping[str, Any]) -> None:
        """Send an order."""
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):  # its end tells why
            self._process.stdin.write(encode(dict(message)))

    async def stop(self) -> None:
        """Close the pipe, which ends all; kill what does not."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        self.say({"op": "bye"})
        process.stdin.close()
        try:
            async with asyncio.timeout(STOP_S):
                if self._reader is not None:
                    await self._reader  # the last reports
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        await self._sweep("the worker of its agent was stopped")

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            self._take(decode(line))
        code = await self._process.wait()
        await self._sweep(f"the worker of its agent ended (status {code})")

    async def _sweep(self, why: str) -> None:
        """Nothing of its agents may stay when a worker is gone, however it went."""
        for session, agent in self.agents.items():
            if not agent.gone.done():
                clean = await asyncio.to_thread(processes.end_all, session)
                agent.gone.set_result({"why": why, "clean": clean})
                agent.fail(why)

    def _take(self, message: dict[str, Any]) -> None:
        agent = self.agents[message["session"]]
        said = message["said"]
        if said == "tool":
            agent.tools.append(message)
        elif said == "gone":
            agent.gone.set_result(message)
            agent.fail(message["why"])
        else:
            future: asyncio.Future[dict[str, Any]] = getattr(agent, said)
            if not future.done():
                future.set_result(message)
            if said == "finished" and not agent.prepared.done():
                agent.prepared.set_exception(AgentGoneError(message["reason"]))
                agent.prepared.exception()

    def _log_end(self) -> str:
        text = self._log_path.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-LOG_LINES:])


def worker_env(kept: Mapping[str, str]) -> dict[str, str]:
    """The environment of a worker: the tools' own, and nothing of whoever started us."""
    return {**kept, "PYTHONUNBUFFERED": "1", "PWD": os.getcwd()}  # noqa: PTH109 - a string
