"""How busy other programs keep this machine while something is measured on it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil

BUSY_SHARE = 0.1
"""Of the machine's cores: what others use beyond this makes measured times doubtful."""
LEAST_S = 1.0
"""A shorter measurement is not judged: the system counts CPU time in ticks of some 10 ms."""
LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


class Reading(NamedTuple):
    """Clocks that only go forward, in seconds: CPU time used by everybody, by us, and the time of
    day.
    """

    wall_s: float
    busy_s: float
    """CPU time that all programs have used, over all cores."""
    ours_s: float
    """The part of it that this process, its children and the server have used."""


class LoadMeter:
    """Measures how much of the machine other programs use, from the moment at which it is made."""

    def __init__(self, url: str = "", read: Callable[[], Reading] | None = None) -> None:
        """Start measuring. ``url`` is a server whose work counts as ours if it runs on this
        machine.
        """
        roots = [os.getpid(), *_listeners(url)]
        self._read = read or (lambda: _now(roots))
        self._cores = os.cpu_count() or 1
        self._start = self._read()

    def others(self, outside_s: float = 0.0) -> float | None:
        """Return the share of the machine's cores that other programs have used, or None if the
        time was too short to tell.

        ``outside_s`` is CPU time that we caused in programs that are not our children.
        """
        now, start = self._read(), self._start
        wall_s = now.wall_s - start.wall_s
        if wall_s < LEAST_S:
            return None
        used_s = (now.busy_s - start.busy_s) - (now.ours_s - start.ours_s) - outside_s
        return max(0.0, used_s) / (wall_s * self._cores)


def load_warning(share: float | None) -> str | None:
    """Return one line if others used so much of the machine that times measured on it are doubtful,
    else None.
    """
    if share is None or share <= BUSY_SHARE:
        return None
    return (
        f"other programs kept {share:.0%} of this machine's cores busy meanwhile (more than "
        f"{BUSY_SHARE:.0%}), so the measured times are too long; repeat it on an idle machine"
    )


def _now(roots: Iterable[int]) -> Reading:
    total = psutil.cpu_times()
    busy_s = sum(
        getattr(total, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal")
    )
    return Reading(time.monotonic(), busy_s, _used_s(roots))


def _used_s(roots: Iterable[int]) -> float:
    """Return the CPU time of these processes and of all below them, those that have ended included."""
    found: dict[int, psutil.Process] = {}
    for pid in roots:
        try:
            root = psutil.Process(pid)
            found |= {process.pid: process for process in (root, *root.children(recursive=True))}
        except psutil.Error:
            continue  # it ended meanwhile
    used_s = 0.0
    for process in found.values():
        try:
            used_s += sum(process.cpu_times()[:4])  # user, system, and both of ended children
        except psutil.Error:
            continue  # it ended meanwhile, and its parent has its time
    return used_s


def _listeners(url: str) -> list[int]:
    """Return the processes that listen at this address, if it is on this machine and they may be
    seen.
    """
    parts = urlsplit(url)
    if parts.hostname not in LOCAL:
        return []
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        sockets = psutil.net_connections("tcp")
    except psutil.Error:
        return []
    return [
        found.pid
        for found in sockets
        if found.pid and found.status == psutil.CONN_LISTEN and found.laddr[1:2] == (port,)
    ]
