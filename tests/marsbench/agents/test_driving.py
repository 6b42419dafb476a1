"""Driver openhands: what it refuses, in one line, before anything starts."""

from __future__ import annotations

import pytest

from marsbench.agents.driving import LiveAgents, task_of
from marsbench.engine import engine_kind
from marsbench.engine.kind import Opening
from marsbench.errors import ConfigError


@pytest.mark.parametrize(
    ("params", "line"),
    [
        ({"brain": "magic"}, "driver.params.brain: 'magic'; use scripted or model"),
        ({"brian": "model"}, "did you mean 'brain'"),
        ({"name": "openhand"}, "did you mean 'openhands'"),
        ({"max_turns": "many"}, "driver.params.max_turns: expected int, got 'many'"),
        ({"task_timeout_s": 0}, "driver.params.task_timeout_s: must be positive"),
    ],
)
def test_wrong_parameters(params, line):
    """A parameter that is none or cannot work is named, with what would be right."""
    with pytest.raises(ConfigError, match=line):
        LiveAgents(params)


def test_virtual_engines_are_refused():
    """Agents live in real time, so their engine must be a server."""
    with (
        engine_kind("sim").open({}, Opening()) as engine,
        pytest.raises(ConfigError, match="needs a real server: use --engine vllm"),
        LiveAgents({}).around(engine, Opening()),
    ):
        pass


def test_sessions_lead_to_tasks():
    """A session of a tasks workload has a task; a session of a trace has none."""
    assert task_of("tasks/ledger-0~2").task_id == "ledger-0"
    for session_id in ("swe-bench/x", "ledger-0"):
        with pytest.raises(ConfigError, match="use --workload tasks"):
            task_of(session_id)
