"""A system inside the server: how it is started, and what a run hears of it."""

from __future__ import annotations

import json
import shlex
import stat
import sys
import threading
import time

import pytest

pytest.importorskip("zmq")

from marsbench.arrival.base import ArrivalPlan
from marsbench.core import Session, ToolCall, Turn
from marsbench.engine.base import EngineConfig
from marsbench.engine.kind import Opening
from marsbench.engine.link.inside import InsideLink
from marsbench.engine.link.outside import OutsideLink
from marsbench.engine.link.roster import Roster
from marsbench.engine.live.client import Client
from marsbench.engine.live.engine import LiveEngine
from marsbench.engine.live.fake_server import Behaviour
from marsbench.engine.live.kinds.vllm import Vllm
from marsbench.engine.live.options import LiveOptions
from marsbench.engine.live.wall import Site, run_live
from marsbench.engine.plan import CellPlan, Identity
from marsbench.events import Event, Kind
from marsbench.records import EventLog
from marsbench.system import Policies
from marsbench.tables import build_tables
from marsbench.tools.recorded import Recorded

CONFIG = EngineConfig(num_blocks=256, max_model_len=4096)
SESSIONS = [
    Session(f"s{k}", (Turn(100, 5, tools=(ToolCall("ls", "shell_read", 0.02),)), Turn(30, 3)))
    for k in range(2)
]
INSIDE = Identity("mars_impl.policy.MARS", "tiny-cpu", (("kv_target", 0.9),), 2, 7)


class Engine:
    """A thread that says over the link what an engine would of the turns it hears of."""

    def __init__(self, folder):
        self.heard = []
        self.roster = Roster(self.hear, lambda _session: None, self.now_ps)
        self.link = InsideLink(
            listen=f"ipc://{folder}/driver",
            publish=f"ipc://{folder}/engine",
            roster=self.roster,
            now_ps=self.now_ps,
            restarted=self.roster.clear,
        )
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def now_ps(self):
        return time.monotonic_ns() * 1000

    @property
    def ended(self):
        return sum(event.kind == Kind.SESSION_END for event in self.heard)

    def hear(self, event):
        self.heard.append(event)
        if event.kind != Kind.GPU_SUBMIT:
            return
        for kind, *args in (
            (Kind.GPU_SCHED_FIRST, 48, 52),
            (Kind.GPU_PREEMPT, 60, 4),
            (Kind.KV_PIN, 3, self.now_ps() + 10**12),
            (Kind.GPU_RESUME, 16, 84),
            (Kind.KV_UNPIN, 3, 0, 10**9),
        )[: 5 if event.turn == 0 else 2]:
            told = Event(self.now_ps() / 1e12, kind, event.session, event.turn, -1, tuple(args))
            self.link.event(told)

    def run(self):
        while not self.stopping.is_set():
            self.link.poll()
            self.link.flush(lambda: (100, 60, 7, 1, 0), now=False)
            time.sleep(0.002)

    def stop(self, *, sessions):
        """Once it has heard of so many ends: the last words of a run are on their way when it is over."""
        give_up_s = time.monotonic() + 10
        while self.ended < sessions and time.monotonic() < give_up_s:
            time.sleep(0.005)
        self.stopping.set()
        self.thread.join()
        self.link.close()


def test_what_the_engine_tells_is_on_record(tmp_path, fake):
    """First steps, preemptions and pins are the engine's own, once each; a resumption that was never
    told is put at the turn's end; telemetry shows the pinned blocks; the scheduler heard the tools."""
    link = OutsideLink(
        publish=f"ipc://{tmp_path}/driver", listen=f"ipc://{tmp_path}/engine", note=print
    )
    engine = Engine(tmp_path)
    log = EventLog()
    with fake(Behaviour(ttft_s=0.3, num_blocks=100)) as (url, _):
        run_live(
            CellPlan(
                sessions=tuple(SESSIONS),
                arrivals=ArrivalPlan((0, 0)),
                policies=Policies(),
                flags=CONFIG,
                tools=Recorded(),
            ),
            log,
            Site(
                connect=lambda clock: Client(url, "fake", clock=clock),
                salt="run/1",
                warm_up_turns=1,
                link=link,
            ),
        )
    engine.stop(sessions=2)
    report = link.report()
    link.close()
    rows = log.to_numpy()
    kinds = [Kind(kind).name for kind in rows[:, 1]]
    assert {name: kinds.count(name) for name in ("GPU_SCHED_FIRST", "GPU_PREEMPT", "GPU_RESUME")} == {
        "GPU_SCHED_FIRST": 4,
        "GPU_PREEMPT": 4,
        "GPU_RESUME": 4,
    }  # fmt: skip
    first = rows[rows[:, 1] == Kind.GPU_SCHED_FIRST]
    assert set(map(tuple, first[:, 5:7])) == {(48, 52)}
    assert kinds.count("KV_PIN") == kinds.count("KV_UNPIN") == 2
    assert report == {
        "engine_events": 14, "lost_messages": 0, "damaged_messages": 0, "outages": 0
    }  # fmt: skip
    stats = rows[rows[:, 1] == Kind.KV_STATS]
    assert stats[-1][5:8].tolist() == [60, 33, 7]
    assert build_tables(log).sessions["status"].tolist() == ["ok", "ok"]
    heard = [event.kind.name for event in engine.heard]
    for name, count in (("SESSION_ARRIVE", 2), ("TURN_READY", 4), ("TOOL_START", 2), ("TOOL_END", 2),
                        ("SESSION_END", 2)):  # fmt: skip
        assert heard.count(name) == count, name


@pytest.fixture
def interpreter(tmp_path):
    """A "Python with vLLM" that notes its PYTHONPATH and starts the fake server."""
    script = tmp_path / "python"
    script.write_text(
        "#!/bin/sh\n"
        'case "$1" in -c) exit 0;; esac\n'
        f'echo "$PYTHONPATH" >> "{tmp_path}/paths"\n'
        'while [ "$1" != --port ]; do shift; done\n'
        f'exec "{sys.executable}" -m marsbench.engine.live.fake_server --port "$2" '
        "--model marsbench --num-blocks 100 --ttft-ms 1\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    return script


def cell(engine, inside):
    """One cell of a system that schedules inside the engine."""
    log = EventLog()
    told = engine.run(
        CellPlan(
            sessions=tuple(SESSIONS),
            arrivals=ArrivalPlan((0, 0)),
            policies=Policies(scheduling=Stubborn()),
            flags=CONFIG,
            tools=Recorded(),
            identity=inside,
        ),
        log,
    )
    assert told.measured["live"]["link"]["engine_events"] == 0, "nobody speaks for a fake server"
    return build_tables(log).sessions["status"].tolist()


class Stubborn:
    """Any scheduling policy that is not the engine's own."""

    def on_event(self, event):
        pass


def test_server_is_started_with_the_system(interpreter, tmp_path, monkeypatch):
    """The scheduler class, the system, its parameters and the link's addresses are on the command
    line, and marsbench can be imported there. Equal cells share a server, other parameters get
    another. A server in which nobody answers the link still completes every session."""
    monkeypatch.chdir(tmp_path)
    options = LiveOptions(python=str(interpreter), warm_up_turns=0)
    with LiveEngine(Vllm(), options, Opening("run")) as engine:
        assert cell(engine, INSIDE) == ["ok", "ok"]
        assert cell(engine, INSIDE) == ["ok", "ok"]
        assert cell(engine, Identity("mars_impl.policy.MARS", "tiny-cpu")) == ["ok", "ok"]
    assert list(engine.described()) == ["server-0", "server-1"]
    words = shlex.split(engine.described()["server-0"])
    assert words[words.index("--scheduler-cls") + 1].endswith("plugin.ServedScheduler")
    told = json.loads(words[words.index("--additional-config") + 1])["marsbench"]
    assert told.pop("listen").startswith("ipc://")
    assert told.pop("publish").startswith("ipc://")
    assert told == {
        "system": "mars_impl.policy.MARS", "profile": "tiny-cpu", "params": {"kv_target": 0.9},
        "tool_cores": 2, "seed": 7,
    }  # fmt: skip
    assert str(tmp_path) in (tmp_path / "paths").read_text()
