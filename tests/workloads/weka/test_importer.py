"""Weka kv-cache-tester traces."""

from __future__ import annotations

import gzip
import json

import pytest

from marsbench.core import plan_turns
from marsbench.errors import TraceError
from workloads.context import MID_CONVERSATION
from workloads.rows import Row
from workloads.weka.importer import IMPORTER, common_blocks, encode_runs


def read(tmp_path, traces):
    file = tmp_path / "traces.jsonl"
    file.write_text("".join(json.dumps(trace) + "\n" for trace in traces))
    return list(IMPORTER.read(file))


def test_think_time_loses_the_requests_own_api_time(formats, tmp_path):
    """think 3 s with 1 s of api: 2 s of tool; a text request has a person's pause instead."""
    requests = [
        formats.weka_request(640, 10, list(range(10)), input_types=["text"]),
        formats.weka_request(700, 10, list(range(10)), think_time=3.0, api_time=1.0),
        formats.weka_request(
            800, 10, list(range(12)), think_time=9.0, api_time=4.0, input_types=["text"]
        ),
        formats.weka_request(900, 10, list(range(14)), think_time=0.0, api_time=4.0),
        formats.weka_request(990, 10, list(range(15)), think_time=1001.0, api_time=1.0),
    ]
    (session,) = read(tmp_path, [formats.weka_trace("a", requests)])
    waits = [(tuple(tool.wall_s for tool in t.tools), t.think_s) for t in session.turns]
    # 3-1 tool; 9-4 person; 0-4 < 0 counts as 0; 1001-1: no tool runs longer than 600 s.
    assert waits == [((2.0,), 0.0), ((), 5.0), ((0.0,), 0.0), ((600.0,), 400.0), ((), 0.0)]
    assert session.turns[0].tools[0].result_tokens == 700 - 640 - 10


def test_missing_times_fall_back_to_the_trace(formats, tmp_path):
    """Without think_time the start times count; without api_time the trace's median."""
    requests = [
        formats.weka_request(640, 10, [], t=0.0, api_time=2.0),
        formats.weka_request(700, 10, [], t=9.0, think_time=None, api_time=None),
    ]
    (session,) = read(tmp_path, [formats.weka_trace("a", requests)])
    # 9 s from start to start, 2 s of them the first call, 2 s (median) the second's own.
    assert session.turns[0].tools[0].wall_s == 5.0


def test_a_resume_is_not_a_tool(formats, tmp_path):
    """A request that brings tool_use along re-sends a history after a person's pause."""
    kinds = ["text", "thinking", "tool_result", "tool_use"]
    requests = [
        formats.weka_request(640, 10, list(range(10))),
        formats.weka_request(700, 10, list(range(50, 60)), input_types=kinds),
    ]
    (session,) = read(tmp_path, [formats.weka_trace("a", requests)])
    assert session.turns[0].tools == ()
    assert session.turns[0].think_s == 2.0
    assert plan_turns(session)[1].reused_tokens == 0


def test_reuse_is_that_of_the_block_hashes(formats, tmp_path):
    """8 of 10 blocks survive although the prompt grows: 512 tokens are reused, not 650."""
    requests = [
        formats.weka_request(650, 10, list(range(10))),
        formats.weka_request(800, 10, [*range(8), *range(20, 24)]),
        formats.weka_request(300, 10, [*range(3), 90]),
    ]
    (session,) = read(tmp_path, [formats.weka_trace("a", requests)])
    assert [plan[:2] for plan in plan_turns(session)] == [(650, 128), (800, 512), (300, 192)]
    assert session.turns[1].new_input_tokens == 800 - 660


def test_hash_runs_and_hash_ids_are_the_same_trace(formats, tmp_path):
    """Run-length coded ids give the same sessions as written-out ones."""
    ids = [[*range(10)], [*range(9), 30, 31, 32], [*range(9), 30, 7]]
    runs = [[[0, 10]], [[0, 9], [30, 3]], [[0, 9], [30, 1], [7, 1]]]
    plain = [formats.weka_request(64 * len(x), 5, x) for x in ids]
    coded = [{**request, "hash_rle": run} for request, run in zip(plain, runs, strict=True)]
    for request in coded:
        del request["hash_ids"]
    assert [encode_runs(Row(r, "")) for r in plain] == [[tuple(x) for x in run] for run in runs]
    assert read(tmp_path, [formats.weka_trace("a", coded)]) == read(
        tmp_path, [formats.weka_trace("a", plain)]
    )


def test_common_blocks_stop_inside_a_run():
    """Equal ids are counted up to the first difference, wherever runs end."""
    assert common_blocks([(0, 10)], [(0, 4), (9, 3)]) == 4
    assert common_blocks([(0, 4), (9, 3)], [(0, 4), (9, 9)]) == 7
    assert common_blocks([(1, 4)], [(0, 4)]) == 0


def test_copies_are_imported_once(formats, tmp_path):
    """Traces with the same first three requests are one; a fourth that differs does not matter."""
    opening = [formats.weka_request(640 + 64 * i, 10, list(range(10 + i))) for i in range(3)]
    longer = [*opening, formats.weka_request(900, 10, list(range(14)))]
    other = [*opening[:2], formats.weka_request(999, 10, list(range(15)))]
    traces = [formats.weka_trace(n, r) for n, r in (("a", opening), ("b", longer), ("c", other))]
    assert [session.session_id for session in read(tmp_path, traces)] == ["a", "c"]


def test_sub_agents_run_in_the_turn_before_them(formats, tmp_path):
    """The parent's gap of 20 s loses the 15 s of the sub-agent, which runs again in a replay."""
    child = {
        "t": 21.0,
        "type": "subagent",
        "agent_id": "agent_1",
        "subagent_type": "Explore",
        "duration_ms": 15_000,
        "status": "completed",
        "tool_tokens": 50,
        "system_tokens": 14,
        "requests": [
            formats.weka_request(320, 9, [70, 71, 72, 73, 74]),
            formats.weka_request(400, 9, [70, 71, 72, 73, 74, 75]),
        ],
    }
    requests = [
        formats.weka_request(640, 10, list(range(10))),
        child,
        formats.weka_request(700, 10, list(range(10)), think_time=21.0),
    ]
    (session,) = read(tmp_path, [formats.weka_trace("a", requests)])
    assert len(session.turns) == 2
    (agent,) = session.turns[0].children
    assert (agent.session_id, agent.agent) == ("a/agent_1", "Explore")
    assert [plan.prompt_tokens for plan in plan_turns(agent)] == [320, 400]
    assert [(t.tool_class, t.wall_s) for t in session.turns[0].tools] == [("subagent", 0.0)]
    assert session.turns[0].think_s == 5.0


def test_traces_cut_out_of_a_conversation_are_marked(formats, tmp_path):
    """A first prompt above 60k tokens is no start."""
    traces = [
        formats.weka_trace("a", [formats.weka_request(60_000, 10, [])]),
        formats.weka_trace("b", [formats.weka_request(60_001, 10, [])]),
    ]
    agents = [session.agent for session in read(tmp_path, traces)]
    assert agents == ["claude-code", "claude-code" + MID_CONVERSATION]


@pytest.mark.parametrize(
    ("change", "field"),
    [({"in": 0}, "in"), ({"out": 1.5}, "out"), ({"hash_rle": [[1]]}, "hash_rle")],
)
def test_wrong_fields_are_named(formats, tmp_path, change, field):
    """File, line and field are in the error."""
    trace = formats.weka_trace("a", [{**formats.weka_request(640, 10, []), **change}])
    with pytest.raises(TraceError, match=rf"traces\.jsonl:1: {field}: "):
        read(tmp_path, [trace])


def test_the_real_traces(real_data):
    """573 traces: copies dropped, exact prompts, and reuse equal to the recorded block hashes."""
    file = real_data / "weka_claude_code.hash_rle.jsonl.gz"
    distinct = set(json.loads((real_data / "dedup_ids.json").read_text()))
    with gzip.open(file, "rt") as stream:
        traces = {trace["id"]: trace for trace in map(json.loads, stream)}
    sessions = list(IMPORTER.read(file))
    kept = {session.session_id for session in sessions}
    assert len(traces) == 573
    assert distinct & traces.keys() <= kept  # no distinct trace is lost
    assert len(kept - distinct) <= 4  # copies whose original is not in this file
    for session in sessions:
        check_reuse(session, traces[session.session_id]["requests"])
        children = [child for turn in session.turns for child in turn.children]
        agents = [r for r in traces[session.session_id]["requests"] if r["type"] == "subagent"]
        assert len(children) == len(agents)
        for child, entry in zip(children, agents, strict=True):
            check_reuse(child, entry["requests"])


def check_reuse(session, entries):
    requests = [entry for entry in entries if entry["type"] != "subagent"]
    plans = plan_turns(session)
    assert [plan.prompt_tokens for plan in plans] == [request["in"] for request in requests]
    for before, request, plan in zip(requests, requests[1:], plans[1:], strict=False):
        same = common_blocks(
            [tuple(run) for run in before["hash_rle"]], [tuple(run) for run in request["hash_rle"]]
        )
        assert min(plan.reused_tokens, before["in"]) // 64 == same
