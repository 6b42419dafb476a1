"""mini-SWE-agent trajectories."""

from __future__ import annotations

import json

import pytest

from marsbench.core import plan_turns
from marsbench.errors import TraceError
from workloads.mini_swe_agent.importer import IMPORTER
from workloads.tool_class import TYPICAL_WALL_S


def answer(content, commands, time_s, usage=None):
    extra = {"actions": [{"command": c} for c in commands], "timestamp": time_s}
    if usage:
        extra["response"] = {"usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}}
    return {"role": "assistant", "content": content, "extra": extra}


def observation(text, time_s, code=0):
    return {"role": "user", "content": text, "extra": {"returncode": code, "timestamp": time_s}}


def read(tmp_path, messages):
    document = {
        "trajectory_format": "mini-swe-agent-1.1",
        "info": {"config": {"model": {"model_name": "m", "model_kwargs": {"api_key": "secret"}}}},
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "t"},
            *messages,
        ],
    }
    (tmp_path / "a.traj.json").write_text(json.dumps(document))
    (session,) = IMPORTER.read(tmp_path / "a.traj.json")
    return session


def test_recorded_usage_and_times(tmp_path):
    """Usage gives the tokens; answer at 10 s, observation at 13.5 s."""
    session = read(
        tmp_path,
        [
            answer("a", ["pytest"], 10.0, (500, 20)),
            observation("x" * 34, 13.5, code=1),
            answer("b", ["ls"], 15.0, (560, 9)),
            {"role": "exit", "content": "", "extra": {"exit_status": "Submitted"}},
        ],
    )
    # The system prompt of one character is a shared prefix of 1 + 4 framing tokens.
    assert [tuple(plan) for plan in plan_turns(session)] == [(500, 5, 20), (560, 520, 9)]
    (tool,) = session.turns[0].tools
    assert (tool.tool_class, tool.wall_s, tool.error, tool.result_tokens) == ("test", 3.5, True, 10)
    assert session.model == "m"


def test_calls_of_one_answer_share_their_sum(tmp_path):
    """All are stamped at the end: the first call carries the 4 s, the turn still takes 4 s."""
    session = read(
        tmp_path,
        [answer("a", ["pytest", "ls"], 10.0), observation("x", 14.0), observation("y", 14.0)],
    )
    assert [(tool.tool_class, tool.wall_s) for tool in session.turns[0].tools] == [
        ("test", 4.0),
        ("shell_read", 0.0),
    ]


def test_message_lists_take_commands_from_their_fences(formats, tmp_path):
    """v0 files have no times: the median of the class is assumed."""
    (session,) = IMPORTER.read(formats.writers["mini_swe_agent"](tmp_path))
    assert [tool.wall_s for tool in session.turns[0].tools] == [TYPICAL_WALL_S["test"]]
    # (34 + 4*3.4) and (68 + 4*3.4) characters at 3.4 a token.
    assert plan_turns(session)[0].prompt_tokens == 14 + 24


def test_a_list_without_answers_is_an_error(tmp_path):
    """File and field are named."""
    (tmp_path / "a.traj.json").write_text(json.dumps([{"role": "user", "content": "t"}]))
    with pytest.raises(TraceError, match=r"a\.traj\.json: messages"):
        list(IMPORTER.read(tmp_path / "a.traj.json"))
