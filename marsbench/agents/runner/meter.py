"""What a tool call uses, apart from what it had to wait for: work, parallelism, waiting, memory.

The time that a call took on a busy machine says little about the call. So its parts are measured: CPU
time as the kernel counts it; and, from looks at the states of its threads, for how long any could run
and how many could (whether or not they got a processor), for how long none could, and how long after
the last process ended the agent saw that. On an idle machine the call takes

    cpu_s / cores + io_s + late_s

The looks are close together at first (a twentieth of the call's age, 5 to 50 ms), so that short calls have some too.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from marsbench.agents.runner import container_shell, processes
from marsbench.agents.runner.niceness import NicerProcesses
from marsbench.agents.runner.processes import Seen
from marsbench.agents.runner.protocol import WorkOrder

LEAST_SAMPLE_S = 0.005
MOST_SAMPLE_S = 0.05
SAMPLES_PER_AGE = 20
RENEW_S = 60.0
SHELLS = frozenset(("bash", "sh", "tmux", container_shell.NAME))
"""Long-lived shells keep their niceness: what they start later is another call."""


class Record(Protocol):
    """What a meter fills in of ``runner.tools.ToolRecord``."""

    start_ns: int
    end_ns: int
    cpu_s: float
    cores: float
    io_s: float
    late_s: float
    peak_bytes: int
    nice: int
    timed_out: bool


class Meter(threading.Thread):
    """Watches the processes of one call: what they use, niceness when due, the time limit."""

    def __init__(
        self,
        record: Record,
        lease: dict[str, Any],
        order: WorkOrder,
        renew: Callable[[str], None],
        *,
        inside: bool,
    ) -> None:
        """``inside``: the call works in the thread that makes this, and has no processes."""
        super().__init__(name="tool-meter", daemon=True)
        self._record = record
        self._lease = lease
        self._order = order
        self._renew = renew
        self._inside = inside
        self._over = threading.Event()
        self._before_s = tree_used_s(self._processes())
        self._thread_before = thread_times_s()
        self._renewed_s = time.monotonic()
        self._states = States(record.start_ns)
        self._niceness = NicerProcesses()

    def stop(self) -> None:
        """The call is over (``end_ns`` of its record is set); called by the thread that ran it."""
        used, delayed = (
            now - before for now, before in zip(thread_times_s(), self._thread_before, strict=True)
        )
        self._over.set()
        self.join()
        self._look()
        self._niceness.restore()
        record, states = self._record, self._states
        record.cpu_s = max(0.0, tree_used_s(self._processes()) - self._before_s) + used
        if self._inside:
            wall_s = (record.end_ns - record.start_ns) / 1e9
            record.io_s = max(0.0, wall_s - used - delayed)
            return
        record.cores, record.io_s, record.late_s = states.cores, states.idle_s, states.late_s

    def run(self) -> None:
        """Look again and again until the call is over."""
        self._look()
        while not self._over.wait(self._pause_s()):
            self._look()
            now_s = time.monotonic()
            if now_s - self._renewed_s > RENEW_S:
                self._renewed_s = now_s
                self._renew(self._lease["lease"])
            if now_s * 1e9 - self._record.start_ns > self._order.tool_timeout_s * 1e9:
                self._record.timed_out = True
                for process in commands(self._processes()):
                    signal_process(process.pid, signal.SIGKILL)

    def _processes(self) -> list[Seen]:
        found = processes.tree(os.getpid())
        if self._order.container is not None:
            found += processes.of_container(self._order.container.pid)
        return found

    def _pause_s(self) -> float:
        if self._inside:
            return MOST_SAMPLE_S
        age_s = time.monotonic() - self._record.start_ns / 1e9
        return min(MOST_SAMPLE_S, max(LEAST_SAMPLE_S, age_s / SAMPLES_PER_AGE))

    def _look(self) -> None:
        record = self._record
        found = self._processes()
        # A look that is late sees what is left after the end: it counts up to the end.
        at_ns = min(time.monotonic_ns(), record.end_ns or sys.maxsize)
        self._states.look(at_ns, sum(p.runnable for p in found), alive=bool(commands(found)))
        now = highest = 0
        for process in found:
            if self._order.cpus:
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(process.pid, self._order.cpus)
            resident, most = processes.resident_bytes(process.pid)
            now += resident
            highest = max(highest, most)
        record.peak_bytes = max(record.peak_bytes, now, highest)
        nice = int(self._lease.get("nice") or 0)
        used_s = tree_used_s(found) - self._before_s
        if nice and used_s >= float(self._lease.get("nice_after_cpu_s") or 0.0):
            record.nice = nice
            self._niceness.add((process.pid for process in commands(found)), nice)


class States:
    """How long the threads of a call could run, from looks at them.

    What is seen at a look holds for the time since the one before; only the time in which the last
    command ended is halved. A call is over with its last command or the last thread that could run:
    what comes after is ``late_s``.
    """

    def __init__(self, start_ns: int) -> None:
        self.busy_s = 0.0
        """Time in which any thread could run."""
        self.idle_s = 0.0
        """Time in which none could, before the call was over."""
        self.late_s = 0.0
        """Time since it was over, or seems to be."""
        self._threads_s = 0.0
        self._last_ns = start_ns
        self._runnable = 0
        self._alive = False

    @property
    def cores(self) -> float:
        """Mean number of threads that could run, while any could; 1 if none was ever seen."""
        return max(1.0, self._threads_s / self.busy_s) if self.busy_s > 0 else 1.0

    def look(self, at_ns: int, runnable: int, *, alive: bool) -> None:
        """``runnable`` threads can run, and commands are there or not."""
        passed_s = max(0, at_ns - self._last_ns) / 1e9
        self._last_ns = max(at_ns, self._last_ns)
        if runnable or alive:
            self.idle_s += self.late_s
            self.late_s = 0.0
            self._add(passed_s, runnable)
        elif self._alive:
            self._add(passed_s / 2, self._runnable)
            self.late_s = passed_s / 2
        else:
            self.late_s += passed_s
        self._runnable, self._alive = runnable, bool(runnable or alive)

    def _add(self, passed_s: float, runnable: int) -> None:
        if runnable:
            self.busy_s += passed_s
            self._threads_s += passed_s * runnable
        else:
            self.idle_s += passed_s


def commands(found: Sequence[Seen]) -> list[Seen]:
    """Processes of tools without the shells that wait for the next command.

    A container's processes have parents that are not among them.
    """
    inner = {p.pid for p in found}
    return [p for p in found if p.parent in inner or p.name not in SHELLS]


def signal_process(pid: int, number: int) -> None:
    """Signal a process, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def tree_used_s(found: Sequence[Seen]) -> float:
    """CPU time of these processes, and of this one's children that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime + sum(p.used_s for p in found)


def thread_times_s() -> tuple[float, float]:
    """Of the calling thread: CPU time, and time for which it waited for a processor (0: unknown)."""
    used = resource.getrusage(resource.RUSAGE_THREAD)
    waited_s = processes.waited_s(f"/proc/self/task/{threading.get_native_id()}")
    return used.ru_utime + used.ru_stime, waited_s
