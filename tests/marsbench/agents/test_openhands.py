"""The real agents' packages, where they are installed (scripts/setup_openhands.sh)."""

from __future__ import annotations

import dataclasses
import json

import pytest
from agents_cell import GOOD, SmallTask, reply, shell
from typer.testing import CliRunner

from marsbench.agents.options import AgentOptions
from marsbench.agents.venv import PACKAGE, find_python
from marsbench.cli import app
from marsbench.engine import interpreters
from marsbench.errors import ConfigError, EngineError
from marsbench.trace.io import read_sessions

pytestmark = [pytest.mark.openhands, pytest.mark.slow]


def installed(agent: str = "openhands", python: str = "") -> bool:
    try:
        find_python(python, agent)
    except ConfigError:
        return False
    return True


needs_agents = pytest.mark.skipif(not installed(), reason="no .venv-openhands")
KINDS = {
    "openhands": ("openhands", ""),
    "mini-swe-agent": ("mini-swe-agent", ""),
    "openhands-cli": ("openhands-cli", ""),
    "openhands-ai": ("openhands", str(PACKAGE.parent / ".venv-openhands-ai")),
}
"""What is tried -> agent and environment; the last two have environments of their own."""


@pytest.mark.parametrize("kind", KINDS)
def test_real_agents_solve_tasks(run_cell, kind):
    """Two agents at once run their tools, one with an edit, and their sessions are told apart."""
    agent, python = KINDS[kind]
    if not installed(agent, python):
        pytest.skip(f"the environment of {kind} is not here (scripts/setup_openhands.sh)")
    edit = reply(
        "file_editor", 1, command="str_replace", path="{workspace}/state",
        old_str="bad", new_str="good",
    )  # fmt: skip
    edited = [*shell("cat state")[:1], edit, reply("finish", 2, message="done")]
    tasks = [SmallTask("edits", edited), SmallTask("writes", shell(*GOOD))]
    options = dataclasses.replace(AgentOptions(), name=agent, python=python)
    ran = run_cell(tasks, options=options)
    assert [result.reason for result in ran.outcome.results] == ["", ""]
    assert all(result.passed for result in ran.outcome.results)
    assert [result.turns for result in ran.outcome.results] == [3, 3]
    # mini-swe-agent says that it is done by a command; the others' last answer runs nothing.
    calls = 3 if agent == "mini-swe-agent" else 2
    assert [len(result.tools) for result in ran.outcome.results] == [calls, calls]
    assert len({headers["x-session-id"] for headers in ran.backend.headers}) == 2
    assert ran.outcome.left_behind == []


@needs_agents
def test_endpoint_failure_is_the_reason(run_cell):
    """An OpenHands agent whose endpoint fails has failed for that reason, at once."""
    from marsbench.gateway.backends.fake import FakeAnswer

    def plan(_number, body):
        return FakeAnswer(status=500) if len(body["messages"]) > 2 else FakeAnswer()

    ran = run_cell([SmallTask("t", shell(*GOOD))], plan, options=AgentOptions())
    assert "InternalServerError" in ran.outcome.results[0].reason
    assert ran.outcome.results[0].turns == 1


def with_vllm() -> bool:
    try:
        interpreters.find_python("vllm", "")
    except (ConfigError, EngineError):
        return False
    return True


@needs_agents
@pytest.mark.skipif(not with_vllm(), reason="no .venv-vllm")
def test_live_run_of_two_systems(tmp_path):
    """OpenHands agents around a real vLLM: all workspaces green, decisions equal under both systems,
    and the exported trace replays in virtual time."""
    run = tmp_path / "run"
    invoke(
        "run", "--driver", "openhands", "--workload", "tasks-quick", "--engine", "vllm", "--system",
        "vllm", "--system", "mars", "--sessions", "2", "--seeds", "1", "--out", run, "--quiet",
    )  # fmt: skip
    cells = json.loads((run / "summary.json").read_text())["cells"]
    assert [cell["system"] for cell in cells] == ["vllm", "mars"]
    for cell in cells:
        assert (cell["sessions"]["completed"], cell["sessions"]["failed"]) == (2, 0)
        assert cell["agents"]["tasks_passed"] == 2
        assert cell["agents"]["wrong_output_lengths"] == 0
        assert cell["agents"]["left_behind"] == []
    assert "same" in invoke("compare", run, "--decisions")
    trace, _ = sorted(run.glob("agents/*/trace.jsonl"))
    sessions = list(read_sessions(trace))
    calls = [call for session in sessions for turn in session.turns for call in turn.tools]
    assert all(call.cpu_s is not None and call.peak_bytes for call in calls)
    assert invoke("validate", run, "--tolerance", "100").count("tasks-quick") == 2


def invoke(*command) -> str:
    """A marsbench command that must succeed; what it prints."""
    done = CliRunner().invoke(app, [str(part) for part in command])
    assert done.exit_code == 0, done.output
    return done.output
