"""Mooncake rows with sessions."""

from __future__ import annotations

import pytest

from marsbench.core import plan_turns
from marsbench.errors import TraceError
from workloads.agentic_mooncake.importer import IMPORTER


def read(tmp_path, formats, rows):
    file = tmp_path / "rows.jsonl"
    file.write_text(formats.jsonl(rows))
    return list(IMPORTER.read(file))


def request(name, session, prompt, **more):
    return {
        "request_id": name,
        "session_id": session,
        "input_length": prompt,
        "output_length": 10,
        "hash_ids": [],
        **more,
    }


def test_multi_turn_rows_add_to_the_context(formats, tmp_path):
    """Without request ids input_length is what a turn adds: 600, then 600 + 50 + 70."""
    rows = [
        {"session_id": "s", "input_length": 600, "output_length": 50, "timestamp": 4000},
        {"session_id": "t", "text_input": "x" * 34, "output_length": 5},
        {"session_id": "s", "input_length": 70, "output_length": 50, "delay": 2500},
    ]
    first, second = read(tmp_path, formats, rows)
    assert [plan.prompt_tokens for plan in plan_turns(first)] == [600, 720]
    assert (first.arrival_s, first.turns[0].think_s) == (4.0, 2.5)
    assert plan_turns(second)[0].prompt_tokens == 10
    assert second.arrival_s is None


def test_agentic_rows_hold_whole_prompts_and_tool_waits(formats, tmp_path):
    """A delay comes on top of the tool wait; the reset keeps nothing of the prompt."""
    events = [{"tool_class": "bash", "duration_ms": 1500, "status": "error", "output_tokens": 40}]
    rows = [
        request("r1", "s", 600, timestamp=0),
        request("r2", "s", 700, delay=500, tool_wait_ms=2000),
        request("r3", "s", 900, tool_events=events),
        request("r4", "s", 950, prefix_reset=True),
    ]
    (session,) = read(tmp_path, formats, rows)
    assert [p[:2] for p in plan_turns(session)] == [(600, 0), (700, 610), (900, 710), (950, 0)]
    first, second = session.turns[0], session.turns[1]
    assert ([t.wall_s for t in first.tools], first.think_s) == ([2.0], 0.5)
    assert [(t.wall_s, t.error, t.result_tokens) for t in second.tools] == [(1.5, True, 40)]


def test_block_hashes_bound_the_reuse(formats, tmp_path):
    """The header's block size counts: one of two blocks of 64 survives."""
    rows = [
        {"schema": "agentic-mooncake", "version": 2, "block_size": 64, "hash_id_scope": "local"},
        request("r1", "s", 130, hash_ids=[1, 2, 3], play_id="p"),
        request("r2", "s", 200, hash_ids=[1, 9, 8], play_id="p"),
    ]
    (session,) = read(tmp_path, formats, rows)
    assert session.session_id == "p/s"
    assert plan_turns(session)[1][:2] == (200, 64)


@pytest.mark.parametrize("how", ["branches", "dependencies"])
def test_spawned_sessions_are_children(formats, tmp_path, how):
    """A sub-agent hangs on the request that spawned it, in both versions."""
    rows = [request("r1", "s", 600), request("c1", "sub", 300), request("r2", "s", 700)]
    if how == "branches":
        rows[0]["branches"] = ["sub"]
    else:
        rows[1]["dependencies"] = [{"request_id": "r1", "relation": "spawn", "delay_ms": 0}]
    (session,) = read(tmp_path, formats, rows)
    assert [child.session_id for child in session.turns[0].children] == ["sub"]
    assert session.turns[1].children == ()


def test_wrong_references_are_named(formats, tmp_path):
    """A spawn by nobody, and a session that spawns itself in a ring, are errors."""
    lost = request("c1", "sub", 3, dependencies=[{"request_id": "r9", "relation": "spawn"}])
    with pytest.raises(TraceError, match=r"rows\.jsonl:1: dependencies: names no request"):
        read(tmp_path, formats, [lost])
    ring = [request("a", "s", 5, branches=["t"]), request("b", "t", 5, branches=["s"])]
    with pytest.raises(TraceError, match="spawns itself"):
        read(tmp_path, formats, ring)


def test_aiperf_sessions_keep_what_they_share(formats):
    """Three sessions of six whole blocks: two share six, the third the first four of them.

    AIPerf gives the first turn's hashes for its whole prompt, so 64-token blocks follow from 414
    to 416 tokens in seven blocks.
    """
    first, second, third = IMPORTER.read(formats.fixtures / "aiperf.jsonl")
    assert first.shared_prefix == second.shared_prefix
    assert first.shared_prefix.tokens == 6 * 64
    assert third.shared_prefix.prefix_id == first.shared_prefix.prefix_id
    assert third.shared_prefix.tokens == 4 * 64
    assert [p.prompt_tokens for p in plan_turns(first)] == [414, 414 + 20 + 100]


def test_messages_are_whole_prompts(formats, tmp_path):
    """A list of messages is the whole prompt of its turn, not an addition: 340 characters, 680."""
    message = {"role": "user", "content": "x" * 340}
    rows = [{"session_id": "s", "messages": [message] * n, "output_length": 5} for n in (1, 2)]
    (session,) = read(tmp_path, formats, rows)
    assert [p.prompt_tokens for p in plan_turns(session)] == [100, 200]


def test_ids_of_version_2_are_local_to_a_play(formats, tmp_path):
    """Equal ids of two plays are other text; inside a play they are shared text."""
    header = {"schema": "dynamo.agentic_mooncake", "version": 2, "block_size": 64,
              "hash_id_scope": "local"}  # fmt: skip
    rows = [request(f"{p}{i}", f"s{i}", 130, hash_ids=[1, i, i + 9], play_id=p) for p in "pq"
            for i in (1, 2)]  # fmt: skip
    sessions = read(tmp_path, formats, [header, *rows])
    assert [s.shared_prefix.tokens for s in sessions] == [64] * 4
    assert len({s.shared_prefix.prefix_id for s in sessions}) == 2


def test_joins_and_pauses_of_version_2(formats, tmp_path):
    """3 s after its turn and 1 s after its sub-agent: 2 s pass beside the sub-agent, 1 s after it."""

    def after(name, delay_ms, relation):
        return {"request_id": name, "trigger": "completion", "delay_ms": delay_ms,
                "relation": relation}  # fmt: skip

    rows = [
        request("r1", "s", 600, play_id="s", not_before_ms=2000, dependencies=[]),
        request("c1", "s/0", 300, play_id="s", dependencies=[after("r1", 0, "spawn")]),
        request("r2", "s", 700, play_id="s",
                dependencies=[after("r1", 3000, "sequence"), after("c1", 1000, "join")]),
        request("r3", "s", 800, play_id="s", dependencies=[after("r2", 500, "sequence")]),
    ]  # fmt: skip
    (session,) = read(tmp_path, formats, rows)
    assert (session.session_id, session.arrival_s) == ("s", 2.0)
    assert [child.session_id for child in session.turns[0].children] == ["s/0"]
    assert [[t.wall_s for t in turn.tools] for turn in session.turns] == [[2.0], [], []]
    assert [turn.think_s for turn in session.turns] == [1.0, 0.5, 0.0]
