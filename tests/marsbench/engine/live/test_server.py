"""Servers are ready when they are handed over, and gone with everything they started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from marsbench.engine.live.server import (
    Server,
    ServerCommand,
    answers,
    free_port,
    running,
)
from marsbench.engine.live.supervisor import descendants
from marsbench.errors import EngineError

SERVER = """
import http.server, os, signal, sys, time
print("serving soon", flush=True)
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "orphan" in sys.argv and os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(600)
    os._exit(0)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *args):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

OWNER = """
import os, sys, time
from pathlib import Path
from marsbench.engine.live.server import ServerCommand, running
url, log, *argv = sys.argv[1:]
with running(ServerCommand(tuple(argv), url, "m"), Path(log)) as server:
    print(server.pid, flush=True)
    time.sleep(600)
"""


def command(*modes: str) -> ServerCommand:
    """A small HTTP server; "orphan" starts a process that leaves it, "stubborn" ignores SIGTERM."""
    port = free_port()
    return ServerCommand(
        (sys.executable, "-c", SERVER, str(port), *modes), f"http://127.0.0.1:{port}", "m"
    )


def all_gone(pids: list[int], within_s: float = 10.0) -> bool:
    """Whether none of the processes runs any more."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}").exists() and not zombie(pid) for pid in pids):
            return True
        time.sleep(0.02)
    return False


def zombie(pid: int) -> bool:
    """Ended, but nobody asked for its status yet (nobody may, in a container)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_ready_inside_gone_after(tmp_path):
    """Inside the block the server answers; after it neither it nor an orphan of it is left."""
    chosen = command("orphan")
    with running(chosen, tmp_path / "log") as server:
        assert answers(chosen.url)
        below = descendants(server.pid)
        assert len(below) == 2, "the server and the orphan"
    assert all_gone([server.pid, *below], 0.5)
    assert not answers(chosen.url)
    assert "serving soon" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_gone_with_its_owner(tmp_path, number):
    """However the owner ends, SIGKILL included, the server and its orphan end too."""
    chosen = command("orphan")
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, chosen.url, str(tmp_path / "log"), *chosen.argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    supervisor = int(owner.stdout.readline())
    pids = [supervisor, *descendants(supervisor)]
    assert len(pids) == 3
    os.kill(owner.pid, number)
    owner.wait(20)
    owner.stdout.close()
    assert all_gone(pids)


def test_gone_with_its_supervisor(tmp_path):
    """If even the supervisor is killed, the server dies with it."""
    server = Server(command(), tmp_path / "log")
    server.wait_ready(20)
    below = descendants(server.pid)
    os.kill(server.pid, signal.SIGKILL)
    assert all_gone(below)
    server.stop()


def test_stubborn_server_is_killed(tmp_path):
    """A server that ignores SIGTERM is killed when its grace period is over."""
    start = time.monotonic()
    with running(command("stubborn"), tmp_path / "log", grace_s=0.3) as server:
        below = descendants(server.pid)
    assert all_gone(below, 0.5)
    assert time.monotonic() - start < 10


def test_server_that_dies(tmp_path):
    """A server that ends before it answers is an error with its status and its last words."""
    dies = ServerCommand(
        (sys.executable, "-c", "import sys; sys.exit('no such model')"), "http://127.0.0.1:9", "m"
    )
    with (
        pytest.raises(EngineError, match=r"ended with status 1 \(log: .*\)\nno such model"),
        running(dies, tmp_path / "log"),
    ):
        pass


def test_server_that_never_answers(tmp_path):
    """A deadline that passes is an error that names the address, and the process is gone."""
    sleeps = ServerCommand(
        (sys.executable, "-c", "import time; time.sleep(60)"), "http://127.0.0.1:9", "m"
    )
    with (
        pytest.raises(EngineError, match=r"does not answer at http://127.0.0.1:9/health after"),
        running(sleeps, tmp_path / "log", timeout_s=0.3),
    ):
        pass


def test_interpreter_that_does_not_exist(tmp_path):
    """A wrong interpreter path is reported by name."""
    missing = ServerCommand(("/no/python", "-m", "vllm"), "http://127.0.0.1:9", "m")
    with pytest.raises(EngineError, match="/no/python"), running(missing, tmp_path / "log"):
        pass
