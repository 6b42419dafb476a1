"""Lending: when a session that waits for its tools gives up its place."""

from __future__ import annotations

import pytest
from mars_gate import ask, mars_of


def lending_case(build, waited_s, **params):
    """Session 0 (9000 tokens) is with its tools since 0 s; session 1 (9000) is suspended."""
    mars, story = mars_of(build, **{"lend": 1, **params})
    for session in (0, 1):
        story.arrive(session, 0.0, 9000).submit(session, 0.0).start(session, 0.0)
        story.end(session, 0.0)
    story.ready(1, 0.0, 9000, turn=1)
    mars.state.seat(mars.state.sessions[0])
    mars.state.growth.mean = 800.0
    for seconds in waited_s:
        mars.state.waits.observe(seconds)
    return mars, story, [(1, 0.0, 9000, 1)]


def spare_of(mars, share):
    """Recent turns took so much longer than alone that this share of the speed is to spare."""
    mars.state._took_s = mars.state._alone_s / share
    return pytest.approx(mars.state.spare)


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


def test_nothing_is_lent_while_the_engine_is_saturated(build):
    """Turns take 100 times as long as alone: another session adds work and no throughput, however long
    the wait is to last."""
    mars, _, pending = lending_case(build, [1.0] * 9 + [1e6])
    assert spare_of(mars, 0.01) == 0.01
    assert ask(mars, build, pending, 2.0) == []


@pytest.mark.parametrize(("wait_s", "lent"), [(30.0, False), (50.0, True)])
def test_a_busy_engine_asks_for_longer_waits(build, wait_s, lent):
    """A quarter of the speed to spare: 9 s of break-even become 36 s. After 2 s, the only wait that
    lasted longer has 28 or 48 s to go."""
    mars, _, pending = lending_case(build, [1.0] * 9 + [wait_s])
    spare_of(mars, 0.25)
    assert ask(mars, build, pending, 2.0) == ([1] if lent else [])


def test_busy_tool_cores_do_not_keep_memory_from_being_lent(build):
    """Calls that wait for each other's cores last longer, and hold more for nothing."""
    mars, _, pending = lending_case(build, [1.0] * 9 + [600.0])
    mars.state.tool_busy = 0.99
    assert ask(mars, build, pending, 2.0) == [1]


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


def test_a_parent_of_running_sub_agents_keeps_its_place(build):
    """The root waits for its child as for a tool; without its place the child would have none."""
    mars, story, pending = lending_case(build, [1.0] * 9 + [600.0])
    story.arrive(5, 0.0, 100, parent=0).submit(5, 0.0)
    assert ask(mars, build, pending, 2.0) == []
    assert mars.state.sessions[0].resident
