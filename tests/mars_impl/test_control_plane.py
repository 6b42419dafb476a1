"""The control plane: who is resident, who enters, who is suspended, and which tool calls run."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars_impl.control_plane import Pressure
from mars_impl.scheduler import Mars

PLAIN = {"kv_target": 1, "headroom_turns": 1, "entry_turns": 1, "starvation_s": 600, "lend": 0,
         "tick_s": 1, "window_min": 2, "window_decrease": 0.7, "window_increase": 1,
         "opportunity": 1, "busy_high": 0.9}  # fmt: skip
"""A session needs its private tokens plus one turn of growth, 800 tokens a priori, of 16,000."""


def mars_of(build, **params):
    mars = Mars(build.context(params={**PLAIN, **params}))
    mars.admit([], build.system(), -1.0)  # it is the gate: nobody is in who did not ask
    return mars, build.story(mars.on_event)


def ask(mars, build, pending, now_s, **view):
    chosen = mars.admit([build.session(session=n, arrival_s=a, prompt_tokens=p, turn_index=t)
                         for n, a, p, t in pending], build.system(**view), now_s)  # fmt: skip
    return [session.session for session in chosen]


# --- pressure ---------------------------------------------------------------------------------


def test_a_flag_keeps_its_state_between_the_marks():
    """Off, on at high, kept in between, off at low; high wins if both hold."""
    flag = Pressure()
    told = [(False, False), (True, False), (False, False), (False, True), (True, True)]
    assert [flag.update(high=h, low=low) for h, low in told] == [False, True, True, False, True]


@given(st.lists(st.floats(0, 1), min_size=1), st.floats(0.2, 0.4), st.floats(0.6, 0.8))
def test_a_flag_changes_only_beyond_the_other_mark(values, low, high):
    """Between two changes of state the signal has crossed the whole band."""
    flag = Pressure()
    for value in values:
        before = flag.on
        after = flag.update(high=value >= high, low=value <= low)
        assert after == before or (value >= high if after else value <= low)


def test_tool_pressure_shrinks_the_window_from_the_sessions_that_are_active(build):
    """Ten sessions active when 32 calls queue on 8 cores: floor(10*0.7) = 7, then 4 (4.9), 2 (2.8),
    2; calm again: 3, 4, ... one a tick.
    """
    mars, story = mars_of(build, cpu_low=1, cpu_high=4)
    for session in range(10):
        story.arrive(session, 0.0, 100).submit(session, 0.0)
    window = []
    for at_s in range(1, 7):
        calls = 32 if at_s <= 4 else 8
        ask(mars, build, [(10, 0.0, 100, 0)] if at_s < 0 else [], float(at_s),
            tool_cores=8, tools_running=calls)  # fmt: skip
        window.append(mars.control.window)
    assert window == [7, 4, 2, 2, 3, 4]


def test_the_window_moves_once_a_tick(build):
    """Several questions within a second are one step."""
    mars, story = mars_of(build)
    for session in range(10):
        story.arrive(session, 0.0, 100).submit(session, 0.0)
    for at_s in (1.0, 1.4, 1.9):
        ask(mars, build, [], at_s, tool_cores=1, tools_running=4)
    assert mars.control.window == 7
    assert mars.control.cpu.on


def test_long_waits_for_tool_slots_are_tool_pressure_too(build):
    """One call on eight cores, but calls wait 30 s for a slot: 0.2*30 = 6 s >= 5 s."""
    mars, story = mars_of(build, cpu_wait_high_s=5)
    story.arrive(0, 0.0).submit(0, 0.0).end(0, 1.0).enqueue(0, 1.0).start_tool(0, 31.0)
    ask(mars, build, [], 31.0, tool_cores=8, tools_running=1)
    assert mars.control.cpu.on


def test_without_the_cpu_signal_tools_change_nothing(build):
    """The ablation keeps the window open and starts every call at once."""
    mars, story = mars_of(build, cpu_signal=0)
    story.arrive(0, 0.0).submit(0, 0.0)
    ask(mars, build, [], 1.0, tool_cores=1, tools_running=99)
    assert mars.control.window == math.inf
    assert mars.slots(build.system(tool_cores=1), 1.0) is None


# --- residency --------------------------------------------------------------------------------


def resident_case(build, sizes, **params):
    """Sessions of these private sizes, admitted in this order, each with its next turn pending."""
    mars, story = mars_of(build, opportunity=0, **params)
    for session, tokens in enumerate(sizes):
        story.arrive(session, 0.0, tokens).submit(session, 0.0).start(session, 0.0)
    for session, tokens in enumerate(sizes):
        story.end(session, 1.0).ready(session, 2.0, tokens, turn=1)
        mars.state.sessions[session].resident = True
    mars.state.growth.mean = 800.0
    return mars, [(n, 0.0, tokens, 1) for n, tokens in reversed(list(enumerate(sizes)))]


def test_sessions_are_resident_by_rank_while_their_working_sets_fit(build):
    """16,000 tokens; needs 6800 + 6800 = 13,600, and a third of 6800 would make 20,400: the last
    admitted is suspended at the gate. The others enter in order of rank.
    """
    mars, pending = resident_case(build, (6000, 6000, 6000))
    assert ask(mars, build, pending, 2.0) == [0, 1]


def test_a_smaller_session_of_lower_rank_may_fill_the_gap(build):
    """6800 + 6800 + 1800 = 15,400 fits although the session before it did not."""
    mars, pending = resident_case(build, (6000, 6000, 6000, 1000))
    assert ask(mars, build, pending, 2.0) == [0, 1, 3]


def test_the_highest_rank_is_resident_however_large(build):
    """15,900 + 800 tokens exceed the cache; the session is served all the same, alone."""
    mars, pending = resident_case(build, (15_900, 1000))
    assert ask(mars, build, pending, 2.0) == [0]


def test_suspension_takes_the_youngest_as_the_others_grow(build):
    """Two sessions of 6800 fit; when the first has grown by 4000 tokens the second waits."""
    mars, pending = resident_case(build, (6000, 6000))
    assert ask(mars, build, pending, 2.0) == [0, 1]
    build.story(mars.on_event).ready(0, 3.0, 10_000, turn=2)
    mars.state.growth.mean = 800.0
    assert ask(mars, build, pending, 3.0) == [0]


def test_a_small_newcomer_passes_a_suspended_session_that_does_not_fit(build):
    """13,600 of 16,000 tokens are taken: session 2 needs 6800, the newcomer 10 + 800."""
    mars, pending = resident_case(build, (6000, 6000, 6000))
    build.story(mars.on_event).arrive(9, 2.0, 10)
    assert ask(mars, build, [*pending, (9, 2.0, 10, 0)], 2.0) == [0, 1, 9]


def test_a_suspended_session_near_its_end_comes_before_a_newcomer(build):
    """Sessions of the class have 10 turns in 100 s. With 9 done 10 s are left; a newcomer has 100 s
    before it. Room for one: 6800 of 9200 tokens.
    """
    mars, story = mars_of(build, opportunity=0)
    for _ in range(5):
        mars.state.classes.observe(6000, turns=10, private=0, active_s=100.0)
    for session in (0, 1):
        story.arrive(session, 0.0, 6000).submit(session, 0.0).start(session, 0.0)
        story.end(session, 1.0).ready(session, 2.0, 6000, turn=1)
    story.arrive(9, 2.0, 6000)
    mars.state.sessions[0].resident = True
    mars.state.sessions[1].turns = 9
    mars.state.growth.mean = 800.0
    pending = [(9, 2.0, 6000, 0), (0, 0.0, 6000, 1), (1, 0.0, 6000, 1)]
    assert ask(mars, build, pending, 2.0) == [0, 1]


def test_a_suspended_session_needs_room_to_grow_before_it_is_back(build):
    """Beside 6800 tokens 3 turns ahead need 6000 + 2400 = 8400 of the 9200 left, 5 turns 10,000."""
    for entry_turns, entered in ((3, [0, 1]), (5, [0])):
        mars, pending = resident_case(build, (6000, 6000), entry_turns=entry_turns)
        mars.state.sessions[1].resident = False
        assert ask(mars, build, pending, 2.0) == entered


def test_shared_prefixes_count_once(build):
    """Three sessions of 6000 tokens share 4000: 4000 + 3 * (2000 + 800) = 12,400 fits."""
    mars, story = mars_of(build, opportunity=0)
    for session in range(3):
        story.arrive(session, 0.0, 6000).submit(session, 0.0)
        story.start(session, 0.0, cached=4000).end(session, 1.0)
        story.ready(session, 2.0, 6000, turn=1)
        mars.state.sessions[session].resident = True
    mars.state.growth.mean = 800.0
    pending = [(n, 0.0, 6000, 1) for n in range(3)]
    assert ask(mars, build, pending, 2.0) == [0, 1, 2]


def test_without_the_kv_signal_everybody_is_resident(build):
    """The ablation suspends nobody and admits whatever comes."""
    mars, pending = resident_case(build, (6000,) * 5, kv_signal=0)
    build.story(mars.on_event).arrive(9, 2.0, 9000)
    assert ask(mars, build, [*pending, (9, 2.0, 9000, 0)], 2.0) == [0, 1, 2, 3, 4, 9]


def test_sub_agents_are_resident_with_their_root(build):
    """Parent 9000 and child 9000 tokens exceed the cache, but the parent cannot go on without the
    child: suspending it would stop both for ever.
    """
    mars, story = mars_of(build, opportunity=0)
    story.arrive(0, 0.0, 9000).submit(0, 0.0).end(0, 1.0)
    mars.state.sessions[0].resident = True
    story.arrive(1, 1.0, 9000, parent=0)
    assert ask(mars, build, [(1, 1.0, 9000, 0)], 1.0) == [1]


def test_a_sub_agent_brings_its_suspended_root_back(build):
    """Root 4000 and child 3000 tokens need 4800 + 3800: they enter beside 6800, not beside 9800."""
    for other, entered in ((6000, [1]), (9000, [])):
        mars, story = mars_of(build, opportunity=0)
        story.arrive(5, 0.0, other).submit(5, 0.0).start(5, 0.0)
        story.arrive(0, 0.0, 4000).submit(0, 0.0).end(0, 1.0)
        mars.state.sessions[5].resident = True
        story.arrive(1, 1.0, 3000, parent=0)
        mars.state.growth.mean = 800.0
        assert ask(mars, build, [(1, 1.0, 3000, 0)], 1.0) == entered
        assert mars.state.sessions[0].resident == bool(entered)


# --- lending ----------------------------------------------------------------------------------


def lending_case(build, waited_s, **params):
    """Session 0 (9000 tokens) is with its tools since 0 s; session 1 (9000) is suspended."""
    mars, story = mars_of(build, opportunity=0, **{"lend": 1, **params})
    for session in (0, 1):
        story.arrive(session, 0.0, 9000).submit(session, 0.0).start(session, 0.0)
        story.end(session, 0.0)
    story.ready(1, 0.0, 9000, turn=1)
    mars.state.sessions[0].resident = True
    mars.state.busy = mars.state.tool_busy = 0.0
    mars.state.growth.mean = 800.0
    for seconds in waited_s:
        mars.state.waits.observe(seconds)
    return mars, story, [(1, 0.0, 9000, 1)]


def test_memory_is_lent_when_the_wait_is_likely_to_outlast_the_break_even(build):
    """Reload of 9000 tokens: 9 s at 1000/s; break-even 9 * 16,000 / 18,000 -> 9 s. Of ten waits
    nine lasted 1 s and one 600 s: at the start one in ten outlasts 9 s, after 2 s the only one does.
    """
    mars, _, pending = lending_case(build, [1.0] * 9 + [600.0])
    assert ask(mars, build, pending, 0.6) == []
    assert ask(mars, build, pending, 2.0) == [1]


def test_a_wait_that_ends_soon_is_not_lent(build):
    """All waits last 8 s: after 4 s there are 4 s to go, less than 9 s."""
    mars, _, pending = lending_case(build, [8.0] * 10)
    assert ask(mars, build, pending, 4.0) == []


@pytest.mark.parametrize(("resource", "value"), [("_took_s", 100.0), ("tool_busy", 0.99)])
def test_nothing_is_lent_while_engine_or_tool_cores_are_saturated(build, resource, value):
    """Turns take 100 times as long as alone, or 99 % of the cores are used: another session adds work
    and no throughput."""
    mars, _, pending = lending_case(build, [1.0] * 9 + [600.0])
    setattr(mars.state, resource, value)
    assert ask(mars, build, pending, 2.0) == []


def test_the_lender_waits_until_there_is_room_again(build):
    """Session 1 has session 0's place when 0 is back: 18,000 tokens do not fit in 16,000. It goes on
    when 1 has ended.
    """
    mars, story, pending = lending_case(build, [1.0] * 9 + [600.0])
    assert ask(mars, build, pending, 2.0) == [1]
    story.submit(1, 2.0, turn=1).ready(0, 3.0, 9000, turn=1)
    mars.state.growth.mean = 800.0
    back = [(0, 0.0, 9000, 1)]
    assert ask(mars, build, back, 3.0, num_running=1) == []
    story.end(1, 4.0, turn=1).done(1, 4.0)
    assert ask(mars, build, back, 4.0) == [0]


def test_turns_without_a_place_count_until_they_end(build):
    """A suspended session of 9000 tokens is still in the engine: 6800 more do not fit beside it and
    800 + 1000 do.
    """
    for tokens, entered in ((6400, []), (1000, [9])):
        mars, story = mars_of(build, opportunity=0)
        story.arrive(0, 0.0, 9000).submit(0, 0.0).start(0, 0.0)
        story.arrive(1, 0.0, 10).submit(1, 0.0)
        mars.state.sessions[1].resident = True
        story.arrive(9, 1.0, tokens)
        assert ask(mars, build, [(9, 1.0, tokens, 0)], 1.0, num_running=2) == entered


def test_a_parent_of_running_sub_agents_keeps_its_place(build):
    """The root waits for its child as for a tool; without its place the child would have none."""
    mars, story, pending = lending_case(build, [1.0] * 9 + [600.0])
    story.arrive(5, 0.0, 100, parent=0).submit(5, 0.0)
    assert ask(mars, build, pending, 2.0) == []
    assert mars.state.sessions[0].resident


# --- newcomers --------------------------------------------------------------------------------


def test_newcomers_are_packed_by_projected_growth(build):
    """With 10 turns of 800 tokens ahead, 1000 tokens need 9000: the first fits, two do not."""
    mars, story = mars_of(build, entry_turns=10, opportunity=0)
    story.arrive(0, 0.0, 1000).arrive(1, 0.0, 1000)
    assert ask(mars, build, [(0, 0.0, 1000, 0), (1, 0.0, 1000, 0)], 0.0) == [0]


def test_growth_ends_with_the_session(build):
    """The class is known to have 3 turns: 10 turns ahead count as 3, 1000 + 3*800 = 3400."""
    mars, story = mars_of(build, entry_turns=10, opportunity=0)
    for _ in range(5):
        mars.state.classes.observe(1000, turns=3, private=0, active_s=10.0)
    for session in range(6):
        story.arrive(session, 0.0, 1000)
    chosen = ask(mars, build, [(n, 0.0, 1000, 0) for n in range(6)], 0.0)
    assert chosen == [0, 1, 2, 3], "4 * 3400 = 13,600, a fifth would make 17,000"


def test_the_class_expected_to_be_shortest_enters_first(build):
    """64k-token tasks took 10 s, 1k-token tasks 500 s: the long prompt is the short session."""
    mars, story = mars_of(build, opportunity=0, kv_signal=0)
    for _ in range(20):
        mars.state.classes.observe(64_000, turns=3, private=0, active_s=10.0)
        mars.state.classes.observe(1000, turns=3, private=0, active_s=500.0)
    story.arrive(0, 0.0, 1000).arrive(1, 1.0, 64_000)
    pending = [(0, 0.0, 1000, 0), (1, 1.0, 64_000, 0)]
    assert ask(mars, build, pending, 2.0) == [1, 0]


def test_nobody_starves_behind_shorter_sessions(build):
    """After 600 s (and three times its own expected time) a session goes by arrival, and until it
    fits nobody passes it.
    """
    mars, story = mars_of(build, opportunity=0, entry_turns=0)
    for _ in range(5):
        mars.state.classes.observe(9000, turns=3, private=0, active_s=100.0)
        mars.state.classes.observe(100, turns=3, private=0, active_s=1.0)
    story.arrive(0, 0.0, 12_000).submit(0, 0.0)
    story.arrive(1, 0.0, 9000).arrive(2, 1.0, 100)
    mars.state.sessions[0].resident = True
    pending = [(2, 590.0, 100, 0), (1, 0.0, 9000, 0)]
    assert ask(mars, build, pending, 601.0) == []
    assert ask(mars, build, pending, 599.0) == [2]


def test_before_any_session_has_ended_the_starvation_bound_is_in_seconds(build):
    """A 20k-token prompt is not expected to take 20,000 s: it goes first after half an hour."""
    mars, story = mars_of(build, opportunity=0, kv_signal=0)
    story.arrive(0, 0.0, 20_000).arrive(1, 1790.0, 100)
    pending = [(1, 1790.0, 100, 0), (0, 0.0, 20_000, 0)]
    assert ask(mars, build, pending, 1800.0) == [0, 1]


def test_longest_first_under_tool_pressure_turns_the_order_around(build):
    """The preview's flip, as an ablation; without tool pressure the order stays."""
    pending = [(0, 0.0, 100, 0), (1, 0.0, 5000, 0)]
    for running, order in ((0, [0, 1]), (9, [1, 0])):
        mars, story = mars_of(build, opportunity=0, kv_signal=0, longest_first=1)
        story.arrive(0, 0.0, 100).arrive(1, 0.0, 5000)
        assert ask(mars, build, pending, 1.0, tool_cores=1, tools_running=running) == order


def test_a_static_window_replaces_the_adaptive_one(build):
    """Three places, one taken: two of four enter, whatever the tools do."""
    mars, story = mars_of(build, static_window=3, kv_signal=0, opportunity=0)
    story.arrive(0, 0.0).submit(0, 0.0)
    for session in range(1, 5):
        story.arrive(session, 0.0)
    pending = [(n, 0.0, 1000, 0) for n in range(1, 5)]
    assert ask(mars, build, pending, 1.0, tool_cores=1, tools_running=99) == [1, 2]


def test_the_first_session_enters_however_large(build):
    """With nobody active a session that needs more than the cache enters, alone."""
    mars, story = mars_of(build)
    story.arrive(0, 0.0, 15_990).arrive(1, 0.0, 15_990)
    pending = [(0, 0.0, 15_990, 0), (1, 0.0, 15_990, 0)]
    assert ask(mars, build, pending, 0.0) == [0]


def test_without_the_control_plane_everything_enters(build):
    """The ablation returns what it is given."""
    mars, story = mars_of(build, control_plane=0)
    story.arrive(0, 0.0, 10**6).arrive(1, 0.0, 10**6)
    assert ask(mars, build, [(1, 0.0, 10**6, 0), (0, 0.0, 10**6, 0)], 0.0) == [1, 0]


# --- opportunism ------------------------------------------------------------------------------


def opportunity_case(build, **params):
    """Session 0 is with its tools; 1 and 2 are suspended with turns of 9000 and 4000 tokens."""
    mars, story = mars_of(build, **params)
    for session, tokens in enumerate((9000, 9000, 4000)):
        story.arrive(session, 0.0, tokens).submit(session, 0.0).start(session, 0.0)
    for session, tokens in ((0, 9000), (1, 9000), (2, 4000)):
        story.end(session, 0.0)
        if session:
            story.ready(session, 0.0, tokens + 4000, turn=1)
    mars.state.sessions[0].resident = True
    mars.state.growth.mean = 800.0
    return mars, story, [(2, 0.0, 8000, 1), (1, 0.0, 13_000, 1)]


def test_an_idle_engine_takes_one_other_turn_into_free_blocks(build):
    """Best rank first if it fits: with 14,000 free tokens session 1 (13,800), with 9600 session 2
    (8800), with 8000 nobody.
    """
    for free_tokens, entered in ((14_000, [1]), (9600, [2]), (8000, [])):
        mars, _, pending = opportunity_case(build)
        assert ask(mars, build, pending, 1.0, free_blocks=free_tokens // 16) == entered


def test_opportunism_needs_an_engine_without_turns(build):
    """One turn running or waiting in the engine is enough to wait for."""
    mars, _, pending = opportunity_case(build)
    assert ask(mars, build, pending, 1.0, num_running=1) == []
    assert ask(mars, build, pending, 1.0, num_waiting=1) == []


def test_opportunism_needs_an_engine_that_was_idle_lately(build):
    """After 600 s of work the busy share is 1 - e^-5 = 0.993 > 0.9: residents use the engine well."""
    mars, story, pending = opportunity_case(build)
    story.submit(0, 1.0, turn=1).end(0, 601.0, turn=1)
    assert mars.state.busy > 0.9
    assert ask(mars, build, pending, 601.0) == []
    story.ready(0, 700.0, 9000, turn=2)
    assert ask(mars, build, pending, 700.0) == [1], "0.993 * e^(-99/120) = 0.435"


def test_a_newcomer_may_be_the_one(build):
    """Suspended sessions come first, then the backlog."""
    mars, story, pending = opportunity_case(build)
    story.arrive(9, 0.0, 500)
    assert ask(mars, build, [*pending, (9, 0.0, 500, 0)], 1.0, free_blocks=100) == [9]


def test_no_opportunism_means_nobody_beside_the_residents(build):
    """The ablation leaves the engine idle."""
    mars, _, pending = opportunity_case(build, opportunity=0)
    assert ask(mars, build, pending, 1.0) == []


# --- tool slots -------------------------------------------------------------------------------


def test_many_calls_on_idle_cores_are_no_pressure(build):
    """Ten sessions, 80 calls on 8 cores. While telemetry says that an eighth of the cores is used, the
    calls wait for something else: no window. When all cores have been used for five minutes
    (1 - e^-2.5 = 92 %), it closes.
    """
    params = {**PLAIN, "cpu_low": 1, "cpu_high": 4, "cpu_busy": 0.9}
    mars = Mars(build.context(params=params, tool_cores=8))
    story = build.story(mars.on_event)
    for session in range(10):
        story.arrive(session, 0.0, 100).submit(session, 0.0)
    view = {"tool_cores": 8, "tools_running": 80}
    story.cores(0.0, 0.0).cores(300.0, 300.0)
    ask(mars, build, [(0, 0.0, 100, 1)], 301.0, **view)
    assert mars.control.window == math.inf
    story.cores(600.0, 300.0 + 8 * 300.0)
    ask(mars, build, [(0, 0.0, 100, 1)], 601.0, **view)
    assert mars.control.window == 7.0


def test_tool_slots_follow_the_cores(build):
    """4 calls per core on 8 cores: 32; half a call per core on one core: at least 1; no limit: none."""
    mars, _ = mars_of(build, slots_per_core=4)
    assert mars.slots(build.system(tool_cores=8), 0.0) == 32
    assert mars.slots(build.system(), 0.0) is None
    mars, _ = mars_of(build, slots_per_core=0.5)
    assert mars.slots(build.system(tool_cores=1), 0.0) == 1


def test_short_calls_then_the_best_rank_then_the_oldest(build):
    """A listing (0.1 s) passes a build (100 s) of a better rank; of builds the better rank goes."""
    mars, story = mars_of(build, short_call_s=0.5)
    for session in (0, 1):
        story.arrive(session, 0.0).submit(session, 0.0)
    for _ in range(200):
        mars.state.gaps.observe("build", 100.0)
        mars.state.gaps.observe("ls", 0.1)
    queue = [
        build.call(session=1, name="build", queued_s=1.0),
        build.call(session=0, name="build", queued_s=3.0),
        build.call(session=0, name="build", queued_s=2.0),
        build.call(session=7, name="build", queued_s=0.0),
        build.call(session=1, name="ls", queued_s=9.0),
    ]
    view = build.system(tool_cores=8)
    assert mars.next_call(queue, view, 9.0) == 4
    assert mars.next_call(queue[:4], view, 9.0) == 2


def tooling(build, sessions, **params):
    """A MARS with these sessions (first prompt, turns done) in their tools, calls on one core."""
    mars, story = mars_of(build, nice_step=5, nice_after_s=8, **params)
    for session, (prompt, turns) in enumerate(sessions):
        story.arrive(session, 0.0, prompt)
        for turn in range(turns):
            story.submit(session, 0.0, turn).end(session, 0.0, turn)
    view = build.system(tool_cores=1)
    return [mars.niceness(build.call(session=n), view, 1.0) for n in range(len(sessions))]


def test_long_calls_stand_back_for_sessions_that_end_sooner(build):
    """A priori a session takes as long as its first prompt: 1000 tokens, then 2000, then 4000. Five
    levels for each that ends sooner, after 8 core-seconds at equal shares."""
    assert tooling(build, [(4000, 1), (1000, 1), (2000, 1)]) == [(10, 8), (0, 8), (5, 8)]


def test_more_turns_done_means_less_ahead(build):
    """Of two like sessions the one that has had 15 turns is expected to end before the one at 1."""
    assert tooling(build, [(1000, 1), (1000, 15)]) == [(5, 8), (0, 8)]


def test_niceness_is_bounded_and_can_be_off(build):
    """Five sessions end sooner: 25 levels would be, 19 is the most. Off where asked for, where the
    CPU side is, and where tool cores are without limit."""
    crowd = [(9000, 1), *((1000, 1) for _ in range(5))]
    assert tooling(build, crowd)[0] == (19, 8)
    assert tooling(build, crowd, cpu_signal=0)[0] == (0, 0)
    mars, story = mars_of(build, nice_step=0)
    story.arrive(0, 0.0).submit(0, 0.0).end(0, 0.0)
    assert mars.niceness(build.call(session=0), build.system(tool_cores=1), 1.0) == (0, 0)
    mars, story = mars_of(build)
    story.arrive(0, 0.0).submit(0, 0.0).end(0, 0.0)
    assert mars.niceness(build.call(session=0), build.system(), 1.0) == (0, 0)
    assert mars.niceness(build.call(session=7), build.system(tool_cores=1), 1.0) == (0, 0)


# --- bypass -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tool_cores", [0, 8])
def test_without_pressure_nobody_waits(build, tool_cores):
    """Ten small sessions on a calm system enter at once, and so does each of their turns."""
    mars, story = mars_of(build, entry_turns=1)
    for session in range(10):
        story.arrive(session, 0.0, 100)
    fresh = [(n, 0.0, 100, 0) for n in range(10)]
    assert ask(mars, build, fresh, 0.0, tool_cores=tool_cores) == list(range(10))
    for session in range(10):
        story.submit(session, 0.0).end(session, 1.0).ready(session, 2.0, 200, turn=1)
    again = [(n, 0.0, 200, 1) for n in range(10)]
    assert ask(mars, build, again, 2.0, tool_cores=tool_cores) == list(range(10))


@given(
    sizes=st.lists(st.integers(1, 15_000), min_size=1, max_size=12),
    free=st.integers(0, 1000),
    busy=st.integers(0, 3),
)
def test_somebody_enters_when_nobody_is_active(sizes, free, busy):
    """Whatever waits and however full the cache looks, an empty system takes someone in."""
    from dataclasses import dataclass

    @dataclass
    class View:
        block_size: int = 16
        num_blocks: int = 1000
        free_blocks: int = free
        num_running: int = busy
        num_waiting: int = 0
        tool_cores: int = 0
        tools_running: int = 0
        tools_queued: int = 0

    @dataclass
    class Candidate:
        session: int
        prompt_tokens: int
        arrival_s: float = 0.0

    from marsbench.core import PolicyContext
    from marsbench.events import Event, Kind

    mars = Mars(PolicyContext(1000, 16, 8192, 256, 0, 1000.0, params=dict(PLAIN)))
    for session, tokens in enumerate(sizes):
        mars.on_event(Event(0.0, Kind.SESSION_ARRIVE, session, -1, -1, (tokens, -1, -1)))
    pending = [Candidate(session, tokens) for session, tokens in enumerate(sizes)]
    chosen = mars.admit(pending, View(), 0.0)
    assert chosen
    assert len({c.session for c in chosen}) == len(chosen)
