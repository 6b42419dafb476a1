"""Codex rollouts: which tokens and which times belong to which call."""

from __future__ import annotations

import json

import pytest

from workloads.codex.importer import IMPORTER


@pytest.fixture
def lines(formats):
    return (formats.fixtures / "codex.jsonl").read_text().splitlines()


def read(tmp_path, lines):
    path = tmp_path / "rollout-2026.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return list(IMPORTER.read(path))


def test_tools_times_and_pauses(tmp_path, lines):
    """exec_command_end says 5.5 s, the other times are call to output; a person waits 30 s."""
    (session,) = read(tmp_path, lines)
    assert (session.session_id, session.model) == ("codex-1", "gpt-5-codex")
    tools = [[(t.tool_class, t.wall_s, t.error) for t in turn.tools] for turn in session.turns]
    assert tools[0] == [("test", 5.5, True), ("git", pytest.approx(0.5), False)]
    assert tools[1] == [("edit", pytest.approx(0.3), False)]
    assert [turn.think_s for turn in session.turns] == [0, 0, 30.0, 0]


def test_a_count_that_is_logged_twice_is_one_call(tmp_path, lines):
    """Codex repeats its last count; only a grown total is a new call."""
    (session,) = read(tmp_path, lines)
    assert len(session.turns) == 4
    assert [turn.output_tokens for turn in session.turns] == [60, 120, 20, 30]


def test_compaction_keeps_nothing_but_the_prefix(tmp_path, lines):
    """After a compacted line the next prompt is a new text."""
    (session,) = read(tmp_path, lines)
    assert session.turns[3].drop_context_to == 0
    assert session.turns[3].new_input_tokens == 2000


def test_sessions_of_a_folder_are_apart(tmp_path, lines):
    """Each file is a session; two of one client and model show what they share: 9,000 less 128."""
    for number in (1, 2):
        text = "\n".join(lines).replace("codex-1", f"codex-{number}")
        (tmp_path / f"rollout-{number}.jsonl").write_text(text)
    sessions = list(IMPORTER.read(tmp_path))
    assert [s.session_id for s in sessions] == ["codex-1", "codex-2"]
    # ... but the compacted prompt of 2,000 tokens does not hold that much.
    assert {s.shared_prefix.tokens for s in sessions} == {1999}


def test_a_rollout_without_counts_is_no_session(tmp_path, lines):
    """An interrupted first call leaves no tokens, and so no session."""
    kept = [line for line in lines if json.loads(line)["payload"].get("type") != "token_count"]
    assert read(tmp_path, kept) == []
