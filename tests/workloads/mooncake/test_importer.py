"""Mooncake request traces."""

from __future__ import annotations

import json

import pytest

from marsbench.core import plan_turns
from marsbench.errors import TraceError
from workloads.mooncake.importer import IMPORTER


def read(tmp_path, formats, requests):
    file = tmp_path / "requests.jsonl"
    rows = [
        {"timestamp": t, "input_length": prompt, "output_length": 50, "hash_ids": ids}
        for t, prompt, ids in requests
    ]
    file.write_text(formats.jsonl(rows))
    return list(IMPORTER.read(file))


def test_a_request_that_holds_all_full_blocks_goes_on(formats, tmp_path):
    """1,100 tokens are two full blocks; a later prompt with both is the next turn, 9 s later."""
    sessions = read(
        tmp_path, formats, [(1000, 1100, [0, 1, 2]), (5000, 600, [8, 9]), (10_000, 1300, [0, 1, 7])]
    )
    assert [len(session.turns) for session in sessions] == [2, 1]
    assert [session.arrival_s for session in sessions] == [1.0, 5.0]
    assert sessions[0].turns[0].think_s == 9.0
    assert plan_turns(sessions[0])[1] == (1300, 1150, 50)


def test_text_that_conversations_share_does_not_join_them(formats, tmp_path):
    """Three different blocks follow block 0: it is a shared prefix, and nothing goes on from it."""
    requests = [(i, 1100, [0, 10 + i, 20 + i]) for i in range(3)]
    sessions = read(tmp_path, formats, [(0, 520, [0, 5]), *requests])
    assert [len(session.turns) for session in sessions] == [1, 1, 1, 1]
    assert {session.shared_prefix.prefix_id for session in sessions} == {"mooncake/0"}
    assert {session.shared_prefix.tokens for session in sessions} == {512}


def test_a_conversation_goes_on_once(formats, tmp_path):
    """Two requests that extend the same one: the first goes on, the second begins anew."""
    requests = [(0, 1100, [0, 1, 2]), (1, 1700, [0, 1, 3, 4]), (2, 1700, [0, 1, 5, 6])]
    assert [len(session.turns) for session in read(tmp_path, formats, requests)] == [2, 1]


def test_wrong_ids_are_named(formats, tmp_path):
    """File, line and field are in the error."""
    with pytest.raises(TraceError, match=r"requests\.jsonl:1: hash_ids"):
        read(tmp_path, formats, [(0, 1100, ["a"])])


def test_real_requests(real_data):
    """200 requests: none lost, none changed."""
    file = real_data / "fixtures" / "mooncake_conversation_200.jsonl"
    recorded = sorted(json.loads(line)["input_length"] for line in file.read_text().splitlines())
    sessions = list(IMPORTER.read(file))
    assert sorted(p.prompt_tokens for s in sessions for p in plan_turns(s)) == recorded
    assert sum(len(session.turns) > 1 for session in sessions) == 7
