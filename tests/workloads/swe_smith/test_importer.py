"""SWE-smith trajectories."""

from __future__ import annotations

import json

import pytest

from marsbench.errors import TraceError
from marsbench.trace import io
from workloads.swe_agent.importer import IMPORTER as SWE_AGENT
from workloads.swe_smith.importer import IMPORTER


def test_content_decides_between_swe_smith_and_swe_agent(formats, tmp_path):
    """The synthetic instance may stand at the end of a long file, past what a sample holds."""
    document = {
        "trajectory": [formats.swe_agent_step("ls", "x" * 200_000, execution_time=0.1)],
        "history": formats.swe_agent_history(1, message_type="x"),
        "info": {},
        "replay_config": json.dumps(
            {"env": {"deployment": {"image": "swesmith.x86_64.a__b.0123abcd"}}}
        ),
    }
    smith, other = tmp_path / "a.traj", tmp_path / "b.traj"
    smith.write_text(json.dumps(document))
    other.write_text(json.dumps({**document, "replay_config": "{}"}))
    assert [i.sniff(io.sample(smith)) for i in (IMPORTER, SWE_AGENT)] == [True, False]
    assert [i.sniff(io.sample(other)) for i in (IMPORTER, SWE_AGENT)] == [False, True]


def test_execution_times_are_recorded(formats, tmp_path):
    """Each step's tool took the recorded time."""
    (session,) = IMPORTER.read(formats.writers["swe_smith"](tmp_path))
    assert [[tool.wall_s for tool in turn.tools] for turn in session.turns] == [[1.5], [1.5]]
    assert session.agent == "swe-smith"


def test_published_message_lists(formats, tmp_path):
    """Rows with messages (a list, or JSON text) are sessions; broken text names line and field."""
    messages = formats.swe_agent_history(2)
    row = {"instance_id": "org__repo.0123abcd.x", "model": "m", "messages": messages}
    file = tmp_path / "rows.jsonl"
    file.write_text(
        formats.jsonl([row, {**row, "traj_id": "t2", "messages": json.dumps(messages)}])
    )
    first, second = IMPORTER.read(file)
    assert (first.model, len(first.turns)) == ("m", 2)
    assert first.turns == second.turns
    file.write_text(formats.jsonl([{**row, "messages": "[{"}]))
    with pytest.raises(TraceError, match=r"rows\.jsonl:1: messages: not JSON"):
        list(IMPORTER.read(file))


def test_the_real_trajectory(real_data):
    """22 steps with measured times, prompts that only grow."""
    (session,) = IMPORTER.read(next((real_data / "fixtures" / "swe_smith").glob("*.gz")))
    assert len(session.turns) == 22
    assert all(turn.drop_context_to is None and turn.resent_output == 1.0 for turn in session.turns)
    assert max(tool.wall_s for turn in session.turns for tool in turn.tools) > 3
