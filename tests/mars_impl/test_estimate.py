"""Online estimates against hand-computed values and closed forms."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars_impl.estimate import ClassModel, GapModel, Growth, ToolWaits, reload_s


def test_growth_weighs_each_new_turn_against_the_past():
    """First weight 1/(1+5): 800 + (2000-800)/6 = 1000; second 1/7 of (300-1000): 900. Compaction
    (a shorter prompt) counts as no growth: 1/8 of (0-900): 787.5.
    """
    growth = Growth()
    seen = []
    for tokens in (2000, 300, -5000):
        growth.observe(tokens)
        seen.append(growth.mean)
    assert seen == pytest.approx([1000.0, 900.0, 787.5])


def test_growth_forgets_slowly_but_never_stops_learning():
    """The weight of a new turn has a floor of 0.5 %: a change of workload is followed."""
    growth = Growth()
    for _ in range(1000):
        growth.observe(100)
    before = growth.mean
    growth.observe(1100)
    assert growth.mean - before == pytest.approx(0.005 * (1100 - before))


def test_gap_of_a_tool_is_shrunk_towards_all_tools():
    """Two pseudo-samples of log 0, then one of log 1: all = 1/3. The tool's own mean 1 has weight
    1/(1+3): mu = 1/3 + 1/4 * 2/3 = 1/2, so the median is e^0.5. Another tool: e^(1/3).
    """
    gaps = GapModel(prior=3)
    gaps.observe("pytest", math.e)
    assert gaps.expected_s("pytest") == pytest.approx(math.exp(1 / 2))
    assert gaps.expected_s("never-seen") == pytest.approx(math.exp(1 / 3))


def test_a_tool_with_many_samples_is_judged_by_its_own():
    """3000 calls of 20 s beside 3000 of 0.1 s: the median of each is its own within 10 %."""
    gaps = GapModel(prior=30)
    for _ in range(3000):
        gaps.observe("build", 20.0)
        gaps.observe("ls", 0.1)
    assert gaps.expected_s("build") == pytest.approx(20.0, rel=0.1)
    assert gaps.expected_s("ls") == pytest.approx(0.1, rel=0.1)


@given(durations=st.lists(st.floats(0.0, 1e4), max_size=20), prior=st.floats(0.0, 100.0))
def test_gap_estimates_are_finite_whatever_is_observed(durations, prior):
    """Zero durations and timeouts give a positive number."""
    gaps = GapModel(prior)
    for seconds in durations:
        gaps.observe("t", seconds)
    assert 0.0 < gaps.expected_s("t") < math.inf


def test_waits_are_judged_by_those_that_lasted_as_long():
    """Of waits 1, 2, 3, 10 s: after 1 s three are left, of which one outlasts 5 s more; after 3 s
    the only one left does; beyond all of them nothing tells of an end.
    """
    waits = ToolWaits()
    assert waits.outlasts(0.0, 1.0) == 1.0
    for seconds in (3.0, 1.0, 10.0, 2.0):
        waits.observe(seconds)
    assert waits.outlasts(1.0, 5.0) == pytest.approx(1 / 3)
    assert waits.outlasts(3.0, 5.0) == 1.0
    assert waits.outlasts(3.0, 7.0) == 0.0
    assert waits.outlasts(10.0, 1.0) == 1.0


@given(st.lists(st.floats(0.0, 1e3), min_size=1, max_size=30), st.floats(0, 1e3), st.floats(0, 1e3))
def test_only_recent_waits_count(seconds, elapsed_s, span_s):
    """With room for eight the answer is that of a new model which has seen the last eight."""
    waits, fresh = ToolWaits(size=8), ToolWaits()
    for value in seconds:
        waits.observe(value)
    for value in seconds[-8:]:
        fresh.observe(value)
    assert waits.outlasts(elapsed_s, span_s) == fresh.outlasts(elapsed_s, span_s)


def test_reloading_is_linear_plus_the_pairs(build):
    """2000 tokens at 1000/s and 1 us per pair: 2 s + 2e6 pairs * 1e-6 = 4 s."""
    assert reload_s(2000, build.context(prefill_s_per_pair=1e-6)) == pytest.approx(4.0)


def test_time_left_is_the_share_of_turns_left():
    """A class of 10 turns in 100 s: after 4 turns 60 s are left."""
    classes = ClassModel(64)
    for _ in range(5):
        classes.observe(1000, turns=10, private=0, active_s=100.0)
    assert classes.left_s(1000, 0) == pytest.approx(100.0)
    assert classes.left_s(1000, 4) == pytest.approx(60.0)


def test_time_alone_left_is_the_share_of_turns_left_of_the_classs_time_alone():
    """Infinite before any session has ended; then 10 turns in 40 s alone: 24 s after four of them."""
    classes = ClassModel()
    assert classes.alone_left_s(1000, 0) == math.inf
    for _ in range(10):
        classes.observe(1000, turns=10, private=0, active_s=100.0, alone_s=40.0)
    assert classes.alone_left_s(1000, 0) == pytest.approx(40.0)
    assert classes.alone_left_s(1000, 4) == pytest.approx(24.0)


def test_classes_are_half_octaves_of_the_first_prompt():
    """round(2*log2): 1024 -> 20, 1200 -> 20 (20.46), 1250 -> 21 (20.58), 2048 -> 22; 0 counts as 1."""
    assert [ClassModel.key(tokens) for tokens in (0, 1024, 1200, 1250, 2048)] == [0, 20, 20, 21, 22]


def test_remaining_turns_are_the_mean_of_those_that_got_further():
    """Members of 5, 10, 20, 30 and 40 turns: after 8 turns (2+12+22+32)/4 = 17, after 25 only two
    got further, too few: 30-25 -> 10 at least.
    """
    model = ClassModel(history=64)
    for turns in (5, 10, 20, 30, 40):
        model.observe(1000, turns=turns, private=0, active_s=1.0)
    assert model.remaining_turns(1000, 8) == pytest.approx(17.0)
    assert model.remaining_turns(1000, 8) == pytest.approx(17.0), "the same when asked again"
    assert model.remaining_turns(1000, 25) == 10.0


def test_without_history_a_session_is_expected_to_have_30_turns():
    """30 - 4 = 26 turns left after 4; never fewer than 10."""
    model = ClassModel(history=64)
    assert model.remaining_turns(1000, 4) == 26.0
    assert model.remaining_turns(1000, 29) == 10.0


def test_a_class_with_few_members_borrows_from_all():
    """Four short sessions of a class are not enough: all eight members count; the fifth makes it
    a class of its own.
    """
    model = ClassModel(history=64)
    for _ in range(4):
        model.observe(100_000, turns=41, private=0, active_s=1.0)
        model.observe(1000, turns=3, private=0, active_s=1.0)
    assert model.remaining_turns(1000, 1) == pytest.approx((4 * 40 + 4 * 2) / 8)
    model.observe(1000, turns=3, private=0, active_s=1.0)
    assert model.remaining_turns(1000, 1) == pytest.approx(2.0)


def test_only_recent_sessions_are_remembered():
    """With a history of 5 the sixth member pushes the first out."""
    model = ClassModel(history=5)
    for turns in (100, 6, 6, 6, 6, 6):
        model.observe(1000, turns=turns, private=0, active_s=1.0)
    assert model.remaining_turns(1000, 1) == pytest.approx(5.0)


def test_expected_time_of_a_class_is_shrunk_towards_all():
    """All: (100+10+10)/3 = 40 s. The class with 100 s: (100 + 5*40)/6 = 50; with 20 s: (20 + 200)/7;
    a class never seen: 40.
    """
    model = ClassModel(history=64)
    model.observe(64_000, turns=9, private=0, active_s=100.0)
    model.observe(1000, turns=9, private=0, active_s=10.0)
    model.observe(1000, turns=9, private=0, active_s=10.0)
    assert model.active_s(64_000) == pytest.approx(50.0)
    assert model.active_s(1000) == pytest.approx(220 / 7)
    assert model.active_s(8000) == pytest.approx(40.0)


def test_before_anyone_has_ended_shorter_prompts_are_expected_to_be_shorter():
    """The order of expected times is the order of first prompts."""
    model = ClassModel(history=64)
    assert model.active_s(1000) < model.active_s(2000)
