"""Tables against timelines whose values are worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marsbench.attribution import COMPONENTS
from marsbench.core import PS_PER_S
from marsbench.errors import ResultsError
from marsbench.events import Kind, Status
from marsbench.records import EventLog
from marsbench.tables import build_tables


def parts_of(row) -> dict[str, float]:
    return {name: row[f"{name}_s"] for name in COMPONENTS if row[f"{name}_s"]}


def test_session_attribution_by_hand(two_turns):
    """Every second of a session's latency is charged to the phase it was spent in."""
    session = build_tables(two_turns.log(), ideal_s=[4.0]).sessions.iloc[0]
    assert session["latency_s"] == 10.0
    assert session["slowdown"] == 2.5
    assert parts_of(session) == {
        "backlog": 1.25,  # 1..2 before the first turn, 6.5..6.75 before the second
        "queue": 1.25,  # 2..2.5, 6.75..7, preempted 7.5..8
        "prefill": 1.0 + 1.125,  # turn 0 whole; turn 1: (9 - 7 - 0.5) * 120/160
        "recompute": 0.375,  # turn 1: 1.5 * 40/160
        "decode": 1.0 + 2.0,
        "tool_queue": 0.5,  # call 1 ends last: queued 4.5, runs 5..6
        "tool": 1.0,
        "other": 0.5,  # 6..6.5
    }


def test_turn_columns_by_hand(two_turns):
    """A turn's row holds its milestones and token counts as the events say."""
    turns = build_tables(two_turns.log()).turns
    assert turns["turn_index"].tolist() == [0, 1]
    assert turns["session_id"].tolist() == ["one", "one"]
    second = turns.iloc[1]
    names = ("ready_s", "submit_s", "sched_first_s", "first_token_s", "end_s", "preempted_s")
    assert [second[name] for name in names] == [6.5, 6.75, 7.0, 9.0, 11.0, 0.5]
    assert second["prompt_tokens"] == 200
    assert second["cached_tokens"] == 80
    assert second["recomputed_tokens"] == 40
    assert second["preemptions"] == 1
    assert turns["tool_wait_s"].tolist() == [1.5, 0.0]


def test_a_preemption_told_before_the_first_token_came(timeline):
    """A server's word of a preemption can overtake the first token: the wait then begins with it."""
    # scheduled 1, first token at the client 3, told: preempted 2..6, end 8
    one = timeline.session("one", 0)
    timeline.turn(one, 0, ready=0, sched=1, first=3, end=8, is_last=1)
    timeline.preempted(one, 0, 2, 6, uncached=0)
    timeline.end(one, 8)
    timeline.run_end(8, preemptions=1)
    (turn,) = build_tables(timeline.log()).turns.to_dict("records")
    assert (turn["queue_s"], turn["prefill_s"], turn["decode_s"]) == (1 + 3, 2, 2)


def test_refill_after_a_preemption_in_decode(timeline):
    """Refill in the decode phase is charged to recompute at the cell's mean prefill speed."""
    one = timeline.session("one", 0)
    # prefill: 2 s for 100 tokens = 0.02 s/token; refill of 50 tokens = 1 s of the decode phase
    timeline.turn(one, 0, ready=0, sched=0, first=2, end=8, prefilled=150, recomputed=50)
    timeline.preempted(one, 0, 4, 5, uncached=50)
    timeline.end(one, 8)
    timeline.run_end(8)
    session = build_tables(timeline.log()).sessions.iloc[0]
    assert parts_of(session) == {"queue": 1.0, "prefill": 2.0, "recompute": 1.0, "decode": 4.0}


def test_parent_waits_for_the_sub_agent_that_ends_last(timeline):
    """When a sub-agent outlasts the tools, its own attribution replaces theirs in the parent."""
    parent = timeline.session("p", 0)
    timeline.turn(parent, 0, ready=0, sched=0, first=1, end=2, num_tools=1)
    timeline.tool(parent, 0, 0, 2, 2, 3)
    child = timeline.session("c", 2, parent=parent, parent_turn=0)
    timeline.turn(child, 0, ready=2, sched=3, first=4, end=6)
    timeline.end(child, 6)
    timeline.turn(parent, 1, ready=6.5, sched=6.5, first=7, end=8)
    timeline.end(parent, 8)
    timeline.run_end(8)
    tables = build_tables(timeline.log())
    assert tables.sessions["parent"].tolist() == [-1, 0]
    assert parts_of(tables.sessions.iloc[0]) == {
        "queue": 1.0,  # the child's
        "prefill": 1.0 + 1.0 + 0.5,
        "decode": 1.0 + 2.0 + 1.0,
        "other": 0.5,
    }


def test_failed_sessions_have_no_latency(timeline):
    """A rejected and an unfinished session keep their time but have no latency."""
    rejected = timeline.session("big", 1)
    timeline.end(rejected, 3, Status.TOO_LARGE)
    stuck = timeline.session("stuck", 2)
    timeline.add(2, Kind.TURN_READY, stuck, 0, -1, 10)
    timeline.add(4, Kind.GPU_SUBMIT, stuck, 0, -1, 10)
    timeline.run_end(9)
    sessions = build_tables(timeline.log()).sessions
    assert sessions["status"].tolist() == ["too_large", "unfinished"]
    assert sessions["latency_s"].isna().all()
    assert parts_of(sessions.iloc[0]) == {"backlog": 2.0}
    assert parts_of(sessions.iloc[1]) == {"backlog": 2.0, "queue": 5.0}
    assert np.isnan(sessions["end_s"].iloc[1])


def test_sessions_that_never_arrived_are_left_out(timeline):
    """The sessions table counts arrivals, not plans."""
    timeline.session("one", 0)
    timeline.end(0, 1)
    timeline.run_end(1)
    log = timeline.log()
    log.session_ids.append("child never started")
    assert build_tables(log).sessions["session_id"].tolist() == ["one"]


def test_cut_off_logs_are_refused(timeline):
    """Events without RUN_END, or none at all, give one clear line."""
    timeline.session("one", 0)
    with pytest.raises(ResultsError, match="0 RUN_END rows"):
        build_tables(timeline.log())
    with pytest.raises(ResultsError, match="empty"):
        build_tables(EventLog())


def test_contradicting_times_are_refused(timeline):
    """A turn that is scheduled before it is submitted names session and turn."""
    one = timeline.session("one", 0)
    timeline.turn(one, 0, ready=0, submit=2, sched=1, first=3, end=4)
    timeline.end(one, 4)
    timeline.run_end(4)
    with pytest.raises(ResultsError, match=r"session 0, turn 0: submit is later than first sch"):
        build_tables(timeline.log())


def test_ideal_latencies_must_cover_the_sessions(two_turns):
    """One ideal latency per session, or a clear line."""
    with pytest.raises(ResultsError, match="of 2 sessions given for 1"):
        build_tables(two_turns.log(), ideal_s=[1.0, 2.0])


steps = st.lists(st.integers(0, 10**15), min_size=12, max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(steps, min_size=1, max_size=4), min_size=1, max_size=4), st.data())
def test_attribution_sums_exactly(sessions, data):
    """For any chain of non-negative intervals, components are >= 0 and sum to the latency."""
    log = EventLog()
    code = log.intern("bash")
    latencies = []
    for index, turns in enumerate(sessions):
        log.session_ids.append(str(index))
        now = arrival = data.draw(st.integers(0, 10**15))
        log.append(now, Kind.SESSION_ARRIVE, index, -1, -1, 10, -1, -1)
        for k, gaps in enumerate(turns):
            at = (now + np.cumsum(gaps)).tolist()
            prefilled = data.draw(st.integers(0, 300_000))
            recomputed = data.draw(st.integers(0, prefilled))
            log.append(now, Kind.TURN_READY, index, k, -1, prefilled)
            log.append(at[0], Kind.GPU_SUBMIT, index, k, -1, prefilled)
            log.append(at[1], Kind.GPU_SCHED_FIRST, index, k, -1, 0, prefilled)
            log.append(at[2], Kind.GPU_PREEMPT, index, k, -1, 10, 1)
            log.append(at[3], Kind.GPU_RESUME, index, k, -1, 0, 10)
            log.append(at[4], Kind.GPU_FIRST_TOKEN, index, k)
            log.append(at[5], Kind.GPU_PREEMPT, index, k, -1, 10, 1)
            log.append(at[6], Kind.GPU_RESUME, index, k, -1, 0, 70_000)
            log.append(at[7], Kind.GPU_END, index, k, -1, 5, 0, prefilled, recomputed, 1, 0)
            log.append(at[8], Kind.TOOL_ENQUEUED, index, k, 0, code, code)
            log.append(at[9], Kind.TOOL_START, index, k, 0, code, code)
            log.append(at[10], Kind.TOOL_END, index, k, 0, code, code, 0, 1)
            now = at[11]
        log.append(now, Kind.SESSION_END, index, -1, -1, 0)
        latencies.append((now - arrival) / PS_PER_S)
    log.append(10**17, Kind.RUN_END, -1)
    table = build_tables(log).sessions
    total = table[[f"{name}_s" for name in COMPONENTS]].sum(axis=1)
    assert table["latency_s"].tolist() == latencies
    assert (table[[f"{name}_s" for name in COMPONENTS]].to_numpy() >= 0).all()
    np.testing.assert_allclose(total, table["latency_s"], rtol=0, atol=1e-9)


def test_a_simulated_run_is_attributed_exactly():
    """Sub-agents, parallel tools, think time and preemptions of a real run sum to each latency."""
    log, stats = _simulate()
    assert stats.preemptions > 0
    tables = build_tables(log)
    sessions = tables.sessions
    assert (sessions["status"] == "ok").all()
    assert (sessions["parent"] >= 0).sum() == 4
    columns = [f"{name}_s" for name in COMPONENTS]
    np.testing.assert_allclose(sessions[columns].sum(axis=1), sessions["latency_s"], atol=1e-9)
    assert sessions["num_turns"].sum() == len(tables.turns) == log.count(Kind.GPU_END)
    assert sessions["preemptions"].sum() == tables.totals.preemptions == stats.preemptions
    assert (sessions["recompute_s"] > 0).any()
    assert tables.turns["preempted_s"].sum() > 0
    # a parent that waits for its sub-agent is charged at least the sub-agent's own decode time
    children = sessions[sessions["parent"] >= 0].set_index("parent")
    parents = sessions.set_index("session").loc[children.index]
    assert (parents["decode_s"].to_numpy() > children["decode_s"].to_numpy()).all()


def _simulate():
    from marsbench.arrival.base import ArrivalPlan
    from marsbench.core import Session, ToolCall, Turn, to_ps
    from marsbench.engine.base import EngineConfig
    from marsbench.engine.cost import StepCost
    from marsbench.engine.plan import CellPlan
    from marsbench.engine.sim.core import SimCore
    from marsbench.engine.virtual import VirtualEngine
    from marsbench.system import Policies
    from marsbench.tools.recorded import Recorded

    ms = 1_000_000_000
    cost = StepCost.from_coefficients(
        c_tok=3 * ms // 100, c_pair=1000, weights=[5 * ms], m_ctx=40_000, o_step=ms, o_seq=ms // 50
    )
    config = EngineConfig(num_blocks=40, block_size=4, max_num_batched_tokens=32, max_num_seqs=8)

    def session(index: int) -> Session:
        tools = (ToolCall("bash", "test", 0.02 * (index + 1)), ToolCall("read", "read", 0.001))
        child = Session(f"c{index}", (Turn(20, 30), Turn(10, 20, tools=tools[1:])))
        turns = (
            Turn(30, 20, tools=tools, children=(child,) if index % 2 else ()),
            Turn(10, 30, tools=tools[1:], think_s=0.05),
            Turn(5, 40),
        )
        return Session(f"s{index}", turns)

    log = EventLog()
    policies = Policies()
    times_ps = tuple(to_ps(0.01 * index) for index in range(8))
    plan = CellPlan(
        sessions=tuple(session(index) for index in range(8)),
        arrivals=ArrivalPlan(times_ps=times_ps, closed_loop=None),
        policies=policies,
        flags=config,
        cost=cost,
        tools=Recorded(),
    )
    return log, VirtualEngine(SimCore).run(plan, log).stats
