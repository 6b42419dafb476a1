"""Real workers: sessions go from one to another, limits count over both, and either side may die."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import sys
import threading
import time

import httpx
import psutil
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from marsbench.gateway.backends.fake import FakeAnswer, FakeBackend
from marsbench.gateway.http.server import build_gateway
from marsbench.gateway.settings import GatewaySettings
from marsbench.gateway.workers.crew import make_main_server
from marsbench.report.write import write_report
from marsbench.trace.io import read_sessions

USER = {"role": "user", "content": "go"}
ENOUGH_S = 60.0
"""For what takes a moment, on a busy machine."""


class AddressedBackend(FakeBackend):
    """One that knows where it is."""

    url = ""


@pytest.fixture
def backend():
    """A fake backend whose replies have ``max_tokens`` tokens, one every 50 ms."""

    def plan(_number, body):
        return FakeAnswer(output=("x ",) * body.get("max_tokens", 2), itl_s=0.05)

    app = AddressedBackend(plan=plan, keep=False)
    config = uvicorn.Config(
        app, http="httptools", ws="none", lifespan="off", log_level="critical", access_log=False
    )
    server = uvicorn.Server(config)
    sock = socket.create_server(("127.0.0.1", 0), backlog=256)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    app.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    yield app
    server.should_exit = True
    thread.join()


class TwoWorkers:
    """A gateway with two workers as its clients and its operator see it."""

    def __init__(self, url, process):
        self.url = url
        self.process = process
        self.port = int(url.rpartition(":")[2])
        self.lines = []

    def pids(self):
        """Process ids of the workers."""
        found = psutil.Process(self.process.pid).children()
        return [p.pid for p in found if "marsbench.gateway.workers.worker" in p.cmdline()]

    def connect(self, pid):
        """A connection that this worker has accepted: the kernel chooses, so until it does."""
        while True:
            found = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ENOUGH_S)
            found.connect()
            port = found.sock.getsockname()[1]
            owner = eventually(lambda port=port: self.owner(port))
            if owner == pid:
                self.lines.append(found)
                return found
            found.close()

    def owner(self, port):
        """The worker that has the connection from a port."""
        for pid in self.pids():
            with contextlib.suppress(psutil.Error):
                for each in psutil.Process(pid).net_connections("tcp"):
                    if each.raddr and each.raddr.port == port:
                        return pid
        return None

    def metrics(self):
        """name and labels -> value."""
        page = httpx.get(f"{self.url}/metrics", trust_env=False, timeout=ENOUGH_S).text
        return {
            (sample.name.removeprefix("marsbench_gateway_"), *sorted(sample.labels.values())): (
                sample.value
            )
            for family in text_string_to_metric_families(page)
            for sample in family.samples
        }


def eventually(condition):
    """What the condition says, once it says something."""
    deadline = time.monotonic() + ENOUGH_S
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError("it never came to that")


def ask(connection, session, *, turns=1, stream=False, tokens=2):
    """Send a turn; the answer's head has come."""
    body = {
        "model": "m", "messages": [USER] * turns, "session_id": session, "stream": stream,
        "max_tokens": tokens,
    }  # fmt: skip
    connection.request("POST", "/v1/chat/completions", json.dumps(body))


def turn(connection, session, **options):
    """A whole turn; its status and body."""
    ask(connection, session, **options)
    with connection.getresponse() as answer:
        return answer.status, answer.read()


@pytest.fixture
def serve(process_of, backend):
    """``with serve("--option", ...) as gateway``: ``marsbench serve --workers 2`` before the backend."""

    @contextlib.contextmanager
    def start(*options):
        command = ("serve", "-u", backend.url, "--workers", "2", *options)
        with process_of(*command) as (url, process):
            gateway = TwoWorkers(url, process)
            yield gateway
            for line in gateway.lines:
                line.close()

    return start


def test_a_session_goes_from_worker_to_worker_and_is_recorded_as_one(serve, tmp_path):
    """Six turns of one session, by turns through either worker: one session of six turns at the desk,
    in the trace, in the run folder and on the metrics page, whichever worker is asked for it."""
    out, trace = tmp_path / "run", tmp_path / "trace.jsonl"
    with serve("--out", str(out), "--record", str(trace)) as gateway:
        lines = [gateway.connect(pid) for pid in gateway.pids()]
        assert len(lines) == 2
        for number in range(6):
            assert turn(lines[number % 2], "a", turns=number + 1, tokens=10)[0] == 200
        found = gateway.metrics()
        assert found["requests_total", "200", "chat", "default"] == 6
        assert found["turn_latency_seconds_count", "0"] == 6
        assert found["sessions",] == 1
        assert found["workers",] == 2
        ended = httpx.post(f"{gateway.url}/v1/sessions/a/end", trust_env=False)
        assert ended.json() == {"session_id": "a", "turns": 6, "ended": True}
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(ENOUGH_S) == 0
    [session] = read_sessions(trace)
    assert [turn.output_tokens for turn in session.turns] == [10] * 6
    cells = json.loads((out / "summary.json").read_text())["cells"]
    assert [cell["sessions"]["completed"] for cell in cells] == [1]
    assert "served" in write_report([out]).html.read_text()


def test_limits_count_over_all_workers(serve):
    """Two sessions and four connections of one client, spread over both workers, are all it may have;
    an address's fifth connection is cut wherever it lands."""
    with serve("--max-sessions", "2") as gateway:
        lines = [gateway.connect(pid) for pid in gateway.pids()]
        assert turn(lines[0], "a")[0] == 200
        assert turn(lines[1], "b")[0] == 200
        for line in lines:
            status, body = turn(line, "c")
            assert (status, json.loads(body)["error"]["code"]) == (429, "too_many_sessions")
        assert turn(lines[0], "b", turns=2)[0] == 200, "those it has go on"


def test_the_rate_of_a_client_is_that_of_all_workers(serve):
    """Twenty requests at once and then one in hours: the 21st is refused by either."""
    with serve("--rate-limit", "0.0001") as gateway:
        lines = [gateway.connect(pid) for pid in gateway.pids()]
        statuses = [turn(lines[number % 2], "a", turns=number + 1)[0] for number in range(20)]
        assert statuses == [200] * 20
        assert [turn(line, "a")[0] for line in lines] == [429, 429]


def answer_to_one_more(port):
    """What a connection of its own is answered; nothing if it is cut."""
    with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port)) as one:
        one.settimeout(ENOUGH_S)
        one.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        return one.recv(100)
    return b""


def test_connections_of_an_address_count_over_all_workers(serve):
    """Two connections of an address are all it may have, wherever they land; when one ends there is
    room for another."""
    with serve("--max-connections", "2") as gateway:
        first, second = gateway.pids()
        held = gateway.connect(first)
        other = gateway.connect(second)
        assert turn(held, "a")[0] == 200
        assert turn(other, "b")[0] == 200
        assert answer_to_one_more(gateway.port) == b""
        held.close()

        eventually(lambda: answer_to_one_more(gateway.port).startswith(b"HTTP/1.1 200"))


def test_a_worker_that_dies_loses_its_own_turns_and_no_others(serve, backend):
    """Window 1: ``a`` streams through a worker and ``b`` waits there when that is killed. A stream of
    ``a``'s sub-agent through the other worker ends whole, ``b`` is forgotten, ``a`` can be ended, and
    its place is the next one's. Another worker takes the dead one's port."""
    with serve("--system", "static", "--param", "window=1") as gateway:
        doomed, other = gateway.pids()
        lost, waiting, kept = map(gateway.connect, (doomed, doomed, other))
        ask(lost, "a", stream=True, tokens=2000)
        assert lost.getresponse().read(10)
        ask(waiting, "b")
        eventually(lambda: gateway.metrics()["pending_turns",] == 1)
        ask(kept, "a", stream=True, tokens=40)
        answer = kept.getresponse()
        assert answer.read(10)
        os.kill(doomed, signal.SIGKILL)
        assert answer.read().endswith(b"data: [DONE]\n\n")
        found = gateway.metrics()
        assert (found["turns_in_flight",], found["pending_turns",]) == (0, 0)
        assert found["sessions",] == 2, "a and its sub-agent"
        eventually(lambda: backend.running == 0)
        eventually(lambda: len(gateway.pids()) == 2 and doomed not in gateway.pids())
        assert httpx.post(f"{gateway.url}/v1/sessions/a/end", trust_env=False).status_code == 200
        for pid in gateway.pids():
            assert turn(gateway.connect(pid), "c", stream=True)[0] == 200
        assert gateway.metrics()["worker_restarts_total",] == 1
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(ENOUGH_S) == 0
        said = gateway.process.stderr.read()
        assert f"(process {doomed}) ended with status -9: its 2 turns are cancelled" in said


def test_sigterm_drains_all_workers(serve, backend, tmp_path):
    """A stream through each worker is under way when SIGTERM comes, to the workers, too, as from a
    terminal or systemd: both end whole, new turns are refused, and the run has both sessions."""
    out = tmp_path / "run"
    with serve("--out", str(out)) as gateway:
        lines = [gateway.connect(pid) for pid in gateway.pids()]
        late = [gateway.connect(pid) for pid in gateway.pids()]
        answers = []
        for line, session in zip(lines, "ab", strict=True):
            ask(line, session, stream=True, tokens=40)
            answers.append(line.getresponse())
            assert answers[-1].read(10)
        for pid in (*gateway.pids(), gateway.process.pid):
            os.kill(pid, signal.SIGTERM)
        eventually(lambda: httpx.get(f"{gateway.url}/ready", trust_env=False).status_code == 503)
        assert [turn(line, "c")[0] for line in late] == [503, 503]
        for answer in answers:
            assert answer.read().endswith(b"data: [DONE]\n\n")
        assert gateway.process.wait(ENOUGH_S) == 0
    cells = json.loads((out / "summary.json").read_text())["cells"]
    assert sum(cell["sessions"]["completed"] for cell in cells) == 2


def test_workers_end_with_the_main_process(serve):
    """The main process is killed: a stream ends with an error event, the workers go, and one line on
    stderr says why."""
    with serve() as gateway:
        pids = gateway.pids()
        line = gateway.connect(pids[0])
        ask(line, "a", stream=True, tokens=2000)
        answer = line.getresponse()
        assert answer.read(10)
        os.kill(gateway.process.pid, signal.SIGKILL)
        assert b"shutting down" in answer.read()
        assert gateway.process.wait(ENOUGH_S) == -signal.SIGKILL
        said = gateway.process.stderr.read()  # to its end: no worker has it open any more
        assert said.count("marsbench: the main process has died; its workers end") == 1
        eventually(lambda: not any(psutil.pid_exists(pid) for pid in pids))


def test_a_gateway_whose_workers_do_not_start_does_not_start(backend, monkeypatch, caplog):
    """Workers that end at once are no reason to wait: the server says which, and stops."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    gateway = build_gateway(GatewaySettings(backends=(backend.url,), workers=2))

    async def story():
        listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        server = make_main_server(gateway, listeners)
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        await server.startup(sockets=[])
        for listener in listeners:
            listener.close()
        return server

    server = asyncio.run(story())
    assert (server.started, server.should_exit) == (False, True)
    assert "worker 1 did not start" in caplog.text
