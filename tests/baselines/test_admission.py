"""Who may enter: static window, CONCUR and ThunderAgent."""

from __future__ import annotations

import pytest

from baselines.concur import Concur
from baselines.static import StaticWindow
from baselines.thunderagent import ThunderAgent
from marsbench.errors import ConfigError
from marsbench.events import Kind


def names(sessions):
    return [s.session for s in sessions]


def test_static_fills_the_window_in_order(build):
    """Two of three places taken: one enters, and a sub-agent passes."""
    policy = StaticWindow(build.context(params={"window": 3}))
    view = build.system(active=tuple(build.session(session=s, phase="tool") for s in (0, 1)))
    pending = [
        build.session(session=5),
        build.session(session=6),
        build.session(session=7, is_child=True),
    ]
    assert names(policy.admit(pending, view, 0.0)) == [5, 7]


def test_static_children_take_no_place(build):
    """A window of 2 holds two top-level sessions although their children are active."""
    policy = StaticWindow(build.context(params={"window": 2}))
    active = (build.session(session=0), build.session(session=1, is_child=True))
    assert names(policy.admit([build.session(session=9)], build.system(active=active), 0.0)) == [9]


def test_static_rejects_an_empty_window(build):
    """A window of 0 could never start."""
    with pytest.raises(ConfigError, match="window must be at least 1"):
        StaticWindow(build.context(params={"window": 0}))


def concur_after(build, *, free, hit, times=1, **params):
    policy = Concur(build.context(params=params))
    view = build.system(free_blocks=free, prefix_cache_hit_rate=hit)
    for step in range(times):
        policy.admit([], view, 5.0 * (step + 1))
    return policy.window


def test_concur_window_moves_with_use_and_hits(build):
    """Use 0.1: 8 -> 10 -> 12. Use 0.6 and hits 0.1: 8 -> 4 -> 2. Otherwise it holds."""
    assert concur_after(build, free=900, hit=1.0, times=2) == 12.0
    assert concur_after(build, free=400, hit=0.1, times=2) == 2.0
    assert concur_after(build, free=400, hit=0.9) == 8.0
    assert concur_after(build, free=700, hit=0.1) == 8.0
    assert concur_after(build, free=0, hit=0.0, times=9) == 1.0


def test_concur_adapts_once_per_interval(build):
    """Calls within 5 s of the last step change nothing."""
    policy = Concur(build.context())
    view = build.system(free_blocks=1000)
    for now_s in (4.9, 5.0, 5.1, 9.9):
        policy.admit([], view, now_s)
    assert policy.window == 10.0


def test_concur_pauses_the_newest_and_resumes_before_admitting(build):
    """W = 2 of 3 active: the third waits between turns; nobody new enters."""
    policy = Concur(build.context(params={"window_init": 2}))
    active = tuple(build.session(session=s, turn_index=1) for s in (0, 1, 2))
    view = build.system(active=active)
    pending = [active[2], active[0], build.session(session=3)]
    assert names(policy.admit(pending, view, 0.0)) == [0]
    view = build.system(active=(active[0], active[2]))
    assert names(policy.admit([active[2], build.session(session=3)], view, 1.0)) == [2]
    view = build.system(active=(active[2],))
    assert names(policy.admit([build.session(session=3)], view, 2.0)) == [3]


def thunder(build, tokens=10_000, **params):
    """ThunderAgent on a cache of ``tokens``."""
    return ThunderAgent(build.context(num_blocks=tokens, block_size=1, params=params))


def test_thunder_admits_what_fits(build):
    """10,000 tokens: a running 6000 leaves room for 3900 + 100, not for 3901 + 100."""
    running = build.session(session=0, context_tokens=6000, phase="engine")
    view = build.system(active=(running,))
    fits = build.session(session=1, prompt_tokens=3900, context_tokens=0)
    large = build.session(session=1, prompt_tokens=3901, context_tokens=0)
    assert names(thunder(build).admit([fits], view, 0.0)) == [1]
    assert names(thunder(build).admit([large], view, 0.0)) == []


def test_thunder_tool_time_halves_a_context(build):
    """8000 tokens in tools since 1 s count 4000, since 3 s count 1000."""
    policy = thunder(build)
    new = build.session(session=1, prompt_tokens=6000, context_tokens=0)
    for now_s, expected in ((1.0, []), (6.5, [1])):
        acting = build.session(session=0, context_tokens=8000, phase="tool", phase_since_s=0.0)
        assert names(policy.admit([new], build.system(active=(acting,)), now_s)) == expected


def test_thunder_pauses_acting_smallest_first_then_marks_reasoning(build):
    """Load 6000 + 5000 + (2000 + 1000) just gone to tools = 14,000 of 10,000: both acting pause
    (11,000 left), then the smaller running one is marked and pauses when its turn ends."""
    policy = thunder(build)
    active = (
        build.session(session=0, context_tokens=6000, phase="engine"),
        build.session(session=1, context_tokens=5000, phase="engine"),
        build.session(session=2, context_tokens=2000, phase="tool", phase_since_s=100.0),
        build.session(session=3, context_tokens=1000, phase="tool", phase_since_s=100.0),
    )
    policy.admit([], build.system(active=active), 100.0)
    assert set(policy.paused) == {2, 3}
    assert policy.marked == {1}
    policy.on_event(build.event(Kind.GPU_END, 103.0, 1))
    assert set(policy.paused) == {1, 2, 3}


def test_thunder_stops_pausing_when_it_fits(build):
    """11,000 of 10,000 with 1500 and 4000 acting: the 1500 suffices."""
    policy = thunder(build)
    active = (
        build.session(session=0, context_tokens=5500, phase="engine"),
        build.session(session=1, context_tokens=4000, phase="tool", phase_since_s=9.0),
        build.session(session=2, context_tokens=1500, phase="tool", phase_since_s=9.0),
    )
    policy.admit([], build.system(active=active), 9.0)
    assert set(policy.paused) == {2}
    assert policy.marked == set()


def test_thunder_restores_paused_before_new_smallest_first(build):
    """Room for one of 3000-token sessions: the paused one with a turn goes before the new one,
    and the smaller paused one before the larger."""
    policy = thunder(build)
    policy.paused = {1: 0.0, 2: 0.0}
    active = (
        build.session(session=0, context_tokens=6500, phase="engine"),
        build.session(session=1, context_tokens=3200, phase="pending", turn_index=1),
        build.session(session=2, context_tokens=3000, phase="pending", turn_index=1),
    )
    pending = [active[1], build.session(session=3, prompt_tokens=500, context_tokens=0), active[2]]
    # 10,000 - 6500 = 3500: session 2 takes 3100, the rest is 400.
    assert names(policy.admit(pending, build.system(active=active), 5.0)) == [2]
    assert set(policy.paused) == {1}


def test_thunder_tests_capacity_every_period_only(build):
    """Within 5 s of a test nothing is paused, however full it is."""
    policy = thunder(build)
    policy.admit([], build.system(), 0.0)
    acting = build.session(session=0, context_tokens=50_000, phase="tool", phase_since_s=4.0)
    running = build.session(session=1, context_tokens=5000, phase="engine")
    policy.admit([], build.system(active=(acting, running)), 4.9)
    assert policy.paused == {}
    policy.admit([], build.system(active=(acting, running)), 5.0)
    assert set(policy.paused) == {0}


def test_thunder_forces_a_resume(build):
    """A session too large for the room is resumed 1800 s after it was paused."""
    policy = thunder(build)
    policy.paused = {1: 0.0}
    active = (
        build.session(session=0, context_tokens=9000, phase="engine"),
        build.session(session=1, context_tokens=5000, phase="pending", turn_index=1),
    )
    view = build.system(active=active)
    assert names(policy.admit([active[1]], view, 1799.0)) == []
    assert names(policy.admit([active[1]], view, 1804.0)) == [1]


def test_thunder_never_stops_an_idle_system(build):
    """A session larger than the cache enters when nothing else runs (the engine rejects it)."""
    huge = build.session(session=0, prompt_tokens=99_999, context_tokens=0)
    assert names(thunder(build).admit([huge], build.system(), 0.0)) == [0]
