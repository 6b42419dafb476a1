"""Tool model ``process``: real subprocesses that burn the recorded core-seconds on the tool cores."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

from marsbench.core import PS_PER_S
from marsbench.errors import ConfigError, EngineError
from marsbench.tools import burner
from marsbench.tools.base import MILLI, ToolDemand
from marsbench.tools.executor import STILL_S, Execution, tool_core_ids, watched

PS_PER_NS = 1000
START_TIMEOUT_S = 30.0


class Process:
    """A call takes an idle worker (one is started if there is none) and burns in its process
    group, so that a timeout kills all of it. CPU work first, then the I/O wait as a sleep.

    A call that has CPU work left and uses no CPU time for ``still_s`` seconds stops the run.
    """

    def __init__(self, cores: int = 0, *, prestarted: int = 2, still_s: float = STILL_S) -> None:
        """``cores`` tool cores (0 = not pinned); ``prestarted`` workers wait for the first calls."""
        self._cores = cores
        self._still_s = still_s
        self._prestarted = prestarted
        self._cpus: tuple[int, ...] = ()
        self._idle: list[_Worker] = []
        self._workers: set[_Worker] = set()

    async def open(self) -> None:
        """Check the cores and start the first workers."""
        if sys.platform != "linux":
            raise ConfigError("tool model 'process' needs Linux; use 'recorded' or 'modelled' here")
        self._cpus = tool_core_ids(self._cores)
        for _ in range(self._prestarted):
            self._idle.append(await self._start())

    async def run(self, demand: ToolDemand) -> Execution:
        """Burn the call's CPU work, then wait out its I/O."""
        worker: _Worker | None = None
        used_ps = 0
        timeout_s = None if demand.timeout_ps is None else demand.timeout_ps / PS_PER_S
        try:
            async with asyncio.timeout(timeout_s):
                if demand.cpu_ps:
                    worker = self._idle.pop() if self._idle else await self._start()
                    used_ps = await self._burn(worker, demand) * PS_PER_NS
                    self._idle.append(worker)
                    worker = None
                if demand.io_ps:
                    await asyncio.sleep(demand.io_ps / PS_PER_S)
        except TimeoutError:
            if worker is not None:
                used_ps = worker.used_in_call_ns() * PS_PER_NS
            return Execution(used_ps, timed_out=True)
        finally:
            if worker is not None:
                await self._kill(worker)
        return Execution(used_ps, timed_out=False)

    async def _burn(self, worker: _Worker, demand: ToolDemand) -> int:
        async def used_ns() -> int:
            return worker.used_in_call_ns()

        return await watched(worker.burn(demand), used_ns, name=demand.name, still_s=self._still_s)

    async def close(self) -> None:
        """Kill all workers with their process groups."""
        for worker in list(self._workers):
            await self._kill(worker)
        self._idle.clear()

    async def _start(self) -> _Worker:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            str(Path(burner.__file__)),
            "serve",
            ",".join(str(cpu) for cpu in self._cpus),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        worker = _Worker(process)
        self._workers.add(worker)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await worker.burn_ns(0, 1, 1_000_000)
        except TimeoutError:
            await self._kill(worker)
            raise EngineError(
                f"a tool process did not start within {START_TIMEOUT_S:g} s"
            ) from None
        return worker

    async def _kill(self, worker: _Worker) -> None:
        self._workers.discard(worker)
        await worker.kill()


class _Worker:
    """One burner process and the group it leads."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._used_before_ns = 0

    async def burn(self, demand: ToolDemand) -> int:
        """Burn a call's CPU work at its niceness; CPU nanoseconds used."""
        width = -(-demand.cores_milli // MILLI)
        share_ppm = demand.cores_milli * 1000 // width
        self._used_before_ns = _ticks_ns(Path(f"/proc/{self._process.pid}/stat"), self._process.pid)
        cpu_ns, after_ns = demand.cpu_ps // PS_PER_NS, demand.nice_after_ps // PS_PER_NS
        nice = demand.nice if after_ns < cpu_ns else 0
        return await self.burn_ns(cpu_ns, width, share_ppm, nice, after_ns)

    async def burn_ns(
        self, cpu_ns: int, width: int, share_ppm: int, nice: int = 0, after_ns: int = 0
    ) -> int:
        """One request of the burner's protocol."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{cpu_ns} {width} {share_ppm} {nice} {after_ns}\n".encode())
        line = await self._process.stdout.readline()
        if not line:
            code = await self._process.wait()
            raise EngineError(f"a tool process ended by itself (status {code})")
        return int(line)

    def used_in_call_ns(self) -> int:
        """CPU time of the call that runs now, in clock ticks of the operating system."""
        members = Path("/proc").glob("[0-9]*/stat")
        used_ns = sum(_ticks_ns(stat, self._process.pid) for stat in members)
        return used_ns - self._used_before_ns

    async def kill(self) -> None:
        """SIGKILL the whole group and wait for its leader."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()


def _ticks_ns(stat: Path, group: int) -> int:
    """CPU time of a process and its ended children, 0 if it is gone or in another group."""
    try:
        fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0
    if int(fields[2]) != group:
        return 0
    ticks = sum(int(value) for value in fields[11:15])  # proc(5): utime stime cutime cstime
    return ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
