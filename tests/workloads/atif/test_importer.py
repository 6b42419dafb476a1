"""ATIF: steps that are LLM calls, sub-agents, and token counts or their estimate."""

from __future__ import annotations

import json

import pytest

from marsbench.core import plan_turns
from workloads.atif.importer import IMPORTER


@pytest.fixture
def document(formats):
    return json.loads((formats.fixtures / "atif.json").read_text())


def read(tmp_path, *documents):
    path = tmp_path / "trajectory.json"
    path.write_text(json.dumps(documents[0] if len(documents) == 1 else list(documents)))
    return list(IMPORTER.read(path))


def test_an_embedded_trajectory_is_a_sub_agent(tmp_path, document):
    """It hangs on the step whose result refers to it, and that call takes no time of its own."""
    (session,) = read(tmp_path, document)
    (child,) = session.turns[0].children
    assert child.session_id == "main/explore-1"
    assert [p.prompt_tokens for p in plan_turns(child)] == [600, 640]
    assert [(t.tool_class, t.wall_s) for t in session.turns[0].tools] == [("subagent", 0.0)]
    assert not session.turns[1].children


def test_steps_without_an_llm_call_are_no_turns(tmp_path, document):
    """A dispatched step (llm_call_count 0) and a copied one are context only."""
    (session,) = read(tmp_path, document)
    assert len(session.turns) == 3
    document["steps"][4]["is_copied_context"] = True
    assert [p.prompt_tokens for p in plan_turns(read(tmp_path, document)[0])] == [1000, 1180]


def test_without_metrics_tokens_come_from_text(tmp_path, document):
    """One step without metrics, and all prompts are estimates: 340 characters are 100 tokens."""
    del document["steps"][2]["metrics"]
    (session,) = read(tmp_path, document)
    prompts = [p.prompt_tokens for p in plan_turns(session)]
    assert prompts[0] == 100 + 4 + 5 + 4  # and 14 characters of the task, 4 of framing each
    assert prompts == sorted(prompts)
    assert session.shared_prefix.tokens == 104


def test_trajectories_of_one_run_may_share_a_name(tmp_path, document):
    """Equal ids are made different, as the format allows them."""
    del document["trajectory_id"]
    ids = [session.session_id for session in read(tmp_path, document, document)]
    assert ids == ["run-1", "run-1:1"]
