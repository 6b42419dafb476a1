"""The control plane: tool pressure and its window, which tool calls run and how, bypass at low load."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mars_gate import PLAIN, ask, mars_of

from mars_impl.control_plane import Pressure
from mars_impl.scheduler import Mars

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
    mars, story = mars_of(build, cpu_high=4)
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
    mars, story = mars_of(build, cpu_high=4)
    for session in range(10):
        story.arrive(session, 0.0, 100).submit(session, 0.0)
    for at_s in (1.0, 1.4, 1.9):
        ask(mars, build, [], at_s, tool_cores=1, tools_running=4)
    assert mars.control.window == 7
    assert mars.control.cpu.on


def test_long_waits_for_tool_slots_are_tool_pressure_too(build):
    """One call on eight cores, but calls wait 30 s for a slot: 0.2*30 = 6 s >= 5 s."""
    mars, story = mars_of(build)
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


# --- tool slots -------------------------------------------------------------------------------


def test_many_calls_on_idle_cores_are_no_pressure(build):
    """Ten sessions, 80 calls on 8 cores. While telemetry says that an eighth of the cores is used, the
    calls wait for something else: no window. When all cores have been used for five minutes
    (1 - e^-2.5 = 92 %), it closes.
    """
    params = {**PLAIN, "cpu_high": 4}
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


def test_cores_that_fall_idle_end_the_pressure_however_many_calls_wait(build):
    """Eighty calls on 8 cores, all used for 300 s: pressure, a window of 7. For the next 600 s none
    is used (0.7 % of the recent time) while the calls still wait: no pressure, and the window grows.
    """
    mars = Mars(build.context(params={**PLAIN, "cpu_high": 4}, tool_cores=8))
    story = build.story(mars.on_event)
    for session in range(10):
        story.arrive(session, 0.0, 100).submit(session, 0.0)
    view = {"tool_cores": 8, "tools_running": 80}
    story.cores(0.0, 0.0).cores(300.0, 8 * 300.0)
    ask(mars, build, [], 301.0, **view)
    assert (mars.control.cpu.on, mars.control.window) == (True, 7)
    story.cores(900.0, 8 * 300.0)
    ask(mars, build, [], 901.0, **view)
    assert (mars.control.cpu.on, mars.control.window) == (False, 8)


def test_tool_slots_follow_the_cores(build):
    """Sixteen calls per core on eight cores: 128; where cores are without limit, so are slots."""
    mars, _ = mars_of(build)
    assert mars.slots(build.system(tool_cores=8), 0.0) == 128
    assert mars.slots(build.system(), 0.0) is None


def test_short_calls_then_the_best_rank_then_the_oldest(build):
    """A listing (0.1 s) passes a build (100 s) of a better rank; of builds the better rank goes."""
    mars, story = mars_of(build)
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


def test_a_session_and_its_sub_agents_are_one_to_stand_back_for(build):
    """Session 1 (1000 tokens) and two sub-agents of its own are in their tools: a long call of session
    0 (4000 tokens) stands back by five levels, not fifteen.
    """
    mars, story = mars_of(build, nice_step=5, nice_after_s=8)
    for session, prompt, parent in ((0, 4000, -1), (1, 1000, -1), (2, 500, 1), (3, 500, 1)):
        story.arrive(session, 0.0, prompt, parent=parent).submit(session, 0.0).end(session, 0.0)
    view = build.system(tool_cores=1)
    assert mars.niceness(build.call(session=0), view, 1.0) == (5, 8)


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
