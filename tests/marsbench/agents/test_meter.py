"""Tool calls are measured by their work and not by the time they took."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys

import pytest
from agents_cell import GOOD, SmallTask, shell

from marsbench.agents.cell import AgentOutcome, Result
from marsbench.agents.export import alone_s, exported
from marsbench.agents.runner.meter import States
from marsbench.agents.runner.niceness import NicerProcesses, group_niceness
from marsbench.core import to_ps
from marsbench.events import Kind
from marsbench.records import ROW, EventLog
from marsbench.trace.schema import decode_session

MS = 1_000_000


def test_states_of_a_call():
    """Time is that of threads that can run, of waiting, and of what comes after the last process."""
    states = States(0)
    for at_ms, runnable, alive in [
        (0, 0, False), (100, 2, True), (200, 2, True), (300, 0, True), (400, 1, True),
        (500, 0, False), (600, 0, False),
    ]:  # fmt: skip
        states.look(at_ms * MS, runnable, alive=alive)
    assert states.busy_s == pytest.approx(0.35)  # half of the time in which it ended
    assert states.idle_s == pytest.approx(0.1)
    assert states.late_s == pytest.approx(0.15)
    assert states.cores == pytest.approx((2 * 0.2 + 1 * 0.15) / 0.35)


def test_a_pause_is_not_the_end():
    """What seemed to be over and goes on has waited meanwhile."""
    states = States(0)
    states.look(100 * MS, 1, alive=False)
    states.look(200 * MS, 0, alive=False)
    states.look(300 * MS, 1, alive=False)
    assert (states.busy_s, states.idle_s) == (pytest.approx(0.25), pytest.approx(0.05))
    assert states.late_s == 0


def tool(**changed):
    """A call that had to share a processor: 1 s of work in 2 s, then 0.4 s until the agent saw it."""
    return {
        "turn": 0, "start_ns": 0, "end_ns": 2400 * MS, "cpu_s": 1.0, "cores": 1.0, "io_s": 0.0,
        "late_s": 0.4, "asked_ns": 0, "own_cpu_s": 0.05, "own_delay_s": 0.0, "peak_bytes": 7, **changed,
    }  # fmt: skip


def test_time_alone_is_not_stretched():
    """Alone, a call takes its work, its waiting, and polling by its own length."""
    assert alone_s(tool()) == pytest.approx(1.2)
    assert alone_s(tool(cores=2.0)) == pytest.approx(0.6)
    assert alone_s(tool(io_s=1.0)) == pytest.approx(2.4)
    assert alone_s(tool(cpu_s=0.0, late_s=2.4)) > 0


def outcome(folder, lines, *tools):
    """A cell of one session with a gateway's trace."""
    (folder / "t").write_text(lines)
    result = Result("w/t", "t", "name", arrival_ns=500 * MS, tools=list(tools))
    return AgentOutcome(
        [result], [], {}, 0.0, same_path=True, wrong_lengths=0, left_behind=[], wall_s=1.0,
        trace=folder / "t", others_cpu_share=None, start_ns=0,
    )  # fmt: skip


def log():
    """A cell in which each of two turns takes half a second."""
    made = EventLog()
    made.session_ids = ["w/t"]
    for turn, ready_s in ((0, 1.0), (1, 3.3)):
        for kind, time_s in ((Kind.TURN_READY, ready_s), (Kind.GPU_END, ready_s + 0.5)):
            row = [to_ps(time_s), int(kind), 0, turn, -1]
            made.rows.extend(row + [0] * (ROW - len(row)))
    return made


TURN = (
    '{"new_input_tokens": 5, "output_tokens": 2, "think_s": 3.0,'
    ' "tools": [{"name": "terminal", "class": "test", "wall_s": 9.0, "result_tokens": 4}]}'
)
LINE = (
    '{"trace_version": 1, "session_id": "name", "agent": "a", "model": "m", "arrival_s": 2.5,'
    f' "turns": [{TURN}, {TURN}]}}\n'
)


def test_exported_calls_are_the_measured_ones(tmp_path):
    """The trace has work, parallelism and memory of each call, and the agent's own time."""
    first = tool(cores=2.0, asked_ns=1800 * MS)
    second = tool(turn=1, asked_ns=4000 * MS, own_delay_s=0.05)
    measured = outcome(tmp_path, LINE, first, second)
    (line,) = exported(measured, log())
    session = decode_session(json.dumps(line).encode())
    assert session.session_id == "w/t"
    assert session.arrival_s == pytest.approx(0.5)
    (first,), (second,) = (turn.tools for turn in session.turns)
    assert (first.cpu_s, first.cores, first.peak_bytes) == (1.0, 2.0, 7)
    assert first.wall_s == pytest.approx(0.6)
    assert second.wall_s == pytest.approx(1.2)
    assert first.result_tokens == 4
    # 0.5 s from arrival to the request and 0.3 s to the first call; then 0.9 s and 0.2 s, of which the
    # agent waited 0.05 s for a processor.
    assert session.turns[0].think_s == pytest.approx(0.8 + 1.05)
    assert session.turns[1].think_s == 0


def test_calls_that_were_not_measured_are_named(tmp_path):
    """A turn whose calls were not all measured keeps the gateway's times and is named."""
    (line,) = exported(outcome(tmp_path, LINE, tool()), EventLog())
    assert line["x_unmeasured_turns"] == [1]
    assert line["turns"][1]["tools"][0]["wall_s"] == 9.0


def test_live_calls_say_what_they_used(run_cell, tmp_path):
    """Of real calls: one that burns has work and no waiting, one that sleeps the reverse."""
    burn = 'python3 -c "sum(i * i for i in range(6_000_000))"'
    kept = []
    ran = run_cell(
        [SmallTask("t", shell(burn, "sleep 0.6", *GOOD))],
        keep=lambda found, log: kept.extend(exported(found, log)),
    )
    burning, sleeping = ran.outcome.results[0].tools[:2]
    assert burning["io_s"] < burning["cpu_s"]
    assert burning["cores"] < 1.5
    assert sleeping["cpu_s"] < 0.3 < sleeping["io_s"]
    assert all(call["own_cpu_s"] >= 0 for call in ran.outcome.results[0].tools)
    assert [row["peak_bytes"] for row in kept[0]["turns"][0]["tools"]] == [burning["peak_bytes"]]


def test_sessions_become_nicer_and_are_restored():
    """A call in a session of its own is nicer there too, and its shell is not afterwards."""
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True
    ) as child:
        before, own = group_niceness(child.pid), os.getpriority(os.PRIO_PROCESS, 0)
        niceness = NicerProcesses()
        niceness.add([child.pid], 3)
        assert os.getpriority(os.PRIO_PROCESS, child.pid) == min(19, own + 3)
        if before is not None:
            assert group_niceness(child.pid) == min(19, before + 3)
        niceness.restore()
        assert group_niceness(child.pid) == before
        with contextlib.suppress(BrokenPipeError):
            child.communicate(b"\n")
