"""Ctrl-C and SIGKILL in the middle of a live run leave no tool and no server running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from marsbench.engine.live.supervisor import descendants

RUN = """
import sys
from pathlib import Path
from marsbench.arrival.base import ArrivalPlan
from marsbench.core import Session, ToolCall, Turn
from marsbench.engine.base import EngineConfig
from marsbench.engine.live.client import Client
from marsbench.engine.live.server import ServerCommand, free_port, running
from marsbench.engine.live.wall import Site, run_live
from marsbench.engine.plan import CellPlan
from marsbench.records import EventLog
from marsbench.system import Policies
from marsbench.tools.process import Process

port = free_port()
argv = (sys.executable, "-m", "marsbench.engine.live.fake_server", "--port", str(port))
command = ServerCommand(argv, f"http://127.0.0.1:{port}", "fake")
burn = ToolCall("build", "build", 60.0, cpu_s=60.0, cores=2.0)
with running(command, Path(sys.argv[1])):
    plan = CellPlan(
        sessions=(Session("s", (Turn(20, 2, tools=(burn,)), Turn(5, 2))),),
        arrivals=ArrivalPlan((0,)),
        policies=Policies(),
        flags=EngineConfig(num_blocks=99),
        tools=Process(prestarted=1),
    )
    run_live(plan, EventLog(), Site(lambda clock: Client(command.url, "fake", clock=clock)))
"""


def living(pids: list[int]) -> list[int]:
    """Those of the processes that still run."""
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.append(pid)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left(tmp_path, number):
    """The run is stopped while a tool burns on two cores: supervisor, server and both burners end."""
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path / "log")], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 40
    while len(pids := descendants(run.pid)) < 4 and time.monotonic() < deadline:
        assert run.poll() is None
        time.sleep(0.05)
    assert len(pids) >= 4, "supervisor, server, burner and its second process"
    os.kill(run.pid, number)
    run.wait(20)
    deadline = time.monotonic() + 10
    while living(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert living(pids) == []
