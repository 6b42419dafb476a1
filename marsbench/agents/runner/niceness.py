"""Makes the processes of a tool call nicer, where it counts.

Linux can group processes by session for the scheduler (``sched_autogroup_enabled``, on in most
distributions): then a process's niceness counts within its session alone, and each agent's shell is a
session of its own. So the session becomes nicer too, for as long as the call lasts: its shell stays,
and the next call begins where this one began. Niceness is counted from where the call started, so
agents that run under ``nice`` themselves are not made less nice.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

NICEST = 19


class NicerProcesses:
    """Niceness of the processes of one call."""

    def __init__(self) -> None:
        self._done: set[int] = set()
        self._sessions: dict[int, int] = {}
        """Sessions that were made nicer, and how nice they were."""
        self._own = os.getpriority(os.PRIO_PROCESS, 0)

    def add(self, pids: Iterable[int], nice: int) -> None:
        """Make these processes nicer by ``nice``; what cannot be is left as it is."""
        for pid in pids:
            if pid in self._done:
                continue
            self._done.add(pid)
            with contextlib.suppress(OSError):  # it is gone
                os.setpriority(os.PRIO_PROCESS, pid, min(NICEST, self._own + nice))
                session = os.getsid(pid)
                if session not in self._sessions and session != os.getsid(0):
                    before = group_niceness(pid)
                    if before is not None:
                        self._sessions[session] = before
                        _set_group(pid, min(NICEST, before + nice))

    def restore(self) -> None:
        """Sessions that are still there are as nice as before."""
        for session, before in self._sessions.items():
            with contextlib.suppress(OSError):
                _set_group(session, before)
        self._sessions.clear()


def group_niceness(pid: int) -> int | None:
    """Niceness of a process's session; None where sessions are no groups."""
    try:
        return int(Path(f"/proc/{pid}/autogroup").read_text(encoding="ascii").split()[-1])
    except (OSError, ValueError, IndexError):
        return None


def _set_group(pid: int, nice: int) -> None:
    Path(f"/proc/{pid}/autogroup").write_text(str(nice), encoding="ascii")
