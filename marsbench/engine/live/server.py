"""Starts a real inference server, waits until it answers, and stops it with all its children."""

from __future__ import annotations

import os
import random
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from marsbench.engine.live import supervisor
from marsbench.errors import EngineError

START_TIMEOUT_S = 600.0
"""A large model loads for minutes; a process that ends is noticed at once."""
GRACE_S = 10.0
"""Seconds that a server gets to end in order after SIGTERM."""
STOP_SLACK_S = supervisor.ORPHAN_GRACE_S + 5.0
OWN_PORTS = range(20_000, 32_000)
TRIES = 100
LOG_LINES = 15
"""How many of the last lines of a server's log an error shows."""


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """The command that starts a server, and the address where it will answer."""

    argv: tuple[str, ...]
    url: str
    """Without a path, for example http://127.0.0.1:8000."""
    model: str
    """The name requests give."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to this process's environment."""
    path: tuple[str, ...] = ()
    """Folders that its Python looks for modules in, beside those of this process."""

    def shown(self) -> str:
        """Return the command as one would type it, without the folders of this machine that it is
        told of.
        """
        given = [f"{name}={value}" for name, value in self.env.items() if not value.startswith("/")]
        return shlex.join([*given, *self.argv])


def free_port() -> int:
    """Return a port on which nobody listens now and that no system hands out by itself meanwhile.

    A server may take a minute until it binds its port. Ports that the system gives to connections
    and to those who ask for any (32,768 and up on Linux, 49,152 elsewhere) are often gone by then.
    """
    for port in random.SystemRandom().sample(OWN_PORTS, TRIES):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise EngineError(f"none of {TRIES} ports tried in {OWN_PORTS} is free")


class Server:
    """A supervised server process. It dies with this process, however this one ends."""

    def __init__(self, command: ServerCommand, log_path: Path, *, grace_s: float = GRACE_S) -> None:
        self.command = command
        self._grace_s = grace_s
        self.log_path = log_path
        life, self._life = os.pipe()
        try:
            log_path.parent.mkdir(parents=True, exist_ok=True)
            with log_path.open("wb") as log:
                self._process = subprocess.Popen(  # noqa: S603 - the command is the caller's
                    [
                        *(sys.executable, "-I", supervisor.__file__),
                        *(str(life), str(grace_s), *command.argv),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **command.env},
                    pass_fds=(life,),
                    start_new_session=True,  # Ctrl-C reaches us only; we then stop it in order
                )
        except OSError as error:
            os.close(self._life)
            raise EngineError(f"cannot start {command.argv[0]}: {error}") from error
        finally:
            os.close(life)

    @property
    def pid(self) -> int:
        """Process id of the supervisor; the server and its children are below it."""
        return self._process.pid

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until ``/health`` answers 200. EngineError with the end of the log if the server
        dies or is late.
        """
        deadline_s = time.monotonic() + timeout_s
        while not answers(self.command.url):
            self.check_alive()
            if time.monotonic() >= deadline_s:
                raise EngineError(
                    f"the server does not answer at {self.command.url}/health after "
                    f"{timeout_s:g} s; allow more time or look at its log{self._log_end()}"
                )
            time.sleep(0.25)  # a server that loads a model tells nobody when it is ready: ask again

    @property
    def ended(self) -> int | None:
        """Return the exit status of a server that has ended by itself, or None while it runs."""
        return self._process.poll()

    def check_alive(self) -> None:
        """Raise EngineError with the log's end if the server has ended by itself."""
        code = self.ended
        if code is not None:
            raise EngineError(f"the server ended with status {code}{self._log_end()}")

    def stop(self) -> None:
        """Send SIGTERM to the server and SIGKILL to what is left of it; return when all its
        processes are gone.
        """
        if self._life < 0:
            return
        os.close(self._life)
        self._life = -1
        try:
            self._process.wait(timeout=self._grace_s + STOP_SLACK_S)
        except subprocess.TimeoutExpired:
            left = [*supervisor.descendants(self.pid), self.pid]
            supervisor.send(left, 9)
            self._process.wait()

    def _log_end(self) -> str:
        return f" (log: {self.log_path})\n{tail(self.log_path, LOG_LINES)}"


@contextmanager
def running(
    command: ServerCommand,
    log_path: Path,
    *,
    timeout_s: float = START_TIMEOUT_S,
    grace_s: float = GRACE_S,
) -> Iterator[Server]:
    """Provide a server that is ready inside the block and gone after it."""
    server = Server(command, log_path, grace_s=grace_s)
    try:
        server.wait_ready(timeout_s)
        yield server
    finally:
        server.stop()


def answers(url: str, timeout_s: float = 2.0) -> bool:
    """Tell whether ``/health`` at this address answers 200."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=timeout_s) as reply:  # noqa: S310
            return bool(reply.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def tail(path: Path, num_lines: int) -> str:
    """Return the last lines of a log, without the blank ones."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return "\n".join([line for line in text.splitlines() if line.strip()][-num_lines:])
