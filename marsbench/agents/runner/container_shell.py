"""A shell inside a container, for agents that would start one here.

``python container_shell.py ADDRESS CONTAINER FOLDER [-i | -c COMMAND]`` runs bash in FOLDER of a running
container through the Docker Engine API and passes its input, output and exit status on, as ``docker
exec`` does. ADDRESS is a Unix socket's path or HOST:PORT. A file of its own with the standard library
alone: agents start it by path, as they would start bash.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import socket
import struct
import sys
import termios
import tty
from pathlib import Path
from typing import Any

NAME = "container-shell"
"""Of its process (15 characters): it waits for what runs elsewhere, and is no tool itself."""
SHELL = "/bin/bash"
KEPT = ("BASH_ENV", "PS1", "PS2", "TERM", "GIT_PAGER", "PAGER", "MARSBENCH_AGENT")
"""Variables that are the caller's; all others are the container's own."""
FAILED = 125
READ_BYTES = 1 << 16


class EngineConnection(http.client.HTTPConnection):
    """A connection to the Docker engine."""

    def __init__(self, address: str) -> None:
        super().__init__("docker")
        self._address = address

    def connect(self) -> None:
        """Open the socket."""
        if self._address.startswith("/"):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(self._address)
        else:
            host, _, port = self._address.rpartition(":")
            self.sock = socket.create_connection((host, int(port)))


class EngineProblemError(RuntimeError):
    """The engine refuses, and what it says."""


def ask(address: str, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """One request with a JSON answer."""
    connection = EngineConnection(address)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"content-type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise EngineProblemError(f"the Docker engine does not answer: {error}") from error
    finally:
        connection.close()
    if answer.status >= 300:
        raise EngineProblemError(f"the Docker engine says {answer.status}: {text[:300]!r}")
    return json.loads(text or b"null")


def run(address: str, container: str, folder: str, arguments: list[str]) -> int:
    """Run bash with these arguments; its exit status."""
    terminal = os.isatty(0)
    made = ask(
        address,
        "POST",
        f"/containers/{container}/exec",
        {
            "Cmd": [SHELL, *arguments],
            "WorkingDir": folder,
            "Env": [f"{name}={os.environ[name]}" for name in KEPT if name in os.environ],
            "AttachStdin": True,
            "AttachStdout": True,
            "AttachStderr": True,
            "Tty": terminal,
        },
    )
    connection = EngineConnection(address)
    connection.connect()
    body = json.dumps({"Detach": False, "Tty": terminal}).encode()
    head = (
        f"POST /exec/{made['Id']}/start HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\n"
        f"Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection.sock.sendall(head.encode() + body)
    rest = _answered(connection.sock)
    with _raw() if terminal else contextlib.nullcontext():
        _pass(connection.sock, rest, framed=not terminal)
    connection.close()
    return int(ask(address, "GET", f"/exec/{made['Id']}/json").get("ExitCode") or 0)


def _answered(sock: socket.socket) -> bytes:
    """Read the head of the answer; what came behind it is the stream's."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = sock.recv(READ_BYTES)
        if not part:
            raise EngineProblemError(f"the Docker engine hung up: {data[:300]!r}")
        data += part
    head, _, rest = data.partition(b"\r\n\r\n")
    status = int(head.split(None, 2)[1])
    if status not in {101, 200}:
        raise EngineProblemError(f"the Docker engine says {status}: {rest[:300]!r}")
    return rest


@contextlib.contextmanager
def _raw() -> Any:
    """Keys and signals of our terminal are the inner terminal's business."""
    before = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSANOW)  # what was typed already is kept
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _pass(sock: socket.socket, rest: bytes, *, framed: bool) -> None:
    """Input there, output here, until the shell ends. Without a terminal output comes in frames."""
    waiting: list[Any] = [sock, 0]
    while True:
        if rest:
            rest = _write(rest, framed=framed)
        for ready in select.select(waiting, [], [])[0]:
            if ready == 0:
                data = os.read(0, READ_BYTES)
                if data:
                    sock.sendall(data)
                else:
                    waiting.remove(0)
                    sock.shutdown(socket.SHUT_WR)
            else:
                data = sock.recv(READ_BYTES)
                if not data:
                    return
                rest += data


def _write(data: bytes, *, framed: bool) -> bytes:
    """Write what is whole; what is not yet is returned."""
    if not framed:
        _all(1, data)
        return b""
    while len(data) >= 8:
        target, size = struct.unpack(">BxxxL", data[:8])
        if len(data) < 8 + size:
            break
        _all(2 if target == 2 else 1, data[8 : 8 + size])
        data = data[8 + size :]
    return data


def _all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def main() -> int:
    """The exit status of the shell; 125 if there was none."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(NAME, encoding="ascii")
    try:
        address, container, folder, *arguments = sys.argv[1:]
        return run(address, container, folder, arguments)
    except EngineProblemError as error:
        print(f"container shell: {error}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
