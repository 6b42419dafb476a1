"""Other tools' formats: exact fields, and block ids that mean what our plans mean."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marsbench.core import Session, SharedPrefix, ToolCall, Turn, plan_turns
from marsbench.errors import ConfigError
from marsbench.trace.export import export
from marsbench.trace.mooncake_rows import BlockIds
from marsbench.trace.source import open_trace

PREFIX = SharedPrefix("sys", 1024)


def run(sessions, name, **options):
    stream = io.BytesIO()
    losses = export(sessions, stream, name, **options)
    return stream.getvalue().decode(), losses.summary()


def rows(sessions, name, **options):
    return [json.loads(line) for line in run(sessions, name, **options)[0].splitlines()]


def test_block_ids_follow_prefix_output_and_compaction():
    """Blocks keep their id exactly while they lie in the reusable prefix (block = 100 tokens).

    0: prompt 100+150=250, reused 100: [shared] + 2 new.
    1: context 250+50 output=300, +100: prompt 400, reused 300: 3 kept, 1 new.
    2: output 40 rewritten (half re-sent: 20): prompt 400+20+80=500, reused 400: 4 kept, 1 new.
    3: compaction to 220, shared prefix 100 kept, +30: prompt 250, reused 100: 1 kept, 2 new.
    """
    turns = (
        Turn(150, 50),
        Turn(100, 40, resent_output=0.5),
        Turn(80, 10),
        Turn(30, 1, drop_context_to=220),
    )
    session = Session("a", turns, shared_prefix=SharedPrefix("p", 100))
    ids = BlockIds(100)
    plans = plan_turns(session)
    assert [p[:2] for p in plans] == [(250, 100), (400, 300), (500, 400), (250, 100)]
    a = list(ids.of(plans, session.shared_prefix))
    assert a == [[0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 5, 6]]
    again = list(ids.of(plans, session.shared_prefix))
    assert again[0] == [0, 7, 8]
    assert list(ids.of(plans[:1], SharedPrefix("other", 100))) == [[13, 14, 15]]


@settings(max_examples=40)
@given(data=st.data(), block_size=st.sampled_from([1, 16, 100, 512]))
def test_leading_shared_blocks_are_the_reusable_prefix(any_session, data, block_size):
    """Successive prompts share as many leading blocks as their plans say, and no block after."""
    session = data.draw(any_session)
    plans = plan_turns(session)
    prompts = list(BlockIds(block_size).of(plans, session.shared_prefix))
    for plan, ids in zip(plans, prompts, strict=True):
        assert len(ids) == -(-plan.prompt_tokens // block_size)
        assert len(set(ids)) == len(ids)
    for before, now, plan in zip(prompts, prompts[1:], plans[1:], strict=False):
        kept = min(plan.reused_tokens // block_size, len(before))
        assert now[:kept] == before[:kept]
        assert not set(now[kept:]) & set(before)


@settings(max_examples=40)
@given(data=st.data())
def test_agentic_mooncake_rows_are_a_replayable_graph(any_session, data):
    """Ids are unique, every dependency stands earlier, and each block list fits its prompt."""
    seen = set()
    for row in rows([data.draw(any_session)], "agentic-mooncake", block_size=64):
        assert row["request_id"] not in seen
        assert set(row.get("wait_for", [])) <= seen
        assert ("timestamp" in row) == ("wait_for" not in row)
        assert 0 <= len(row["hash_ids"]) * 64 - row["input_length"] < 64
        seen.add(row["request_id"])


def test_agentic_mooncake_fields():
    """Exact rows of a parent with a sub-agent: delays in ms, join on both, new prefix per session.

    Turn 0: prompt 1024+1000=2024 -> 4 blocks of 512, the first two shared. The sub-agent's own
    wait (class subagent) is not added to what its session takes; the test beside it is.
    """
    child = Session("kid", (Turn(600, 9),))
    tools = (ToolCall("Task", "subagent", 9.0), ToolCall("Bash", "test", 2.5))
    parent = Session(
        "a", (Turn(1000, 24, tools=tools, think_s=0.5, children=(child,)), Turn(5, 1)),
        arrival_s=1.25, shared_prefix=PREFIX,
    )  # fmt: skip
    found = rows([parent], "agentic-mooncake")
    assert found == [
        {"request_id": "a/0", "session_id": "a", "input_length": 2024, "output_length": 24,
         "hash_ids": [0, 1, 2, 3], "timestamp": 1250.0, "branches": ["kid/0"], "prefix_reset": True},
        {"request_id": "kid/0", "session_id": "kid", "input_length": 600, "output_length": 9,
         "hash_ids": [4, 5], "wait_for": ["a/0"], "delay": 0.0, "prefix_reset": True},
        {"request_id": "a/1", "session_id": "a", "input_length": 2053, "output_length": 1,
         "hash_ids": [0, 1, 2, 3, 6], "wait_for": ["a/0", "kid/0"], "delay": 500.0,
         "tool_wait_ms": 2500.0, "prefix_reset": False},
    ]  # fmt: skip
    summary = run([parent], "agentic-mooncake")[1]
    assert "2 tool calls lose name" in summary
    assert "1 turns run their other tools after their sub-agents" in summary


def test_trie_row_reproduces_every_prompt():
    """Prompt k+1 of the format = prompt k + answer + tool output, as long as prompts grow.

    Prompts 1124, 1124+10+50=1184, 1184+5+1=1190; waits 1.5 s and 0.
    """
    turns = (Turn(100, 10, tools=(ToolCall("B", "test", 1.5),)), Turn(50, 5), Turn(1, 7))
    text, lost = run([Session("a", turns, shared_prefix=PREFIX)], "trie")
    assert json.loads(text) == {
        "num_turns": 2, "input_prompt_length": 1124, "assistant_response_length": [10, 5],
        "tool_call_output_length": [50, 1], "tool_call_latency": [1.5, 0.0],
        "final_assistant_response_length": 7,
    }  # fmt: skip
    assert lost.startswith("1 shared prefixes are not marked as shared; 1 tool calls lose")


def test_version_2_is_a_header_and_typed_dependencies():
    """A sub-agent is spawned by its turn and joined before the next, each with its own delay.

    Turn 0 runs a test for 2 s beside a sub-agent, then a person waits 1 s: 3 s after the turn and
    1 s after the sub-agent's last request. Prompts of 1034, 1134 and 10 tokens, blocks of 512.
    """
    child = Session("a/0", (Turn(10, 1), Turn(5, 2)))
    tools = (ToolCall("Bash", "test", 2.0), ToolCall("Task", "subagent", 60.0))
    turns = (Turn(10, 50, tools=tools, think_s=1.0, children=(child,)), Turn(50, 5))
    session = Session("a", turns, model="m", arrival_s=0.5, shared_prefix=PREFIX)
    found = rows([session], "agentic-mooncake-v2", source_digest="sha256:x")
    assert found[0] == {
        "schema": "dynamo.agentic_mooncake", "version": 2, "block_size": 512,
        "hash_id_scope": "local", "source": {"format": "marsbench", "digest": "sha256:x"},
    }  # fmt: skip
    assert [row["request_id"] for row in found[1:]] == ["a/0", "a/0/0", "a/0/1", "a/1"]
    assert found[1] == {
        "request_id": "a/0", "play_id": "a", "session_id": "a", "model": "m",
        "input_length": 1034, "output_length": 50, "hash_ids": [0, 1, 2], "not_before_ms": 500.0,
        "dependencies": [],
    }  # fmt: skip
    assert {row["play_id"] for row in found[1:]} == {"a"}
    assert {row["model"] for row in found[1:]} == {"m"}
    waits = [
        [(d["request_id"], d["relation"], d["delay_ms"]) for d in row["dependencies"]]
        for row in found[2:]
    ]
    assert waits == [
        [("a/0", "spawn", 0.0)],
        [("a/0/0", "sequence", 0.0)],
        [("a/0", "sequence", 3000.0), ("a/0/1", "join", 1000.0)],
    ]
    assert all(len(row["hash_ids"]) == -(-row["input_length"] // 512) for row in found[1:])


def test_version_2_says_what_it_cannot_express(session):
    """Tools become delays, shared prefixes end at a play, and a missing arrival is 0."""
    _, lost = run([session("a", shared_prefix=PREFIX)], "agentic-mooncake-v2")
    assert lost == (
        "1 sessions without an arrival time start at 0; "
        "1 shared prefixes are not shared between plays: hash ids are local; "
        "1 tool calls become delays without name, class, result size and CPU demand"
    )


@pytest.mark.parametrize("name", ["agentic-mooncake", "agentic-mooncake-v2"])
def test_waits_and_sub_agents_come_back(name, tmp_path):
    """Both versions keep prompts, reuse, sub-agents, arrivals, and how long each turn waits."""
    child = Session("a/kid", (Turn(700, 10), Turn(5, 2)))
    turns = (
        Turn(1000, 50, tools=(ToolCall("tool", "shell_other", 2.0),), think_s=1.0),
        Turn(600, 50, think_s=0.25, children=(child,)),
        Turn(50, 5),
    )
    sessions = [Session(x, turns if x == "a" else turns[::2], arrival_s=1.0) for x in "ab"]
    path = tmp_path / "rows.jsonl"
    path.write_text(run(sessions, name, block_size=64)[0])
    back = list(open_trace(path)[1])
    assert [s.session_id for s in back] == ["a", "b"]
    for before, after in zip(sessions, back, strict=True):
        assert plan_turns(after) == plan_turns(before)
        assert after.arrival_s == before.arrival_s
        for old, new in zip(before.turns, after.turns, strict=True):
            waits = [
                max((t.wall_s for t in turn.tools), default=0.0) + turn.think_s
                for turn in (old, new)
            ]
            assert waits[0] == pytest.approx(waits[1])
            assert [plan_turns(c) for c in new.children] == [plan_turns(c) for c in old.children]


def test_trie_says_what_it_cannot_express():
    """Compaction, rewritten output, people and sub-agents each appear in the losses."""
    child = Session("kid", (Turn(1, 1),))
    turns = (
        Turn(1000, 100, resent_output=0.5, think_s=1.0, children=(child,)),
        Turn(500, 10),
        Turn(5, 1, drop_context_to=100),
    )
    _, lost = run([Session("a", turns)], "trie")
    for kind in (
        "1 turns that rewrite",
        "1 prompts grow by less than",
        "1 sub-agent",
        "1 turns have idle",
    ):
        assert kind in lost


def test_tracelab_csv_columns(session):
    """The runner's columns; waits and arrivals in ms, no wait after the last turn.

    Turn 1: prompt 100+10+50=160 of which 110 were there before.
    """
    made = session("a", [(100, 10, 1.0, 2.0), (50, 5, 9.0)], arrival_s=0.5)
    assert run([made], "tracelab-csv")[0].splitlines() == [
        "session_id,round_idx,prefix_len,input_len,output_len,tool_wait_after_ms,arrival_time",
        "a,0,0,100,10,2000.000000,500.000000",
        "a,1,110,50,5,0.000000,500.000000",
    ]


def test_canonical_loses_nothing(session):
    """The canonical format is the identity."""
    from marsbench.trace.schema import decode_session

    text, lost = run([session()], "canonical")
    assert (decode_session(text.encode()), lost) == (session(), "")


def test_wrong_requests(session):
    """An unknown format names the closest one; a block needs at least one token."""
    with pytest.raises(
        ConfigError, match="unknown export format 'agentic_mooncake'; did you mean 'age"
    ):
        run([session()], "agentic_mooncake")
    with pytest.raises(ConfigError, match="--block-size 0: must be at least 1"):
        run([session()], "trie", block_size=0)


@pytest.mark.parametrize("name", ["agentic-mooncake", "agentic-mooncake-v2", "trie"])
def test_exported_rows_are_read_back(session, tmp_path, name):
    """What we write for others our own importers read: same turns, prompts and outputs."""
    sessions = [session("a", [(1000, 10, 1.0), (600, 5, 2.0), (7, 1)]), session("b", arrival_s=3.0)]
    path = tmp_path / "rows.jsonl"
    path.write_text(run(sessions, name, block_size=64)[0])
    back = list(open_trace(path)[1])
    for before, after in zip(sessions, back, strict=True):
        assert [p[::2] for p in plan_turns(after)] == [p[::2] for p in plan_turns(before)]
