"""Who may enter: static window and CONCUR."""

from __future__ import annotations

import pytest

from baselines.concur import Concur
from baselines.static import StaticWindow
from marsbench.errors import ConfigError


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
