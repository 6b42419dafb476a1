"""Tool containers, through docker-py's real client against a small engine on a Unix socket.

The engine below speaks enough of the Engine API for docker-py, and runs what is executed in a
"container" as a process of this machine, so that times, statuses and kills are real.
"""

from __future__ import annotations

import asyncio
import gc
import http.server
import itertools
import json
import os
import re
import signal
import socketserver
import struct
import subprocess
import threading
import time
import warnings
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

docker = pytest.importorskip("docker")

from marsbench.core import PS_PER_S, to_ps  # noqa: E402
from marsbench.errors import ConfigError, EngineError  # noqa: E402
from marsbench.tools.base import ToolDemand  # noqa: E402
from marsbench.tools.docker import LABEL, Docker  # noqa: E402
from marsbench.tools.executor import ToolExecutor  # noqa: E402

# docker-py leaves the socket of each exec, and one that cannot connect, to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


class Container:
    """What the engine knows about a container."""

    def __init__(self, config: dict) -> None:
        self.config = config
        self.used_ns = 0
        self.process: subprocess.Popen | None = None
        self.weights: list[tuple[int, int]] = []
        """CPU shares it was given, and the CPU time it had used then."""

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
        self.programs = {"python3", "touch", "false", "sleep"}
        self.containers: dict[str, Container] = {}
        self.created: list[dict] = []
        self.execs: dict[str, tuple[Container, list[str]]] = {}
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
            self.reply(200, {"Id": name, "Config": found.config, "State": {"Status": "running"}})

    def start(self, name, query, body) -> None:
        if self.container(name) is not None:
            self.reply(204)

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
            self.reply(201, {"Id": number})

    def run_exec(self, number, query, body) -> None:
        found, command = self.server.execs[number]
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


@pytest.fixture(autouse=True)
def collect():
    """What docker-py leaves is collected here, where its warning is expected."""
    yield
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()


@pytest.fixture
def engine(tmp_path):
    """A running engine."""
    server = Engine(str(tmp_path / "docker.sock"))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def tools(engine: Engine, **options) -> Docker:
    """The tool model on that engine."""
    url = f"unix://{engine.server_address}"
    return Docker(connect=lambda: docker.DockerClient(base_url=url, timeout=20), **options)


def demand(
    name="pytest",
    *,
    cpu_s=0.0,
    cores=1.0,
    io_s=0.0,
    timeout_s: float | None = None,
    nice=0,
    after_s=0.0,
) -> ToolDemand:
    """A tool call in seconds."""
    timeout_ps = None if timeout_s is None else to_ps(timeout_s)
    return ToolDemand(
        name, "test", to_ps(cpu_s), round(cores * 1000), to_ps(io_s), timeout_ps,
        nice, to_ps(after_s),
    )  # fmt: skip


def run(model: Docker, *demands: ToolDemand, at_once=True):
    """Open, run calls, close."""

    async def go():
        await model.open()
        try:
            if at_once:
                return await asyncio.gather(*(model.run(each) for each in demands))
            return [await model.run(each) for each in demands]
        finally:
            await model.close()

    return asyncio.run(go())


def test_burns_in_a_limited_container(engine):
    """0.2 core-seconds are burnt by the image's Python; the container has the call's CPU limit, the
    run's label, and is gone afterwards."""
    (done,) = run(tools(engine), demand(cpu_s=0.2, cores=1.5))
    assert not done.timed_out
    assert 0.2 <= done.cpu_ps / PS_PER_S < 0.6, "0.2 s of work and the start of two processes"
    (config,) = engine.created
    assert config["HostConfig"]["NanoCpus"] == 1_500_000_000
    assert config["HostConfig"]["Init"] is True
    assert list(config["Labels"]) == [LABEL]
    assert engine.containers == {}


def test_pinned_to_tool_cores(engine):
    """With one tool core containers may use that one only."""
    run(tools(engine, cores=1), demand(cpu_s=0.01))
    last = str(max(os.sched_getaffinity(0)))
    assert engine.created[0]["HostConfig"]["CpusetCpus"] == last


def test_containers_are_reused_one_call_at_a_time(engine):
    """Three calls one after the other share a container; two at once, or other limits, do not."""
    run(tools(engine), demand(), demand(), demand(), at_once=False)
    assert len(engine.created) == 1
    run(tools(engine), demand(io_s=0.3), demand(io_s=0.3), demand(cores=2))
    assert len(engine.created) == 4
    labels = {config["Labels"][LABEL] for config in engine.created}
    assert len(labels) == 2, "each run has its own label"


def test_a_nice_call_s_container_weighs_less_once_its_share_is_used_up(engine):
    """0.4 core-seconds, nice 10 after 0.1: the container's CPU shares become 110 (Linux's weight of
    that niceness) when 0.1 are used, and 1024 again for the next call; a short call changes nothing."""
    model = tools(engine)
    containers = []

    async def go():
        await model.open()
        try:
            await model.run(demand(cpu_s=0.02, nice=10, after_s=0.1))
            await model.run(demand(cpu_s=0.4, nice=10, after_s=0.1))
            containers.extend(engine.containers.values())
        finally:
            await model.close()

    asyncio.run(go())
    (container,) = containers
    (low, used_ns), (normal, _) = container.weights
    assert (low, normal) == (110, 1024)
    assert used_ns >= 0.1e9


def test_real_commands(engine, tmp_path):
    """A command set for a tool's name is what runs; its failure is the tool's, not ours."""
    target = tmp_path / "ran"
    commands = {"touch": ["touch", str(target)], "fail": ["false"]}
    touched, failed = run(tools(engine, commands=commands), demand("touch"), demand("fail"))
    assert target.exists()
    assert not touched.timed_out
    assert not failed.timed_out


def test_timeout_kills_the_container(engine):
    """A command of 60 s is killed at 0.4 s with its container; the next call gets a new one."""
    start = time.monotonic()
    model = tools(engine, commands={"sleep": ["sleep", "60"]})
    killed, fine = run(model, demand("sleep", timeout_s=0.4), demand(cpu_s=0.01), at_once=False)
    assert killed.timed_out
    assert not fine.timed_out
    assert time.monotonic() - start < 15
    assert len(engine.created) == 2
    assert engine.containers == {}


def test_image_is_pulled_or_named(engine):
    """An image that is not there is pulled; one that cannot be pulled is an error with its name."""
    engine.pullable.add("agent:tools")
    run(tools(engine, image="agent:tools"), demand())
    assert engine.created[0]["Image"] == "agent:tools"
    with pytest.raises(
        ConfigError, match=r"image nobody/nothing:1 .* cannot be pulled: pull access"
    ):
        run(tools(engine, image="nobody/nothing:1"), demand())


def test_image_without_python(engine):
    """If burning fails the run stops with the image's name and what it said, instead of recording
    tools that took no time."""
    engine.programs.remove("python3")
    with pytest.raises(EngineError, match=r"image python:3.11-slim .* needs python3: exec failed"):
        run(tools(engine), demand(cpu_s=0.1))
    assert engine.containers == {}


def test_no_engine(monkeypatch, tmp_path):
    """Where no container engine answers there is one line that says so, and what else to use."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing.sock")
    with pytest.raises(
        ConfigError, match=r"no container engine answers.*--tools process"
    ) as caught:
        run(Docker(), demand())
    assert "\n" not in str(caught.value)


def test_engine_that_goes_away(engine):
    """An engine error in the middle of a run stops it with the engine's words."""
    model = tools(engine)

    async def go():
        await model.open()
        try:
            await model.run(demand())
            engine.containers.clear()
            await model.run(demand())
        finally:
            await model.close()

    with pytest.raises(EngineError, match=r"tool model 'docker': .*No such container"):
        asyncio.run(go())


def test_it_is_an_executor():
    """It offers what the live driver asks for."""
    assert isinstance(Docker(), ToolExecutor)
