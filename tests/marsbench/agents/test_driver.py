"""Cells of live agents, with an agent that needs no packages and an engine that invents tokens."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from agents_cell import GOOD, SmallTask, shell

from marsbench.agents import atif
from marsbench.agents.atif import recorded_script
from marsbench.agents.decisions import compare_decisions
from marsbench.agents.keeping import decisions_of, keep_cell, report
from marsbench.agents.options import AgentOptions
from marsbench.agents.runner import processes, room
from marsbench.events import Status
from marsbench.gateway.backends.fake import FakeAnswer
from marsbench.tables import build_tables
from marsbench.trace.io import read_sessions

FAILED = FakeAnswer(status=500)


def left_over(ran) -> list[str]:
    """Processes, folders and mounts of a cell that are still there."""
    marked = [str(pid) for result in ran.outcome.results for pid in processes.marked(result.name)]
    folder = ran.outcome.trace.parent
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if " /mnt " in line]
    return [*marked, *([str(folder)] if folder.exists() else []), *mounts]


def test_agents_finish_and_are_judged_by_the_check(run_cell):
    """A task is solved if its check says so, whatever the agent says."""
    tasks = [SmallTask("good", shell(*GOOD)), SmallTask("liar", shell("cat state"))]
    ran = run_cell(tasks)
    good, liar = ran.outcome.results
    assert (good.done, good.passed, good.status) == (True, True, Status.OK)
    assert (liar.done, liar.passed, liar.status) == (True, False, Status.ERROR)
    assert "tests fail" in liar.reason
    tables = build_tables(ran.log)
    assert tables.sessions.status.tolist() == ["ok", "error"]
    assert tables.sessions.num_turns.tolist() == [3, 2]
    assert left_over(ran) == []


def test_engine_generates_as_many_tokens_as_the_script_says(run_cell):
    """The engine is asked for the script's length and gets the agent's own prompt."""
    ran = run_cell([SmallTask("t", shell(*GOOD))])
    assert [body["max_tokens"] for body in ran.backend.bodies] == [4, 4, 4]
    assert all(body["ignore_eos"] for body in ran.backend.bodies)
    assert [len(body["messages"]) for body in ran.backend.bodies] == [2, 4, 6]
    assert ran.outcome.wrong_lengths == 0


def test_tools_are_measured(run_cell):
    """Each call's CPU time and peak memory are those of its processes."""
    burn = 'python3 -c "b = bytearray(60_000_000); sum(i * i for i in range(2_000_000))"'
    ran = run_cell([SmallTask("t", shell("true", burn, *GOOD))])
    quick, slow = ran.outcome.results[0].tools[:2]
    assert slow["cpu_s"] > 0.05 > quick["cpu_s"]
    assert slow["peak_bytes"] > 60_000_000 > quick["peak_bytes"]
    assert slow["end_ns"] > slow["start_ns"] >= slow["asked_ns"]
    calls = build_tables(ran.log).calls
    assert calls.name.tolist() == ["terminal"] * 4  # finish is no tool call
    assert calls.cpu_s[1] == pytest.approx(slow["cpu_s"])


def test_latency_counts_from_arrival_to_the_agent_s_end(run_cell):
    """In a closed loop of one, each session's latency is its own time, and the parts add up."""
    ran = run_cell([SmallTask(f"t{k}", shell("sleep 0.3", *GOOD)) for k in range(2)], closed_loop=1)
    sessions = build_tables(ran.log).sessions
    assert (sessions.latency_s > 0.3).all()
    assert sessions.arrival_s[1] >= sessions.end_s[0]
    parts = sessions[
        [
            c
            for c in sessions
            if c
            in {
                f"{n}_s"
                for n in (
                    "backlog",
                    "queue",
                    "prefill",
                    "recompute",
                    "decode",
                    "tool_queue",
                    "tool",
                    "other",
                )
            }
        ]
    ].sum(axis=1)
    assert parts.to_numpy() == pytest.approx(sessions.latency_s.to_numpy())


def test_two_runs_decide_the_same(run_cell):
    """A scripted run makes the same requests and calls in the same order, every time."""
    tasks = [SmallTask(f"t{k}", shell("date +%N", *GOOD)) for k in range(3)]
    one, other = (decisions_of(run_cell(tasks).outcome) for _ in range(2))
    agreement = compare_decisions(one, other)
    assert agreement.same
    assert agreement.decisions == 3 * (4 + 3)  # requests and calls


def test_killed_agent_fails_alone(run_cell):
    """An agent whose process is killed has failed, for that reason; the others finish."""
    tasks = [SmallTask("dies", shell("sleep 600 & kill -9 $PPID")), SmallTask("t", shell(*GOOD))]
    ran = run_cell(tasks)
    dead, other = ran.outcome.results
    assert "SIGKILL" in dead.reason
    assert dead.status == Status.ERROR
    assert other.passed
    assert ran.outcome.left_behind == []
    assert left_over(ran) == []


def test_hanging_tool_ends_with_its_task(run_cell):
    """A task that is not done in time is ended with its tools, and is a timeout."""
    start_s = time.monotonic()
    ran = run_cell(
        [SmallTask("hangs", shell("sleep 600")), SmallTask("t", shell(*GOOD))], timeout_s=4
    )
    hung, other = ran.outcome.results
    assert hung.status == Status.TIMEOUT
    assert "not done 4 s after its arrival" in hung.reason
    assert other.passed
    assert time.monotonic() - start_s < 60
    assert left_over(ran) == []


def test_endpoint_that_fails_in_the_middle(run_cell):
    """A task whose endpoint fails has failed, for that reason; the others finish."""

    def plan(_number, body):
        doomed = "doomed" in str(body["messages"][1])
        return FAILED if doomed and len(body["messages"]) > 2 else FakeAnswer()

    tasks = [SmallTask("d", shell(*GOOD), "doomed"), SmallTask("t", shell(*GOOD))]
    ran = run_cell(tasks, plan)
    doomed, other = ran.outcome.results
    assert "answers 500" in doomed.reason
    assert doomed.turns == 1
    assert other.passed
    assert build_tables(ran.log).sessions.status.tolist() == ["error", "ok"]


@pytest.mark.parametrize("fault", ["cut", "garbage-event"])
def test_endpoint_that_breaks_off(run_cell, fault):
    """A reply that ends in the middle fails its task, with a reason; the others finish."""

    def plan(_number, body):
        doomed = "doomed" in str(body["messages"][1])
        return FakeAnswer(fault=fault) if doomed and len(body["messages"]) > 2 else FakeAnswer()

    tasks = [SmallTask("d", shell(*GOOD), "doomed"), SmallTask("t", shell(*GOOD))]
    ran = run_cell(tasks, plan)
    doomed, other = ran.outcome.results
    assert "answers 502" in doomed.reason
    assert other.passed
    assert left_over(ran) == []


def test_endpoint_that_never_answers(run_cell):
    """A task whose endpoint says nothing is ended by its time limit; the others finish."""

    def plan(_number, body):
        doomed = "doomed" in str(body["messages"][1])
        return FakeAnswer(fault="hang") if doomed and len(body["messages"]) > 2 else FakeAnswer()

    tasks = [SmallTask("d", shell(*GOOD), "doomed"), SmallTask("t", shell(*GOOD))]
    ran = run_cell(tasks, plan, timeout_s=5)
    doomed, other = ran.outcome.results
    assert doomed.status == Status.TIMEOUT
    assert other.passed
    assert left_over(ran) == []


def test_tool_that_hangs_is_ended_alone(run_cell):
    """A call that takes longer than allowed is killed and its agent goes on."""
    options = AgentOptions(name="plain", python=sys.executable, tool_timeout_s=1.0)
    ran = run_cell([SmallTask("hangs", shell("sleep 600; true", *GOOD))], options=options)
    (result,) = ran.outcome.results
    assert result.passed
    assert [call["timed_out"] for call in result.tools] == [True, False, False]
    assert left_over(ran) == []


def test_tools_that_stay_are_removed(run_cell):
    """What a tool leaves running, in a session of its own and with signals ignored, ends with the task."""
    stays = "(trap '' TERM HUP INT; setsid nohup sleep 600 >/dev/null 2>&1 &)"
    ran = run_cell([SmallTask("stays", shell(stays, *GOOD))])
    assert ran.outcome.results[0].passed
    assert ran.outcome.left_behind == []
    assert left_over(ran) == []


def test_killed_worker_fails_its_agents_alone(run_cell):
    """Agents of a worker that is killed have failed, for that reason; those of others finish."""
    kill = "kill -9 $(ps -o ppid= -p $PPID)"
    options = AgentOptions(name="plain", python=sys.executable, agents_per_worker=1)
    ran = run_cell([SmallTask("d", shell(kill)), SmallTask("t", shell(*GOOD))], options=options)
    dead, other = ran.outcome.results
    assert "the worker of its agent ended" in dead.reason
    assert other.passed
    assert left_over(ran) == []


def test_killed_driver_leaves_nothing(tmp_path):
    """When marsbench itself is killed, its agents, their tools and their folders go with it."""
    with subprocess.Popen(
        [sys.executable, "-c", ALONE, str(tmp_path)],
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        patience((tmp_path / "begun").exists)
        process.kill()
    patience(
        lambda: not any(path.name.startswith("marsbench-agents") for path in tmp_path.iterdir())
    )
    wanted = str(tmp_path).encode()
    patience(lambda: not any(wanted in cmdline for cmdline in cmdlines()))


ALONE = """
import sys
from agents_cell import SmallTask, run_cell, shell
tasks = [SmallTask("t", shell(f"touch {sys.argv[1]}/begun; sleep 600; : {sys.argv[1]}"))]
run_cell.__wrapped__()(tasks)
"""


def cmdlines() -> list[bytes]:
    """Command lines of all processes but this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        if path.parent.name != str(os.getpid()):
            with contextlib.suppress(OSError):
                found.append(path.read_bytes())
    return found


def patience(condition) -> None:
    """Wait until something holds; a minute is enough on any machine."""
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)  # of another process: nobody tells us
    raise AssertionError("it did not come to hold within a minute")


@pytest.mark.skipif(not room.permitted(), reason="needs mounts of one's own (root)")
def test_workspace_that_fills(run_cell):
    """A workspace has the size that was asked for; one that is full fails its task."""
    fill = "dd if=/dev/zero of=big bs=1M count=100"
    ran = run_cell(
        [SmallTask("fills", shell(fill, *GOOD)), SmallTask("t", shell(*GOOD))], limit_mib=4
    )
    full, other = ran.outcome.results
    assert full.reason == "the workspace is full (4 MiB)"
    assert other.passed
    assert left_over(ran) == []


@pytest.mark.skipif(not room.permitted(), reason="needs mounts of one's own (root)")
def test_agents_see_one_path(run_cell):
    """All agents see their own workspace at the same path, so that their prompts can be shared."""
    ran = run_cell([SmallTask(f"t{k}", shell("pwd", *GOOD)) for k in range(2)])
    prompts = {str(body["messages"][1]) for body in ran.backend.bodies}
    assert len(prompts) == 1
    assert all(result.passed for result in ran.outcome.results)


def test_kept_files_tell_what_happened(run_cell, tmp_path):
    """Results, tool calls, decisions and trajectories of a cell can be read from its folder."""
    options = AgentOptions(name="plain")
    ran = run_cell(
        [SmallTask("w/t", shell(*GOOD))],
        keep=lambda outcome, log: keep_cell(tmp_path, outcome, log, options, "vllm"),
    )
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == [
        "decisions.jsonl", "tasks.jsonl", "tools.jsonl", "trace.jsonl", "w--t.atif.json",
    ]  # fmt: skip
    trajectory = atif.read(tmp_path / "w--t.atif.json")
    assert trajectory["final_metrics"]["total_completion_tokens"] == 12
    script = atif.script_of(trajectory)
    assert [step.output_tokens for step in script] == [4, 4, 4]
    assert script[-1].message["tool_calls"][0]["function"]["name"] == "finish"
    (session,) = read_sessions(tmp_path / "trace.jsonl")
    assert session.session_id == "w/t"
    assert [len(turn.tools) for turn in session.turns] == [1, 1, 0]
    assert recorded_script(tmp_path, "w/t") == script
    found = report(ran.outcome, options)
    assert found["tasks_passed"] == 1
    assert found["tool_calls"] == 2
    assert found["failures"] == {}
