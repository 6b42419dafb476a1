"""Runs a server so that it and all its children end with the process that wanted it.

Started as a script (standard library only) with the number of a pipe's reading end, the grace
period in seconds, and a command.
The owner holds the writing end: however the owner ends, even by SIGKILL, the pipe closes and
the server gets SIGTERM, then, after that period, everything it left behind gets SIGKILL. As
subreaper (Linux) it also finds children that changed their process group or lost their parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
ORPHAN_GRACE_S = 3.0
"""For what the server left behind."""
POLL_S = 0.2


def prctl(option: int, value: int) -> None:
    """Call Linux's process control; on other systems nothing happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def descendants(root: int) -> list[int]:
    """Return the ids of all living processes below ``root``, read from /proc; none where there is
    no /proc.
    """
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = entry.read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
        except OSError:
            continue  # it ended meanwhile
        state, parent = after_name.split()[:2]
        if state != "Z":
            children.setdefault(int(parent), []).append(int(entry.parent.name))
    found: list[int] = []
    frontier = [root]
    while frontier:
        below = children.get(frontier.pop(), [])
        found += below
        frontier += below
    return found


def send(pids: list[int], number: int) -> None:
    """Send a signal to processes, and pass over those that have ended meanwhile."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def supervise(life: int, grace_s: float, command: list[str]) -> int:
    """Run ``command`` until it ends, the pipe ``life`` closes, or SIGTERM comes. Returns its exit
    status.

    It has ``grace_s`` to end in order after SIGTERM.
    """
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda got, _frame: stopping.append(got))
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        child = subprocess.Popen(  # noqa: S603 - the caller's own command
            command,
            stdin=subprocess.DEVNULL,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - there are no threads here
        )
    except OSError as error:
        print(f"cannot start {command[0]}: {error.strerror}", flush=True)
        return 127
    while child.poll() is None and not stopping:
        ready, _, _ = select.select([life], [], [], POLL_S)
        if ready and not os.read(life, 1):
            stopping.append(signal.SIGTERM)
    if child.poll() is None:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(grace_s)
    send(descendants(os.getpid()), signal.SIGTERM)
    _wait_for_all(child, time.monotonic() + ORPHAN_GRACE_S)
    while left := descendants(os.getpid()):
        send(left, signal.SIGKILL)
        time.sleep(0.01)  # they end a moment later, and theirs become ours: look again
    code = child.wait()
    return code if code >= 0 else 128 - code


def _die_with_parent() -> None:
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait_for_all(child: subprocess.Popen[bytes], deadline_s: float) -> None:
    """Wait until no process is left below this one or the deadline passes."""
    while time.monotonic() < deadline_s:
        child.poll()
        if not descendants(os.getpid()):
            return
        time.sleep(0.05)  # what is not our own child cannot be waited for: look again


if __name__ == "__main__":
    sys.exit(supervise(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
