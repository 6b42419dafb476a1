"""MARS inside a real vLLM server on the CPU, joined to the control plane in the driver."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from marsbench.arrival.base import ArrivalPlan
from marsbench.core import Session, ToolCall, Turn, to_ps
from marsbench.engine.kind import Opening
from marsbench.engine.live.engine import LiveEngine
from marsbench.engine.live.kinds.vllm import Vllm
from marsbench.engine.live.options import LiveOptions
from marsbench.events import Kind
from marsbench.experiment.wiring import Setup, plan_cell, system_named
from marsbench.records import EventLog
from marsbench.tables import build_tables
from marsbench.tools.recorded import Recorded

pytestmark = pytest.mark.vllm

FLAGS = {"num_blocks": 40, "max_num_seqs": 8, "max_model_len": 4096}
SETUP = Setup("vllm", "tiny-cpu", tool_cores=2, tools="recorded", engine_flags=FLAGS)


@pytest.fixture(scope="module")
def mars_engine(tmp_path_factory):
    """One server with MARS inside for all tests here."""
    from marsbench.engine.vllm.runtime import installed_version

    if installed_version() is None:
        pytest.skip("vLLM is not installed")
    options = LiveOptions(python=sys.executable, device="cpu", warm_up_turns=2)
    logs = tmp_path_factory.mktemp("logs")
    notes: list[str] = []
    with LiveEngine(Vllm(), options, Opening("test", logs, notes.append)) as engine:
        engine.test_notes = notes
        yield engine


def tool(seconds: float) -> ToolCall:
    return ToolCall("pytest", "test", seconds)


def play(engine, sessions, tools=None):
    """A cell of MARS on the server: its log and what the engine told of it."""
    times = tuple(to_ps(0.3 * k) for k in range(len(sessions)))
    plan = plan_cell(SETUP, system_named("mars"), {}, sessions, ArrivalPlan(times), seed=0)
    log = EventLog()
    outcome = engine.run(replace(plan, tools=tools or plan.tools), log)
    return log, outcome.measured["live"]


def test_the_same_policies_inside_and_outside(mars_engine):
    """Five sessions, more than the cache holds: all end, the engine tells each turn's first step
    once and MARS's pins, no message is lost; a second run on the same server begins anew."""
    for _ in range(2):
        sessions = [
            Session(f"s{k}", (Turn(1100, 12, tools=(tool(0.8),)), Turn(200, 12, tools=(tool(0.5),)),
                              Turn(150, 8)))
            for k in range(5)
        ]  # fmt: skip
        log, told = play(mars_engine, sessions)
        kinds = [Kind(kind).name for kind in log.to_numpy()[:, 1]]
        assert build_tables(log).sessions["status"].tolist() == ["ok"] * 5
        assert kinds.count("GPU_SCHED_FIRST") == kinds.count("GPU_END") == 15
        assert kinds.count("KV_PIN") > 0
        report = told["link"]
        assert report["engine_events"] >= 15 * 3
        assert report["lost_messages"] == report["damaged_messages"] == report["outages"] == 0
    assert len(mars_engine.described()) == 1


def test_a_control_plane_that_falls_silent(mars_engine):
    """While the driver says nothing for four seconds the scheduler goes on, warning once; when it
    speaks again the scheduler listens again."""
    link_of = {}

    class Muting(Recorded):
        """Mutes the driver when the first tool starts, lets it speak from the second on."""

        def start(self, handle, demand, now_ps):
            outlet = mars_engine._link._outlet
            if not link_of:
                link_of["send"] = outlet.send
                outlet.send = lambda _message: None
            else:
                outlet.send = link_of["send"]
            super().start(handle, demand, now_ps)

    turns = (Turn(600, 8, tools=(tool(4.5),)), Turn(100, 8, tools=(tool(2.5),)), Turn(100, 8))
    log, _ = play(mars_engine, [Session("s", turns)], Muting())
    assert build_tables(log).sessions["status"].tolist() == ["ok"]
    said = mars_engine._running[1].log_path.read_text()
    assert said.count("control plane has been silent") == 1
    assert said.count("control plane is back") == 1
