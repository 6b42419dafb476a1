"""What the unified information stream tells: scripted events, state computed by hand."""

from __future__ import annotations

import math

import pytest

from mars_impl.stream import StreamState


@pytest.fixture
def state():
    return StreamState(
        tool_cores=2,
        turn_s=lambda prefilled, prompt, output: prefilled / 1000 + output / 50,
    )  # fmt: skip


@pytest.fixture
def story(build, state):
    return build.story(state.on_event)


def test_a_session_moves_from_backlog_to_engine_to_tools_and_back(story, state):
    """The phase and its start follow the events; the context is prompt, then prompt plus output."""
    story.arrive(0, 1.0, 1000)
    info = state.sessions[0]
    assert (info.phase, info.since_s, info.context, info.rank) == ("ready", 1.0, 1000, math.inf)
    story.submit(0, 2.0)
    assert (info.phase, info.since_s, info.admitted_s, info.rank) == ("engine", 2.0, 2.0, 0.0)
    story.end(0, 5.0, output_tokens=50, prefilled_tokens=1000)
    assert (info.phase, info.since_s, info.context, info.turns) == ("tool", 5.0, 1050, 1)
    story.ready(0, 9.0, 1400, turn=1).submit(0, 9.5, turn=1)
    assert (info.phase, info.since_s, info.context, info.admitted_s) == ("engine", 9.5, 1400, 2.0)
    story.done(0, 12.0)
    assert not state.sessions


def test_rank_is_the_order_of_arrival_of_those_that_were_admitted(story, state):
    """Whoever came first has the best rank for all its turns, whenever it enters; the backlog has none."""
    for session in (0, 1, 2):
        story.arrive(session, float(session))
    story.submit(2, 3.0).submit(0, 4.0).end(2, 5.0).ready(2, 6.0, 1100, turn=1)
    story.submit(2, 6.0, turn=1)
    assert [state.sessions[n].rank for n in (0, 1, 2)] == [0.0, math.inf, 2.0]


def test_sub_agents_have_the_rank_and_root_of_who_started_them(story, state):
    """A child, and its own child, belong to the top-level session; the next rank is the next root's."""
    story.arrive(0, 0.0).submit(0, 0.0).end(0, 1.0)
    story.arrive(1, 1.0, parent=0).submit(1, 1.0).end(1, 2.0)
    story.arrive(2, 2.0, parent=1).submit(2, 2.0)
    story.arrive(3, 3.0).submit(3, 3.0)
    assert [state.sessions[n].root for n in (0, 1, 2, 3)] == [0, 0, 0, 3]
    assert [state.sessions[n].rank for n in (0, 1, 2, 3)] == [0.0, 0.0, 0.0, 1.0]


def test_growth_is_learned_from_one_prompt_to_the_next(story, state):
    """1000 -> 1600 tokens is a growth of 600: 800 + (600-800)/6."""
    story.arrive(0, 0.0, 1000).submit(0, 0.0).end(0, 1.0, output_tokens=50)
    story.ready(0, 2.0, 1600, turn=1)
    assert state.growth.mean == pytest.approx(800 - 200 / 6)


def test_private_memory_leaves_out_the_shared_prefix(story, state):
    """320 tokens were cached when a session first ran: they are others' too. The largest such prefix
    is resident once for all.
    """
    story.arrive(0, 0.0, 1000).submit(0, 0.0).start(0, 0.0, cached=320)
    story.arrive(1, 0.0, 1000).submit(1, 0.0).start(1, 0.0, cached=160)
    story.end(0, 1.0, output_tokens=50).start(0, 2.0, turn=1, cached=1040)
    assert state.sessions[0].private == 1050 - 320
    assert state.sessions[1].private == 1000 - 160
    assert state.shared_resident == 320


def test_what_is_cached_beyond_its_own_context_is_others_too(story, state):
    """Two agents start together, so that nothing is cached; the second prompt of one is found up to
    1,500 tokens, of which its own last context is 1,040. What is found of its own tells nothing.
    """
    story.arrive(0, 0.0, 1000).submit(0, 0.0).start(0, 0.0, cached=0)
    story.end(0, 1.0, output_tokens=40)
    story.ready(0, 2.0, 1600, turn=1).submit(0, 2.0, turn=1).start(0, 2.0, turn=1, cached=1500)
    info = state.sessions[0]
    assert (info.private, state.shared_resident) == (100, 1500)
    story.end(0, 3.0, turn=1, output_tokens=40)
    story.ready(0, 4.0, 1700, turn=2).submit(0, 4.0, turn=2).start(0, 4.0, turn=2, cached=1640)
    assert (info.private, state.shared_resident) == (200, 1500)


def test_growth_leaves_out_what_turns_out_to_be_shared(story, state):
    """From 1,000 to 1,600 tokens, of which 1,500 are others': its own memory went from 1,000 to 100."""
    story.arrive(0, 0.0, 1000).submit(0, 0.0).start(0, 0.0, cached=0).end(0, 1.0, output_tokens=40)
    story.ready(0, 2.0, 1600, turn=1).submit(0, 2.0, turn=1).start(0, 2.0, turn=1, cached=1500)
    assert state.growth.mean == pytest.approx(800 + (0 - 800) / 6)


def test_the_first_prompt_of_a_live_agent_comes_with_its_first_turn(story, state):
    """It arrives before it has a prompt, and its class is that of its first one all the same."""
    story.arrive(0, 0.0, 0).ready(0, 0.5, 900, turn=0)
    story.submit(0, 0.5).end(0, 1.0).ready(0, 2.0, 1200, turn=1)
    assert state.sessions[0].first_prompt == 900


def test_spare_speed_is_how_long_turns_take_beyond_their_time_alone(story, state):
    """1000 tokens and 50 made take 1 + 1 s alone. Taking 2 s of 120 leaves nothing to want: 1. Taking
    8 s of the next 120: (2/e + 2)/(2/e + 8), with what it began at, 1 and 1, worn to e^-2 of it.
    """
    story.arrive(0, 0.0).submit(0, 118.0).end(0, 120.0, prefilled_tokens=1000, output_tokens=50)
    assert state.spare == pytest.approx(1.0)
    story.ready(0, 232.0, 1100, turn=1).submit(0, 232.0, turn=1)
    story.end(0, 240.0, turn=1, prefilled_tokens=1000, output_tokens=50)
    before = 2 * math.exp(-1) + math.exp(-2)
    assert state.spare == pytest.approx((before + 2) / (before + 8))


def test_time_alone_leaves_out_waits_and_what_was_lost_from_the_cache(story, state):
    """1000 tokens and 50 made are 1 + 1 s, 3 s of tools; then of 1600 tokens 1050 would have been cached:
    0.55 + 1 s, however long both turns waited and though all was computed again. After a compaction
    to 800 tokens all but the shared prefix is new: 0.8 s and 1 s after 2 s of tools.
    """
    story.arrive(0, 0.0, 1000).submit(0, 90.0)
    story.end(0, 100.0, prefilled_tokens=1000, output_tokens=50)
    assert state.sessions[0].alone_s == pytest.approx(2.0)
    story.ready(0, 103.0, 1600, turn=1).submit(0, 200.0, turn=1)
    story.end(0, 220.0, turn=1, prefilled_tokens=1600, output_tokens=50)
    assert state.sessions[0].alone_s == pytest.approx(2.0 + 3.0 + 1.55)
    story.ready(0, 222.0, 800, turn=2).submit(0, 222.0, turn=2)
    story.end(0, 225.0, turn=2, prefilled_tokens=800, output_tokens=50)
    assert state.sessions[0].alone_s == pytest.approx(6.55 + 2.0 + 1.8)


def test_busy_tool_cores_are_told_by_telemetry(story, state):
    """2 cores used 120 of 240 core-seconds in 120 s: (1 - 1/e)/2; then idle for 240 s."""
    story.cores(120.0, busy_core_s=120.0)
    assert state.tool_busy == pytest.approx((1 - math.exp(-1)) / 2)
    story.cores(360.0, busy_core_s=120.0)
    assert state.tool_busy == pytest.approx((1 - math.exp(-1)) / 2 * math.exp(-2))


def test_waits_for_tools_are_learned_from_the_end_of_a_turn_to_the_next(story, state):
    """A wait of 3 s: seen to outlast 2 s from its start, and not 4 s."""
    story.arrive(0, 0.0).submit(0, 0.0).end(0, 1.0).ready(0, 4.0, 1100, turn=1)
    assert state.waits.outlasts(0.0, 2.0) == 1.0
    assert state.waits.outlasts(0.0, 4.0) == 0.0


def test_waiting_for_tool_slots_is_a_moving_average(story, state):
    """ToolWaits of 10 s and 0 s with weight 0.2: 2.0, then 1.6."""
    story.arrive(0, 0.0).submit(0, 0.0).end(0, 1.0)
    story.enqueue(0, 1.0).start_tool(0, 11.0)
    assert state.tool_wait_s == pytest.approx(2.0)
    story.enqueue(0, 11.0, call=1).start_tool(0, 11.0, call=1)
    assert state.tool_wait_s == pytest.approx(1.6)


def test_calls_are_outstanding_until_they_end(story, state):
    """Queued calls have no start; ended ones teach the gap model what they took."""
    story.arrive(0, 0.0).submit(0, 0.0).end(0, 1.0)
    story.enqueue(0, 1.0, "build").enqueue(0, 1.0, "ls", call=1).start_tool(0, 3.0, "build")
    assert state.sessions[0].calls == {0: ("build", 3.0), 1: ("ls", math.inf)}
    before = state.gaps.expected_s("build")
    story.end_tool(0, 103.0, "build")
    assert state.sessions[0].calls == {1: ("ls", math.inf)}
    assert state.gaps.expected_s("build") > before
    story.ready(0, 104.0, 1100, turn=1)
    assert state.sessions[0].calls == {}


def test_the_class_model_learns_from_ended_top_level_sessions_only(story, state):
    """A session of two turns that was active for 10 s; sub-agents and rejected sessions teach nothing."""
    story.arrive(0, 0.0, 1000).submit(0, 5.0).end(0, 6.0)
    story.arrive(1, 6.0, 200, parent=0).submit(1, 6.0).end(1, 7.0).done(1, 8.0)
    story.arrive(2, 6.0, 10**6).done(2, 6.0)
    assert state.classes.active_s(1000) == pytest.approx(0.01 * 1000), "nobody has ended yet"
    story.ready(0, 9.0, 1100, turn=1).submit(0, 9.0, turn=1).end(0, 15.0, turn=1).done(0, 15.0)
    assert state.classes.active_s(1000) == pytest.approx(10.0)


def test_a_sub_agent_may_outlive_its_root(story, state):
    """A root that was cut off ends first; its sub-agent's end changes nothing else."""
    story.arrive(0, 0.0).submit(0, 0.0).arrive(1, 1.0, parent=0).submit(1, 1.0)
    story.done(0, 2.0).end(1, 3.0).done(1, 4.0)
    assert not state.sessions


def test_events_of_unknown_sessions_are_ignored(story, state):
    """Telemetry, and what comes after a session's end, changes no session."""
    story.arrive(0, 0.0).done(0, 1.0)
    story.start_tool(0, 2.0).end_tool(0, 3.0).ready(7, 4.0, 100, turn=1)
    assert not state.sessions


def test_a_sub_agent_shares_the_place_of_its_root_while_that_is_there(story, state):
    """Child and grandchild look at the top-level session; once it has ended, each at itself."""
    story.arrive(0, 0.0).submit(0, 0.0).end(0, 1.0)
    story.arrive(1, 1.0, parent=0).submit(1, 1.0).end(1, 2.0).arrive(2, 2.0, parent=1)
    root, child, grandchild = (state.sessions[n] for n in (0, 1, 2))
    assert root.top is child.top is grandchild.top is root
    assert root.children == 2
    story.done(1, 3.0)
    assert root.children == 1
    story.done(0, 4.0)
    assert grandchild.top is grandchild
    story.arrive(3, 5.0, parent=2)  # its root is gone already
    assert state.sessions[3].top is state.sessions[3]
    assert (state.sessions[3].root, grandchild.children) == (0, 0)


def test_admitted_sessions_are_counted_without_sub_agents(story, state):
    """A top-level session counts from its first turn in the engine to its end."""
    story.arrive(0, 0.0).arrive(1, 0.0)
    assert state.num_admitted == 0
    story.submit(0, 1.0).submit(1, 1.0).end(0, 2.0).arrive(2, 2.0, parent=0).submit(2, 2.0)
    assert state.num_admitted == 2
    story.done(2, 3.0).done(0, 3.0)
    assert state.num_admitted == 1


def test_who_has_a_place_and_who_is_in_the_engine_is_kept_by_name(story, state):
    """A root with a place and a sub-agent, both with a turn; the root ends first, then all is empty."""
    story.arrive(0, 0.0).submit(0, 0.0)
    state.seat(state.sessions[0])
    story.end(0, 1.0).arrive(1, 1.0, parent=0).submit(1, 1.0)
    assert (set(state.residents), set(state.in_engine), set(state.sub_agents)) == ({0}, {1}, {1})
    story.done(0, 2.0)
    assert (set(state.residents), set(state.in_engine), set(state.sub_agents)) == (
        set(),
        {1},
        set(),
    )
    story.done(1, 3.0)
    assert {**state.sessions, **state.in_engine} == {}


def test_a_session_that_goes_on_elsewhere_takes_its_place_along(story, state):
    """Released with a place and a turn, it is nowhere here; adopted again, it is where it was."""
    story.arrive(0, 0.0).submit(0, 0.0)
    state.seat(state.sessions[0])
    info = state.release(0)
    assert {**state.sessions, **state.residents, **state.in_engine} == {}
    state.adopt(info)
    assert (set(state.residents), set(state.in_engine)) == ({0}, {0})
    state.unseat(info)
    assert (info.resident, state.residents) == (False, {})
