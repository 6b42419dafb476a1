"""Bailian chats: chains of requests, and what their hashes have in common."""

from __future__ import annotations

import json

import pytest

from marsbench.core import plan_turns
from marsbench.errors import TraceError
from workloads.bailian.importer import IMPORTER


def test_requests_of_a_chat_are_one_session(formats):
    """Linked by their parents, in order of turn; two chats share their first two blocks of 16."""
    chat, other = IMPORTER.read(formats.fixtures / "bailian.jsonl")
    assert (chat.session_id, other.session_id) == ("159", "161")
    assert (chat.arrival_s, other.arrival_s) == (61.0, 62.0)
    assert [turn.think_s for turn in chat.turns] == [10.0, 9.0, 0.0]
    assert chat.shared_prefix == other.shared_prefix
    assert chat.shared_prefix.tokens == 32


def test_hashes_bound_the_reuse(formats):
    """The third request keeps two blocks of the second; the second all it can: 70 and 40 tokens."""
    chat, _ = IMPORTER.read(formats.fixtures / "bailian.jsonl")
    assert [plan.reused_tokens for plan in plan_turns(chat)] == [32, 110, 32]


def test_a_parent_that_is_not_there_begins_a_chat(formats, tmp_path):
    """Traces are cut anywhere; a chat that is its own parent is an error."""
    path = tmp_path / "cut.jsonl"
    rows = (formats.fixtures / "bailian.jsonl").read_text().splitlines()
    path.write_text("\n".join(rows[2:]) + "\n")
    assert [s.session_id for s in IMPORTER.read(path)] == ["160"]
    row = {**json.loads(rows[0]), "parent_chat_id": 159}
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(TraceError, match=r"cut\.jsonl:1: parent_chat_id: chat 159 is its own"):
        list(IMPORTER.read(path))
