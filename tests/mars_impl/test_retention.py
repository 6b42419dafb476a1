"""Adaptive retention: what is kept, for how long it pays, and who gives way to whom."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mars_impl.scheduler import Mars


def mars_of(build, **params):
    mars = Mars(build.context(params=params))
    return mars, build.story(mars.on_event)


def kept(mars, build, *, is_last=False):
    return mars.on_turn_end(build.turn(), ["bash"], is_last, build.engine(), 5.0)


def test_break_even_is_infercepts(build):
    """T(C)(C + C_other)/(2C): C = 2000, others hold 6000 -> 2 s * 8000/4000 = 4 s."""
    mars, _ = mars_of(build, break_even=1)
    view = build.engine(num_blocks=1000, free_blocks=500)  # 500 * 16 = 8000 tokens held
    assert mars.keep.break_even_s(2000, view) == pytest.approx(4.0)


def test_break_even_grows_as_the_engine_gets_busy(build):
    """Turns take four times as long as alone: so does computing the 4 s above again. A full engine
    counts as one with a fiftieth of its speed to spare, so that no bound is infinite."""
    mars, _ = mars_of(build, break_even=1)
    view = build.engine(num_blocks=1000, free_blocks=500)
    mars.state._took_s = 4 * mars.state._alone_s
    assert mars.keep.break_even_s(2000, view) == pytest.approx(16.0)
    mars.state._took_s = 1e9 * mars.state._alone_s
    assert mars.keep.break_even_s(2000, view) == pytest.approx(200.0)


def test_break_even_is_never_below_one_recomputation(build):
    """Alone in the cache the ratio would be 1/2; holding what nobody else wants costs nothing."""
    mars, _ = mars_of(build, break_even=1)
    view = build.engine(num_blocks=1000, free_blocks=875)  # 2000 tokens held: its own
    assert mars.keep.break_even_s(2000, view) == pytest.approx(2.0)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(context=st.integers(1, 10**6), used=st.integers(0, 1000), factor=st.floats(0.1, 10))
def test_break_even_grows_with_the_demand_of_others(build, context, used, factor):
    """Positive and finite for any context; more memory held by others never shortens it."""
    mars, _ = mars_of(build, break_even=factor)
    few = mars.keep.break_even_s(context, build.engine(free_blocks=1000 - used))
    many = mars.keep.break_even_s(context, build.engine(free_blocks=0))
    assert 0 < few <= many < math.inf


def test_a_turn_with_tools_is_kept_and_the_last_is_not(build):
    """Without pressure there is no end: only a review or a higher rank takes the pin."""
    mars, _ = mars_of(build)
    assert kept(mars, build).until_s == math.inf
    assert kept(mars, build, is_last=True) is None


def test_pins_within_break_even_stay_and_others_go_when_somebody_waits(build):
    """Break-even 4 s (above): a pin of 4 s stays, one of 4.1 s goes - if a turn is waiting."""
    mars, _ = mars_of(build, break_even=1)
    young = build.pin(session=0, context_tokens=2000, since_s=6.0)
    old = build.pin(session=1, context_tokens=2000, since_s=5.9)
    busy = build.engine(free_blocks=500, waiting=(build.turn(),))
    assert mars.review([young, old], busy, 10.0) == [old]
    assert list(mars.review([young, old], build.engine(free_blocks=500), 10.0)) == []


def test_a_session_that_is_back_keeps_its_pin(build):
    """Its next turn is waiting: giving the blocks up now would be all cost."""
    mars, _ = mars_of(build, break_even=1)
    back = build.pin(context_tokens=2000, since_s=0.0, returned=True)
    busy = build.engine(free_blocks=500, waiting=(build.turn(),))
    assert list(mars.review([back], busy, 1000.0)) == []
    assert mars.spares_returned()


def test_a_fixed_ttl_replaces_the_review(build):
    """The ablation keeps every turn for 6 s and never reconsiders."""
    mars, _ = mars_of(build, fixed_ttl_s=6)
    assert kept(mars, build).until_s == pytest.approx(11.0)
    busy = build.engine(waiting=(build.turn(),))
    assert list(mars.review([build.pin()], busy, 1e6)) == []


def test_no_retention_keeps_nothing(build):
    """The ablation neither pins nor has a budget for it."""
    mars, _ = mars_of(build, retention=0)
    assert kept(mars, build) is None
    assert mars.max_share == 0.0


def test_pins_yield_only_to_a_higher_rank(build):
    """Session 0 was admitted before session 1: 1's pin yields to 0's turn, not the reverse, and a
    session no longer known has the lowest rank of all.
    """
    mars, story = mars_of(build)
    story.arrive(0, 0.0).submit(0, 0.0).arrive(1, 1.0).submit(1, 1.0)
    for info in mars.state.sessions.values():
        info.resident = True
    view = build.engine()
    pins = {n: build.pin(session=n) for n in (0, 1, 9)}
    turns = {n: build.turn(session=n) for n in (0, 1, 9)}
    yields = {(p, t) for p in pins for t in turns if mars.yields_to(pins[p], turns[t], view, 0.0)}
    assert yields == {(1, 0), (9, 0), (9, 1)}


def test_the_lowest_rank_is_reclaimed_first_and_of_one_root_the_longest(build):
    """A sub-agent has its root's rank: between the two the larger pin goes first."""
    mars, story = mars_of(build)
    story.arrive(0, 0.0).submit(0, 0.0).arrive(1, 1.0).submit(1, 1.0)
    story.arrive(2, 2.0, parent=1).submit(2, 2.0)
    pins = [build.pin(session=n, num_blocks=b) for n, b in ((0, 900), (1, 10), (2, 40))]
    ordered = sorted(pins, key=lambda p: mars.reclaim_key(p, build.engine(), 0.0), reverse=True)
    assert [pin.session for pin in ordered] == [2, 1, 0]


def test_pins_of_sessions_without_a_place_go_first(build):
    """Session 0 has lost its place, 1 and 2 are resident: 0, 2, 1 is the order, and 0's pin yields
    to a resident of any rank.
    """
    mars, story = mars_of(build)
    for session in range(3):
        story.arrive(session, 0.0).submit(session, 0.0).end(session, 1.0)
        mars.state.sessions[session].resident = session != 0
    pins = [build.pin(session=n, num_blocks=10) for n in range(3)]
    view = build.engine()
    ordered = sorted(pins, key=lambda p: mars.reclaim_key(p, view, 2.0), reverse=True)
    assert [pin.session for pin in ordered] == [0, 2, 1]
    turn = build.turn(session=2)
    assert [mars.yields_to(pin, turn, view, 2.0) for pin in pins] == [True, False, False]
