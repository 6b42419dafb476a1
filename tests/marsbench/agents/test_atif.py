"""Trajectories are completed, written, read, and become scripts."""

from __future__ import annotations

import json

import atif as published
import pytest

from marsbench.agents import atif
from marsbench.agents.runner.openhands_steps import steps_of
from marsbench.errors import TraceError

CALL = {"tool_call_id": "c1", "function_name": "terminal", "arguments": {"command": "ls"}}
STEPS = [
    {"step_id": 1, "source": "user", "message": "go"},
    {"step_id": 2, "source": "agent", "message": [{"type": "text", "text": "Look."}],
     "tool_calls": [CALL]},
    {"step_id": 3, "source": "agent", "message": "Done."},
]  # fmt: skip


def test_completed_round_trip(tmp_path):
    """A trajectory gets its version, its tokens and its sums, and is read back."""
    tokens = [atif.TurnTokens(100, 20, 7), atif.TurnTokens(150, 100, 3)]
    made = atif.completed(
        {"agent": {"name": "a"}, "steps": STEPS},
        session_id="s", version="1", tokens=tokens, outcome={"passed": True},
    )  # fmt: skip
    atif.write(tmp_path / "t.atif.json", made)
    found = atif.read(tmp_path / "t.atif.json")
    assert found["schema_version"] == "ATIF-v1.8"
    assert found["steps"][1]["metrics"]["completion_tokens"] == 7
    assert found["final_metrics"]["total_cached_tokens"] == 120
    assert found["agent"] == {"name": "a", "version": "1"}


def test_others_can_read_it():
    """A trajectory is one by the format's published models, which take no field they do not know."""
    tokens = [atif.TurnTokens(100, 20, 7), atif.TurnTokens(150, 100, 3)]
    result = {"results": [{"source_call_id": "c1", "content": "a b"}]}
    steps = [STEPS[0], {**STEPS[1], "observation": result, "timestamp": "2026-01-01T00:00:00"}]
    made = atif.completed(
        {"agent": {"name": "a"}, "steps": [*steps, STEPS[2]]},
        session_id="s", version="1", tokens=tokens, outcome={"passed": True},
    )  # fmt: skip
    found = published.Trajectory.model_validate(made)
    assert found.final_metrics.total_completion_tokens == 10
    assert found.steps[1].tool_calls[0].arguments == {"command": "ls"}


def test_replies_become_a_script():
    """Agent steps are replies with their tokens, by length where nobody counted."""
    steps = [STEPS[0], {**STEPS[1], "metrics": {"completion_tokens": 9}}, STEPS[2]]
    script = atif.script_of({"steps": steps})
    assert [step.output_tokens for step in script] == [9, 2]
    call = script[0].message["tool_calls"][0]
    assert json.loads(call["function"]["arguments"]) == {"command": "ls"}
    assert script[0].message["content"] == "Look."


@pytest.mark.parametrize(
    ("text", "problem"),
    [("{", "JSON"), ("{}", "schema_version"), ('{"schema_version": "ATIF-v1.4"}', "steps")],
)
def test_what_is_no_trajectory_is_refused(tmp_path, text, problem):
    """A file that is no trajectory is named, with what is wrong."""
    (tmp_path / "t").write_text(text)
    with pytest.raises(TraceError, match=problem):
        atif.read(tmp_path / "t")


def test_parallel_calls_of_one_reply_are_one_step():
    """Events of an OpenHands conversation become steps: one a reply, with the results in it."""

    def action(call_id):
        return {
            "kind": "ActionEvent", "id": call_id, "llm_response_id": "r", "tool_name": "terminal",
            "tool_call_id": call_id, "thought": [{"type": "text", "text": "Hm."}],
            "tool_call": {"arguments": '{"command": "ls"}'},
        }  # fmt: skip

    def result(call_id):
        text = [{"type": "text", "text": f"of {call_id}"}]
        return {
            "kind": "ObservationEvent", "tool_call_id": call_id, "observation": {"content": text}
        }  # fmt: skip

    user = {"kind": "MessageEvent", "llm_message": {"role": "user", "content": "go"}}
    steps = steps_of([user, action("a"), action("b"), result("a"), result("b"), {"kind": "New"}])
    assert [step["source"] for step in steps] == ["user", "agent"]
    assert [call["tool_call_id"] for call in steps[1]["tool_calls"]] == ["a", "b"]
    results = steps[1]["observation"]["results"]
    assert [(r["source_call_id"], r["content"]) for r in results] == [("a", "of a"), ("b", "of b")]
