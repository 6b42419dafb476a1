"""OpenHands V0 recordings."""

from __future__ import annotations

import gzip
import json

import pytest

from marsbench.core import plan_turns
from marsbench.errors import TraceError
from marsbench.trace import io
from workloads.openhands_v0.importer import IMPORTER


def write(tmp_path, content):
    file = tmp_path / "output.jsonl"
    file.write_text(content)
    return file


def test_calls_join_usage_by_response_id(formats, tmp_path):
    """Tools run from action to observation; the pause is what latency leaves of the rest."""
    (session,) = IMPORTER.read(write(tmp_path, formats.jsonl([formats.openhands_v0_row()])))
    assert [plan[::2] for plan in plan_turns(session)] == [(1000, 20), (1100, 30), (1200, 10)]
    tools = [
        (t.name, t.tool_class, t.wall_s, t.error) for turn in session.turns for t in turn.tools
    ]
    assert tools == [("execute_bash", "test", 2.5, True), ("execute_bash", "git", 0.5, False)]
    # 5.5 -> 9.0 with 3.0 of latency; 9.5 -> 12.0 with 2.0.
    assert [turn.think_s for turn in session.turns] == [0.5, 0.5, 0.0]
    assert (session.agent, session.model) == ("CodeActAgent", "m")


def test_system_prompt_and_tools_are_shared_by_text(formats, tmp_path):
    """628 of 928 characters of the first prompt: the same share of its 1,000 tokens."""
    rows = [formats.openhands_v0_row(), {**formats.openhands_v0_row(), "instance_id": "other"}]
    rows[1]["metrics"]["token_usages"][0]["prompt_tokens"] = 1050
    first, second = IMPORTER.read(write(tmp_path, formats.jsonl(rows)))
    assert first.shared_prefix.tokens == 1000 * 625 // 925
    assert second.shared_prefix == first.shared_prefix


def test_older_rows_hold_pairs(formats, tmp_path):
    """(action, observation) pairs give the session of the flat list."""
    row = formats.openhands_v0_row()
    flat = row["history"]
    pairs = [[flat[0], flat[1]], [flat[2], flat[3]], [flat[4], flat[5]], [flat[6]]]
    (paired,) = IMPORTER.read(write(tmp_path, formats.jsonl([{**row, "history": pairs}])))
    (expected,) = IMPORTER.read(write(tmp_path, formats.jsonl([row])))
    assert paired == expected


def test_a_bare_trajectory_uses_the_usage_in_its_events(formats, tmp_path):
    """Without a row the responses' own usage counts; where there is none, text does."""
    events = formats.openhands_v0_row()["history"]
    file = tmp_path / "trajectory.json"
    for event, usage in zip(events[2:7:2], ((900, 5), (1000, 6), (1100, 7)), strict=True):
        event["tool_call_metadata"]["model_response"]["usage"] = {
            "prompt_tokens": usage[0],
            "completion_tokens": usage[1],
        }
    file.write_text(json.dumps(events))
    assert IMPORTER.sniff(io.sample(file))
    (session,) = IMPORTER.read(file)
    assert [plan.prompt_tokens for plan in plan_turns(session)] == [900, 1000, 1100]
    for event in events:
        event.pop("tool_call_metadata", None)
    file.write_text(json.dumps(events))
    (session,) = IMPORTER.read(file)
    # (600 + 25 + 300) characters / 3.4 = 273 tokens; 9 characters of answer (3) and 34 of result.
    assert [plan.prompt_tokens for plan in plan_turns(session)][:2] == [273, 273 + 3 + 10]


def test_a_long_patch_does_not_hide_the_format(formats, tmp_path):
    """A row whose history lies past the sample's head is read on."""
    row = formats.openhands_v0_row()
    row["test_result"]["git_patch"] = "+" * 100_000
    assert IMPORTER.sniff(io.sample(write(tmp_path, formats.jsonl([row]))))


def test_condensation_keeps_only_the_shared_prefix(formats, tmp_path):
    """After a condensation the next prompt reuses system prompt and tools."""
    row = formats.openhands_v0_row()
    row["history"].insert(4, {"id": 90, "source": "agent", "action": "condensation", "args": {}})
    (session,) = IMPORTER.read(write(tmp_path, formats.jsonl([row])))
    assert plan_turns(session)[1].reused_tokens == session.shared_prefix.tokens


def test_a_row_without_actions_is_an_error(formats, tmp_path):
    """File, line and field are in the error."""
    row = formats.openhands_v0_row()
    row["history"] = row["history"][:2]
    with pytest.raises(TraceError, match=r"output\.jsonl:1: history"):
        list(IMPORTER.read(write(tmp_path, formats.jsonl([row]))))


def test_the_real_rows(real_data):
    """Three sessions, 105 calls: exact prompts, shell calls at the polling floor of 0.61 s."""
    (file,) = (real_data / "fixtures" / "openhands_v0").glob("*.gz")
    with gzip.open(file, "rt") as stream:
        rows = [json.loads(line) for line in stream]
    sessions = list(IMPORTER.read(file))
    for session, row in zip(sessions, rows, strict=True):
        recorded = [usage["prompt_tokens"] for usage in row["metrics"]["token_usages"]]
        assert [plan.prompt_tokens for plan in plan_turns(session)] == recorded
    assert sum(len(session.turns) for session in sessions) == 105
    shell = [
        t.wall_s
        for s in sessions
        for turn in s.turns
        for t in turn.tools
        if t.name == "execute_bash"
    ]
    assert 0.6 < sorted(shell)[len(shell) // 2] < 0.63
