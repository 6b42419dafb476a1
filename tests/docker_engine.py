"""A small Docker engine on a Unix socket, for tests.

It speaks enough of the Engine API for docker-py, and runs what is executed in a "container" as a
process of this machine, so that times, statuses and kills are real. An image is a name and, if it has
files, a folder of this machine; a path in a container means what is bound there.
"""

from __future__ import annotations

import contextlib
import http.server
import io
import itertools
import json
import os
import pty
import re
import select
import signal
import socketserver
import struct
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


class Container:
    """What the engine knows about a container."""

    def __init__(self, config: dict) -> None:
        self.config = config
        self.used_ns = 0
        self.process: subprocess.Popen | None = None
        self.started = False
        self.weights: list[tuple[int, int]] = []
        """CPU shares it was given, and the CPU time it had used then."""

    def path(self, inside: str) -> str:
        """What a path in it is here."""
        for bind in self.config.get("HostConfig", {}).get("Binds") or ():
            here, there, *_ = bind.split(":")
            if inside == there or inside.startswith(there + "/"):
                return here + inside.removeprefix(there)
        return inside

    def used(self) -> int:
        """CPU time of all that ran in it, nanoseconds."""
        if self.process is None or self.process.returncode is not None:
            return self.used_ns
        return self.used_ns + round(sum(os_times(self.process.pid)) * 1e9)

    def execute(self, command: list[str]) -> tuple[int, bytes]:
        """Run a command to its end; status and output."""
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        output = self.process.stdout.read()
        self.process.stdout.close()
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.used_ns += round((usage.ru_utime + usage.ru_stime) * 1e9)
        return self.process.returncode, output


class Engine(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """State of the engine."""

    daemon_threads = True

    def __init__(self, path: str) -> None:
        super().__init__(path, Handler)
        self.images = {"python:3.11-slim"}
        self.pullable: set[str] = set()
        self.files: dict[str, Path] = {}
        """Image -> folder that stands for its /testbed."""
        self.programs = {"python3", "touch", "false", "sleep"}
        self.containers: dict[str, Container] = {}
        self.created: list[dict] = []
        self.execs: dict[str, tuple[Container, list[str]]] = {}
        self.asked: dict[str, dict] = {}
        self.statuses: dict[str, int] = {}
        self.numbers = itertools.count(1)


class Handler(http.server.BaseHTTPRequestHandler):
    """The Engine API, as far as it is used."""

    protocol_version = "HTTP/1.1"
    server: Engine

    def log_message(self, *args) -> None:
        pass

    def address_string(self) -> str:
        return "unix"

    def do_GET(self) -> None:
        self.route("GET")

    def do_POST(self) -> None:
        self.route("POST")

    def do_DELETE(self) -> None:
        self.route("DELETE")

    def route(self, method: str) -> None:
        url = urlsplit(self.path)
        path = re.sub(r"^/v[\d.]+", "", unquote(url.path))
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        size = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(size)) if size else {}
        for verb, pattern, action in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and verb == method:
                action(self, *match.groups(), query=query, body=body)
                return
        self.reply(404, {"message": f"no such endpoint: {method} {path}"})

    def reply(self, status: int, content=None) -> None:
        data = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def container(self, name: str) -> Container | None:
        found = self.server.containers.get(name)
        if found is None:
            self.reply(404, {"message": f"No such container: {name}"})
        return found

    # ---- endpoints

    def ping(self, query, body) -> None:
        self.reply(200, "OK")

    def version(self, query, body) -> None:
        self.reply(200, {"ApiVersion": "1.43", "Version": "24.0"})

    def image(self, name, query, body) -> None:
        if name in self.server.images:
            self.reply(200, {"Id": f"sha256:{name}", "RepoTags": [name]})
        else:
            self.reply(404, {"message": f"No such image: {name}"})

    def pull(self, query, body) -> None:
        name = f"{query['fromImage']}:{query.get('tag', 'latest')}"
        if name not in self.server.pullable:
            self.reply(404, {"message": f"pull access denied for {query['fromImage']}"})
            return
        self.server.images.add(name)
        self.reply(200, {"status": "done"})

    def create(self, query, body) -> None:
        name = f"c{next(self.server.numbers)}"
        self.server.created.append(body)
        self.server.containers[name] = Container(body)
        self.reply(201, {"Id": name, "Warnings": []})

    def inspect(self, name, query, body) -> None:
        found = self.container(name)
        if found is not None:
            state = {"Status": "running" if found.started else "created", "Pid": 0}
            self.reply(200, {"Id": name, "Config": found.config, "State": state})

    def start(self, name, query, body) -> None:
        found = self.container(name)
        if found is not None:
            found.started = True
            self.reply(204)

    def archive(self, name, query, body) -> None:
        found = self.container(name)
        if found is None:
            return
        source = self.server.files[found.config["Image"]]
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(source, arcname=Path(query["path"]).name)
        self.send_response(200)
        self.send_header("Content-Type", "application/x-tar")
        self.send_header("X-Docker-Container-Path-Stat", "e30=")
        self.send_header("Content-Length", str(len(packed.getvalue())))
        self.end_headers()
        self.wfile.write(packed.getvalue())

    def stats(self, name, query, body) -> None:
        found = self.container(name)
        if found is not None:
            self.reply(200, {"cpu_stats": {"cpu_usage": {"total_usage": found.used()}}})

    def update(self, name, query, body) -> None:
        found = self.container(name)
        if found is not None:
            found.weights.append((body["CpuShares"], found.used()))
            self.reply(200, {"Warnings": []})

    def new_exec(self, name, query, body) -> None:
        found = self.container(name)
        if found is not None:
            number = f"e{next(self.server.numbers)}"
            self.server.execs[number] = found, body["Cmd"]
            self.server.asked[number] = body
            self.reply(201, {"Id": number})

    def run_exec(self, number, query, body) -> None:
        found, command = self.server.execs[number]
        if self.server.asked[number].get("AttachStdin"):
            self.attach(number, found, command)
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/vnd.docker.raw-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        time.sleep(0.05)  # docker-py loses what comes in one packet with the headers
        if command[0] not in self.server.programs:
            self.server.statuses[number] = 127
            output = f"exec failed: {command[0]!r}: executable file not found in $PATH".encode()
        else:
            self.server.statuses[number], output = found.execute(command)
        if output:
            self.wfile.write(struct.pack(">BxxxL", 1, len(output)) + output)
        self.close_connection = True

    def attach(self, number, found, command) -> None:
        """Run with input and output on this connection, as ``docker exec -i`` and ``-it`` do."""
        asked = self.server.asked[number]
        self.wfile.write(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
        inside, outside = pty.openpty() if asked["Tty"] else (None, None)
        process = subprocess.Popen(
            command,
            cwd=found.path(asked["WorkingDir"]),
            env={"PATH": os.environ["PATH"], **dict(e.split("=", 1) for e in asked["Env"])},
            stdin=outside or subprocess.PIPE,
            stdout=outside or subprocess.PIPE,
            stderr=outside or subprocess.STDOUT,
            start_new_session=True,
        )
        found.process = process
        sources = [self.connection, inside or process.stdout]
        sink = inside or process.stdin.fileno()
        if outside is not None:
            os.close(outside)
        while True:
            ready = select.select(sources, [], [])[0]
            if self.connection in ready:
                data = self.connection.recv(1 << 16)
                if data:
                    os.write(sink, data)
                elif inside is None:
                    process.stdin.close()
                    sources.remove(self.connection)
                else:
                    process.kill()
            if sources[-1] in ready:
                try:
                    data = os.read(inside or process.stdout.fileno(), 1 << 16)
                except OSError:  # a terminal whose processes are gone
                    data = b""
                if not data:
                    break
                head = b"" if asked["Tty"] else struct.pack(">BxxxL", 1, len(data))
                self.connection.sendall(head + data)
        self.server.statuses[number] = process.wait()
        if inside is not None:
            os.close(inside)
        else:
            process.stdout.close()
            with contextlib.suppress(OSError):
                process.stdin.close()
        self.close_connection = True

    def exec_status(self, number, query, body) -> None:
        self.reply(200, {"ID": number, "ExitCode": self.server.statuses[number]})

    def list(self, query, body) -> None:
        (label,) = json.loads(query["filters"])["label"]
        key, _, value = label.partition("=")
        found = [
            {"Id": name, "Names": [name]}
            for name, each in self.server.containers.items()
            if each.config.get("Labels", {}).get(key) == value
        ]
        self.reply(200, found)

    def remove(self, name, query, body) -> None:
        found = self.container(name)
        if found is not None:
            if found.process is not None and found.process.returncode is None:
                os.killpg(found.process.pid, signal.SIGKILL)
            del self.server.containers[name]
            self.reply(204)


ROUTES = [
    ("GET", "/_ping", Handler.ping),
    ("GET", "/version", Handler.version),
    ("GET", "/images/(.+)/json", Handler.image),
    ("POST", "/images/create", Handler.pull),
    ("POST", "/containers/create", Handler.create),
    ("GET", "/containers/json", Handler.list),
    ("GET", "/containers/([^/]+)/json", Handler.inspect),
    ("POST", "/containers/([^/]+)/start", Handler.start),
    ("GET", "/containers/([^/]+)/archive", Handler.archive),
    ("POST", "/containers/([^/]+)/update", Handler.update),
    ("GET", "/containers/([^/]+)/stats", Handler.stats),
    ("POST", "/containers/([^/]+)/exec", Handler.new_exec),
    ("DELETE", "/containers/([^/]+)", Handler.remove),
    ("POST", "/exec/([^/]+)/start", Handler.run_exec),
    ("GET", "/exec/([^/]+)/json", Handler.exec_status),
]


def os_times(pid: int) -> tuple[float, float]:
    """User and system seconds of a living process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    tick = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / tick, int(fields[12]) / tick


@contextlib.contextmanager
def running(path: Path) -> Iterator[Engine]:
    """An engine that answers on this socket."""
    server = Engine(str(path))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
