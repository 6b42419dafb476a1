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
    """2 s of 2.5 s delay are the tool; the reset keeps nothing of the prompt."""
    events = [{"tool_class": "bash", "duration_ms": 1500, "status": "error", "output_tokens": 40}]
    rows = [
        request("r1", "s", 600, timestamp=0),
        request("r2", "s", 700, delay=2500, tool_wait_ms=2000),
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
