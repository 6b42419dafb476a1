"""A cell that runs in another interpreter gives what it gives in this one."""

from __future__ import annotations

import os
import pickle
import signal
import stat
import sys

import pytest

from marsbench.arrival.base import ArrivalPlan
from marsbench.core import Session, ToolCall, Turn, to_ps
from marsbench.engine.base import EngineConfig
from marsbench.engine.elsewhere import Elsewhere
from marsbench.engine.plan import CellPlan
from marsbench.engine.profile import load_profile
from marsbench.engine.sim.core import SimCore
from marsbench.engine.virtual import VirtualEngine
from marsbench.errors import EngineError, PolicyError
from marsbench.records import EventLog
from marsbench.registry import load
from marsbench.system import Policies
from marsbench.tools.modelled import Modelled

SIM = "marsbench.engine.sim.core.SimCore"
PROFILE = load_profile("tiny-cpu")


class Starving:
    """An admission policy of this test file that lets nobody in."""

    gates_continuations = False
    tick_s = None

    def on_event(self, event):
        pass

    def admit(self, pending, view, now_s):
        return ()


def plan(policies=None, num_blocks=400):
    """A fresh plan: forty sessions of three turns under MARS, with tools, on a small engine."""
    tool = ToolCall("pytest", "test", 0.4, cpu_s=0.3)
    turns = (Turn(900, 40, tools=(tool,)), Turn(200, 30, tools=(tool,)), Turn(50, 10))
    flags = EngineConfig(num_blocks=num_blocks, max_num_batched_tokens=512, max_num_seqs=16)
    context = PROFILE.policy_context(2, 0)
    return CellPlan(
        sessions=tuple(Session(f"s{k}", turns) for k in range(40)),
        arrivals=ArrivalPlan(tuple(to_ps(0.05 * k) for k in range(40))),
        policies=policies or load("SYSTEMS", "mars").build(context),
        flags=flags,
        cost=PROFILE.step_cost(),
        tools=Modelled(2),
        tool_cores=2,
    )


def here(of: CellPlan) -> tuple[EventLog, object]:
    log = EventLog()
    return log, VirtualEngine(SimCore).run(of, log)


def test_the_same_rows_names_and_counters():
    """Two cells in one child: rows, names, sessions and counters equal those of this process; the
    progress that was told there is heard here."""
    heard = []
    with Elsewhere(SIM, sys.executable) as engine:
        for _ in range(2):
            log = EventLog()
            outcome = engine.run(plan(), log, lambda done, _now: heard.append(done))
            ours, ran = here(plan())
            assert log.rows == ours.rows
            assert (log.strings, log.session_ids) == (ours.strings, ours.session_ids)
            assert outcome.stats == ran.stats
        child = engine._child
    assert heard.count(40) >= 2
    assert child.poll() is not None, "the child is gone with the engine"


def test_one_configuration_a_process():
    """Where a process holds one configuration, other flags get another process; equal ones do not."""
    with Elsewhere(SIM, sys.executable, one_configuration=True) as engine:
        pids = []
        for num_blocks in (400, 400, 500):
            engine.run(plan(num_blocks=num_blocks), EventLog())
            pids.append(engine._child.pid)
    assert pids[0] == pids[1] != pids[2]


def test_errors_of_the_child_are_ours():
    """A policy that stops the run there stops it here, with its own words; the next cell runs."""
    with Elsewhere(SIM, sys.executable) as engine:
        with pytest.raises(PolicyError, match=r"held .* back while nothing was active"):
            engine.run(plan(Policies(admission=Starving())), EventLog())
        assert engine.run(plan(), EventLog()).stats.steps > 0


def test_a_child_that_dies_is_one_error():
    """Killed from outside, or an interpreter that ends at once: an error with its last words."""
    with Elsewhere(SIM, sys.executable) as engine:
        engine.run(plan(), EventLog())
        os.kill(engine._child.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match="ended without a word"):
            engine.run(plan(), EventLog())


def test_an_interpreter_without_marsbench(tmp_path):
    """What the interpreter said is in the error."""
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho no module named anything >&2\n")
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    with (
        Elsewhere(SIM, str(script)) as engine,
        pytest.raises(EngineError, match="no module named anything"),
    ):
        engine.run(plan(), EventLog())


def test_it_travels_without_its_child():
    """A worker process gets the engine and starts a child of its own."""
    with Elsewhere(SIM, sys.executable) as engine:
        engine.run(plan(), EventLog())
        with pickle.loads(pickle.dumps(engine)) as copy:
            assert copy._child is None
            assert copy.run(plan(), EventLog()).stats.steps > 0
