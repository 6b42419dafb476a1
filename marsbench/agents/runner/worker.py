"""A worker: loads an agent's packages once and forks off a process for each agent.

Forking gives each agent its own workspace mount, its own interpreter lock and its own death, for some
25 MB instead of the 250 MB and ten seconds that a fresh process takes. The worker itself has no
threads, so it can fork at any time; it carries lines between the driver and the agents, and removes
what an agent that died leaves behind. It ends with its driver.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import shutil
import signal
import socket
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from marsbench.agents.runner import agent, processes, room
from marsbench.agents.runner.agents import AgentKind, find_kind
from marsbench.agents.runner.protocol import VERSION, Lines, WorkOrder, encode

READ_BYTES = 1 << 16


class Worker:
    """The loop of the worker's process."""

    def __init__(self, kind_name: str, orders: int, reports: int, folder: str = "") -> None:
        """``orders`` and ``reports`` are descriptors of the pipes from and to the driver; ``folder``
        is what to remove if the driver ends without having said so.
        """
        self._folder = folder
        self._kind_name = kind_name
        self._orders = orders
        self._reports = reports
        self._lines = Lines()
        self._selector = selectors.DefaultSelector()
        self._agents: dict[str, _Child] = {}

    def run(self) -> None:
        """Until the driver closes its end."""
        start_s = time.monotonic()
        # What an agent that was killed leaves behind becomes ours.
        ctypes.CDLL(None).prctl(agent.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        kind = find_kind(self._kind_name)
        os.environ.update(kind.env)
        kind.load()
        self._report(
            {
                "said": "ready",
                "protocol": VERSION,
                "agent": kind.name,
                "versions": _versions(kind),
                "startup_s": time.monotonic() - start_s,
                "mounts": room.permitted(),
                "pid": os.getpid(),
            }
        )
        self._selector.register(self._orders, selectors.EVENT_READ)
        try:
            while self._step(kind):
                pass
        finally:
            for session in list(self._agents):
                self._end(session)
            if self._folder:
                shutil.rmtree(self._folder, ignore_errors=True)

    def _step(self, kind: AgentKind) -> bool:
        for key, _ in self._selector.select():
            if key.fd == self._orders:
                data = os.read(self._orders, READ_BYTES)
                if not data:
                    return False
                for message in self._lines.feed(data):
                    self._obey(kind, message)
            elif (child := key.data) is not None and child.session in self._agents:
                self._hear(child)
        return True

    def _obey(self, kind: AgentKind, message: dict[str, Any]) -> None:
        session = str(message.get("session", ""))
        if message["op"] == "bye":
            self._folder = ""
        elif message["op"] == "prepare":
            self._fork(kind, WorkOrder.read(message))
        elif session in self._agents:
            if message["op"] == "kill":
                self._end(session, str(message.get("why", "killed")))
            else:
                with contextlib.suppress(OSError):  # its end tells why
                    self._agents[session].socket.sendall(encode(message))

    def _fork(self, kind: AgentKind, order: WorkOrder) -> None:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            self._selector.close()
            os.close(self._orders)
            os.close(self._reports)
            for other in self._agents.values():
                other.socket.close()
            agent.main(kind, order, theirs)
        theirs.close()
        child = _Child(order.session, pid, ours)
        self._agents[order.session] = child
        self._selector.register(ours, selectors.EVENT_READ, child)

    def _hear(self, child: _Child) -> None:
        try:
            data = child.socket.recv(READ_BYTES)
        except ConnectionError:
            data = b""
        if not data:
            self._end(child.session)
            return
        for message in child.lines.feed(data):
            child.finished = child.finished or message["said"] == "finished"
            self._report({**message, "session": child.session})

    def _end(self, session: str, why: str = "") -> None:
        """Kill an agent with all that it started, and say so if it had not finished."""
        child = self._agents.pop(session)
        self._selector.unregister(child.socket)
        child.socket.close()
        if child.finished and not why:
            with contextlib.suppress(ChildProcessError):
                _wait(child.pid, patience_s=2.0)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
        clean = processes.end_all(session)
        status = 0
        with contextlib.suppress(ChildProcessError):
            _, status = os.waitpid(child.pid, 0)
        for pid in list(processes.below(os.getpid())):  # what came to us when its parent died
            with contextlib.suppress(ChildProcessError):
                if pid not in {other.pid for other in self._agents.values()}:
                    os.waitpid(pid, os.WNOHANG)
        self._report(
            {
                "said": "gone",
                "session": session,
                "why": why or _how(status),
                "finished": child.finished,
                "clean": clean,
            }
        )

    def _report(self, message: dict[str, Any]) -> None:
        data = encode(message)
        with contextlib.suppress(
            BrokenPipeError
        ):  # the driver is gone: its end of the pipe ends us
            while data:
                data = data[os.write(self._reports, data) :]


class _Child:
    """An agent's process, as the worker knows it."""

    def __init__(self, session: str, pid: int, connection: socket.socket) -> None:
        self.session = session
        self.pid = pid
        self.socket = connection
        self.lines = Lines()
        self.finished = False


def _wait(pid: int, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(0.02)  # waitid has no timeout: look again


def _how(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"the agent's process was killed ({signal.Signals(os.WTERMSIG(status)).name})"
    return f"the agent's process ended by itself (status {os.waitstatus_to_exitcode(status)})"


def _versions(kind: AgentKind) -> dict[str, str]:
    found = {}
    for name in kind.packages:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
