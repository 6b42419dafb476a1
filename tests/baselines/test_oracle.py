"""The clairvoyant order, memory plan and retention."""

from __future__ import annotations

import pytest
from policy_views import Host

from baselines.foresight import foresee, memory_profiles
from baselines.oracle import Oracle
from marsbench.core import Session, SharedPrefix, ToolCall, Turn
from marsbench.events import Kind


def tool(wall_s):
    return ToolCall(name="t", tool_class="shell_read", wall_s=wall_s)


def session(name, *turns):
    return Session(name, tuple(Turn(new, out, tools=(tool(gap),)) for new, out, gap in turns))


def names(sessions):
    return [s.session for s in sessions]


def test_remaining_time_shrinks_along_the_session(build):
    """Turns of 1 + 1 s and 0.1 + 0 s with 8 s of tools between: 10.1, then 8.1 - 3, then 0.1."""
    sessions = [session("a", (1000, 51, 8.0), (100, 1, 0.0))]
    oracle = Oracle(build.context(), sessions)
    assert oracle.remaining_s(0, 0.0) == pytest.approx(10.1)
    oracle.on_event(build.event(Kind.GPU_END, 5.0))
    assert oracle.remaining_s(0, 8.0) == pytest.approx(5.1)
    assert oracle.remaining_s(0, 80.0) == pytest.approx(0.1)
    oracle.on_event(build.event(Kind.TURN_READY, 20.0, turn=1))
    assert oracle.remaining_s(0, 20.0) == pytest.approx(0.1)


def test_children_have_indices_after_all_top_level_sessions(build):
    """Both children of a's turn (20 and 60 tokens), the first one's child (10), then b's (50)."""
    end = Turn(100, 1)
    grandchild = session("aaa", (10, 1, 0.0))
    child = Session("aa", (Turn(20, 1, children=(grandchild,)), end))
    other = session("ab", (60, 1, 0.0))
    sessions = [
        Session("a", (Turn(30, 1, children=(child, other)), end)),
        Session("b", (Turn(40, 1, children=(session("ba", (50, 1, 0.0)),)), end)),
    ]
    futures = foresee(sessions, build.context())
    assert [future.root for future in futures] == [0, 1, 0, 0, 0, 1]
    assert [future.turns[0].prefill_s for future in futures] == pytest.approx(
        [0.03, 0.04, 0.02, 0.06, 0.01, 0.05]
    )
    assert futures[4].root_offset_s == pytest.approx(0.05)
    # a: 0.03 + child (0.02 + grandchild 0.01 + 0.1) + 0.1
    assert futures[0].total_s == pytest.approx(0.26)


def test_memory_profile_follows_the_context(build):
    """1600 + 16 tokens = 101 blocks of 16 for 10 s, then + 1600 + 16 tokens = 202 blocks."""
    sessions = [session("a", (1600, 16, 8.2), (1600, 16, 3.0))]
    futures = foresee(sessions, build.context())
    plan = {"bucket_s": 5.0, "block_size": 16}
    (profile,) = memory_profiles(futures, 1, **plan, drop_gap_s=30.0)
    # Turn 0: 1.6 + 0.3 + 8.2 = 10.1 s. Turn 1 from 10.1 s on.
    assert profile.tolist() == [101.0, 101.0, 202.0]
    (dropped,) = memory_profiles(futures, 1, **plan, drop_gap_s=5.0)
    assert dropped.tolist() == [101.0, 0.0, 202.0]


def test_shared_prefix_counts_once(build):
    """Cache 16,000: prefix 8000 + 3 x 2500 fit together; counted per session not even two would."""
    prefix = SharedPrefix("p", 8000)
    sessions = [Session(str(n), (Turn(2400, 50),), shared_prefix=prefix) for n in range(3)]
    oracle = Oracle(build.context(params={"memory_share": 1.0}), sessions)
    pending = [build.session(session=s) for s in range(3)]
    assert names(oracle.admit(pending, build.system(), 0.0)) == [0, 1, 2]


def test_long_gaps_are_not_retained(build):
    """A gap of 31 s is not worth its memory (drop_gap_s = 30), one of 29 s is."""
    sessions = [
        session(n, (100, 1, gap), (100, 1, 0.0)) for n, gap in zip("ab", (31, 29), strict=True)
    ]
    oracle, engine = Oracle(build.context(), sessions), build.engine()
    oracle.admit([build.session(session=s) for s in (0, 1)], build.system(), 0.0)
    kept = [oracle.on_turn_end(build.turn(session=s), ("t",), False, engine, 1.0) for s in (0, 1)]
    assert [k is not None for k in kept] == [False, True]


def test_plan_takes_the_shortest_that_fit_together(build):
    """Cache 16,000 tokens: 9000 (shortest) and 5000 fit, 8000 does not."""
    sessions = [
        session("a", (8000, 501, 1.0)),
        session("b", (9000, 1, 1.0)),
        session("c", (5000, 501, 1.0)),
    ]
    oracle = Oracle(build.context(), sessions)
    pending = [build.session(session=s) for s in range(3)]
    assert names(oracle.admit(pending, build.system(), 0.0)) == [1, 2]


def test_plan_looks_at_the_peak_not_at_today(build):
    """Two small prompts that both grow to 9000 tokens at the same time do not fit together."""
    grows = [session(n, (1000, 1, 1.0), (8000, 1, 1.0)) for n in "ab"]
    oracle = Oracle(build.context(), grows)
    pending = [build.session(session=s) for s in range(2)]
    assert names(oracle.admit(pending, build.system(), 0.0)) == [0]


def test_reserving_peaks_does_not_count_on_ends(build):
    """One session (9000 tokens) ends after 10 s, the other grows to 9000 after 20 s of tools: in time
    they fit together, by their peaks they do not."""
    sessions = [session("a", (9000, 51, 0.0)), session("b", (1000, 1, 20.0), (8000, 1, 1.0))]
    pending = [build.session(session=s) for s in range(2)]
    admitted = {}
    for share in (0, 0.97):
        oracle = Oracle(build.context(params={"peak_share": share}), sessions)
        admitted[share] = names(oracle.admit(pending, build.system(), 0.0))
    assert admitted == {0: [0, 1], 0.97: [0]}


def test_little_memory_for_long_goes_before_much_for_less_long(build):
    """9 s of 9000 tokens against 20 s of 8000, which do not fit together, and 25 s of 100: by time
    alone the last would come last; by time and the root of memory it comes first."""
    sessions = [
        session("a", (9000, 1, 0.0)),
        session("b", (8000, 601, 0.0)),
        session("c", (100, 1, 25.0), (1, 1, 0.0)),
    ]
    ranks = {}
    for weight in (0, 0.5):
        oracle = Oracle(build.context(params={"memory_weight": weight}), sessions)
        ranks[weight] = sorted(range(3), key=lambda s: oracle._rank(s, build.system(), 0.0))
    assert ranks == {0: [0, 1, 2], 0.5: [2, 0, 1]}


def test_shorter_arrival_pauses_a_longer_session_between_turns(build):
    """The long session's next turn waits, and its KV is given up, while the short one runs."""
    sessions = [
        session("long", (9000, 501, 20.0), (100, 501, 0.0)),
        session("short", (9000, 1, 0.0)),
    ]
    oracle = Oracle(build.context(), sessions)
    first = build.session(session=0)
    assert names(oracle.admit([first], build.system(), 0.0)) == [0]
    retained = oracle.on_turn_end(build.turn(session=0), ("t",), False, build.engine(), 20.0)
    assert retained is not None
    oracle.on_event(build.event(Kind.GPU_END, 20.0))
    oracle.on_event(build.event(Kind.SESSION_ARRIVE, 21.0, 1))
    active = build.session(session=0, phase="tool", phase_since_s=20.0)
    view = build.system(active=(active,))
    assert names(oracle.admit([build.session(session=1)], view, 21.0)) == [1]
    pin = build.pin(session=0)
    assert list(oracle.review([pin], build.engine(), 21.0)) == [pin]


def test_farthest_next_use_is_given_up_first(build):
    """Gaps end at 30 s and 12 s; a session that is back is due now."""
    sessions = [
        session(n, (100, 1, gap), (100, 1, 0.0)) for n, gap in zip("abc", (30, 12, 1), strict=True)
    ]
    oracle, engine = Oracle(build.context(), sessions), build.engine()
    pins = [
        build.pin(session=0),
        build.pin(session=1),
        build.pin(session=2, returned=True),
    ]
    order = sorted(pins, key=lambda p: oracle.reclaim_key(p, engine, 5.0), reverse=True)
    assert names(order) == [0, 1, 2]


def test_lost_cache_counts_as_remaining_work(build):
    """Equal sessions, but one would have to prefill its 4001 reusable tokens again (4 s)."""
    sessions = [session(n, (4000, 1, 1.0), (100, 1, 0.0)) for n in "ab"]
    oracle = Oracle(build.context(), sessions)
    for index in (0, 1):
        oracle.on_event(build.event(Kind.TURN_READY, 9.0, index, turn=1))
    engine = build.engine(cached=((1, 4001),))
    cold = oracle.waiting_key(build.turn(session=0, turn_index=1), engine, 9.0)
    warm = oracle.waiting_key(build.turn(session=1, turn_index=1), engine, 9.0)
    assert cold[0] - warm[0] == pytest.approx(4.001)


def test_tools_of_sessions_with_more_left_stand_back(build):
    """Tools of 100, 10 and 50 s run: behind one that ends sooner 5 levels, behind two 10."""
    sessions = [
        session(n, (100, 1, gap), (1, 1, 0.0)) for n, gap in (("a", 100), ("b", 10), ("c", 50))
    ]
    oracle = Oracle(build.context(), sessions)
    for index in range(3):
        oracle.on_event(build.event(Kind.GPU_END, 1.0, session=index))
    view = build.system(active=[build.session(session=n, phase="tool") for n in range(3)])
    calls = [build.session(session=n) for n in range(3)]
    assert [oracle.niceness(call, view, 1.0) for call in calls] == [(10, 8.0), (0, 8.0), (5, 8.0)]


# --- host memory ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host_blocks", "admitted"), [(0, [0]), (500, [0, 1]), (1000, [0, 1, 2]), (9000, [0, 1, 2])]
)
def test_host_memory_makes_places_up_to_another_gpu_s_worth(build, host_blocks, admitted):
    """Sessions of 601 blocks: 970 of the GPU's 1,000 hold one of them, with 500 of host memory 1,455
    hold two, with 1,000 or more 1,940 hold three."""
    sessions = [session(str(n), (9600, 16, 1.0)) for n in range(5)]
    oracle = Oracle(build.context(host_blocks=host_blocks), sessions)
    pending = [build.session(session=s) for s in range(5)]
    assert names(oracle.admit(pending, build.system(), 0.0)) == admitted


def test_with_host_memory_a_long_gap_keeps_its_place(build):
    """Two sessions of 701 blocks and 60 s of tools: without host memory the gap's memory is another's,
    with it (970 + 291 blocks in all) both hold theirs, and the second does not fit."""
    sessions = [session(n, (11_200, 16, 60.0), (10, 1, 0.0)) for n in "ab"]
    admitted = []
    for host_blocks in (0, 300):
        oracle = Oracle(build.context(host_blocks=host_blocks), sessions)
        oracle.on_event(build.event(Kind.GPU_END, 20.0))
        running = build.session(session=0, phase="tool")
        view = build.system(active=(running,))
        admitted.append(names(oracle.admit([build.session(session=1)], view, 25.0)))
    assert admitted == [[1], []]


def test_what_lies_in_host_memory_comes_back_over_the_link(build):
    """Of 4,001 reusable tokens the GPU has 1,000 and host memory 3,000: 2,000 at 100,000 tokens/s and
    1,001 computed at 1,000/s, 1.021 s more than for a session that has all of them."""
    sessions = [session(n, (4000, 1, 1.0), (100, 1, 0.0)) for n in "ab"]
    oracle = Oracle(build.context(host_blocks=500), sessions)
    for index in (0, 1):
        oracle.on_event(build.event(Kind.TURN_READY, 9.0, index, turn=1))
    engine = build.engine(cached=((0, 1000), (1, 4001)), host=Host(held=((0, 3000),)))
    back = oracle.waiting_key(build.turn(session=0, turn_index=1), engine, 9.0)
    warm = oracle.waiting_key(build.turn(session=1, turn_index=1), engine, 9.0)
    assert back[0] - warm[0] == pytest.approx(2000 / 100_000 + 1.001)


def test_with_host_memory_only_short_waits_are_pinned(build):
    """A transfer is worth memory for a wait of 9 s, not for one of 11 s (host_gap_s = 10)."""
    sessions = [session(n, (100, 1, gap), (100, 1, 0.0)) for n, gap in (("a", 11), ("b", 9))]
    oracle, engine = Oracle(build.context(host_blocks=500), sessions), build.engine()
    oracle.admit([build.session(session=s) for s in (0, 1)], build.system(), 0.0)
    kept = [oracle.on_turn_end(build.turn(session=s), ("t",), False, engine, 1.0) for s in (0, 1)]
    assert [k is not None for k in kept] == [False, True]
