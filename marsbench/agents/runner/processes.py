"""Processes below another one: which there are, what they use, how they end."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
MARK = "MARSBENCH_AGENT"
"""Environment variable with the session: what is left of an agent is found by it."""


def below(root: int) -> list[int]:
    """Ids of all processes below ``root``, in an order in which parents come first."""
    found: list[int] = []
    frontier = [root]
    while frontier:
        pid = frontier.pop()
        for task in _list(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/task/{task}/children").read_text(encoding="ascii")
                children = [int(part) for part in text.split()]
                found += children
                frontier += children
    return found


class Seen(NamedTuple):
    """A process at one moment."""

    pid: int
    parent: int
    name: str
    used_s: float
    """CPU time of it and of its children that have ended."""
    runnable: int
    """Threads that run or could run."""


def tree(root: int) -> list[Seen]:
    """All processes below ``root`` that are still there, parents first."""
    return [seen for pid in below(root) if (seen := look(pid)) is not None]


def own_times_s() -> tuple[float, float]:
    """Of this process: CPU time, and time for which its threads waited for a processor (0: unknown)."""
    threads = _list("/proc/self/task")
    return time.process_time(), sum(waited_s(f"/proc/self/task/{thread}") for thread in threads)


def waited_s(task: str) -> float:
    """Time for which a thread could run and did not; 0 if the kernel does not tell."""
    try:
        return int(Path(task, "schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def of_container(first: int) -> list[Seen]:
    """Processes of the container whose first process this is, that one left out; [] if unseen.

    CPU time of those that ended is their parents', as long as one of them was here to wait for them.
    """
    if not first:
        return []
    try:
        group = Path(f"/proc/{first}/cgroup").read_text(encoding="ascii").rpartition("::")[2]
        text = Path(f"/sys/fs/cgroup{group.strip()}/cgroup.procs").read_text(encoding="ascii")
    except OSError:
        return []
    pids = [int(part) for part in text.split()]
    return [seen for pid in pids if pid != first and (seen := look(pid)) is not None]


def look(pid: int) -> Seen | None:
    """A process as it is now; None if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    head, _, tail = stat.rpartition(")")
    fields = tail.split()
    runnable = int(fields[0] == "R")
    if int(fields[17]) > 1:
        runnable = sum(map(_can_run, (f"/proc/{pid}/task/{t}" for t in _list(f"/proc/{pid}/task"))))
    used_s = sum(int(value) for value in fields[11:15]) * TICK_S  # utime stime cutime cstime
    return Seen(pid, int(fields[1]), head.partition("(")[2], used_s, runnable)


def _can_run(task: str) -> bool:
    try:
        stat = Path(task, "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "R"


def resident_bytes(pid: int) -> tuple[int, int]:
    """Memory of a process now, and the most it ever had; (0, 0) if it is gone."""
    now = most = 0
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                most = int(line.split()[1]) * 1024
            elif line.startswith("VmRSS:"):
                now = int(line.split()[1]) * 1024
                break  # VmHWM comes before it
    return now, most


def marked(session: str) -> list[int]:
    """Processes of a session, wherever they have gone."""
    wanted = f"{MARK}={session}".encode()
    found = []
    for name in _list("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                    found.append(int(name))
    return found


def end_all(session: str, patience_s: float = 5.0) -> bool:
    """Kill all that is left of a session; whether nothing remains."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        left = [pid for pid in marked(session) if pid != os.getpid()]
        if not left:
            return True
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)  # they end a moment later, and may have had children: look again
    return False


def _list(path: str) -> list[str]:
    try:
        return os.listdir(path)  # noqa: PTH208 - twice as fast, and asked twenty times a second
    except OSError:
        return []
