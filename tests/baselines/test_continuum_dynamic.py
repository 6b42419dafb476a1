"""The computed TTL of the Continuum paper."""

from __future__ import annotations

import pytest

from baselines.continuum_dynamic import ContinuumDynamic
from marsbench.events import Kind


def trained(build, waits, tool="bash", **params):
    policy = ContinuumDynamic(build.context(params={"min_records": 3, **params}))
    for wait_s in waits:
        policy.observe_wait(tool, wait_s)
    return policy


def test_cold_start_uses_the_default(build):
    """Up to K observations the TTL is 2 s."""
    assert trained(build, [9.0, 9.0, 9.0]).ttl_s("bash", build.turn()) == 2.0


def test_ttl_maximises_expected_benefit(build):
    """Reload of 4000 tokens = 4 s, no delays: P*4 - t over waits 0.1, 0.2, 1, 30.

    t = 0.1: 1/4*4 - 0.1 = 0.9; 0.2: 2/4*4 - 0.2 = 1.8; 1: 3/4*4 - 1 = 2.0 (best); 30: -26.
    """
    policy = trained(build, [30.0, 0.2, 1.0, 0.1])
    assert policy.ttl_s("bash", build.turn(computed_tokens=4000)) == 1.0


def test_no_ttl_if_no_wait_pays(build):
    """A reload of 0.1 s is cheaper than any of the waits."""
    policy = trained(build, [5.0, 6.0, 7.0, 8.0])
    assert policy.ttl_s("bash", build.turn(computed_tokens=100)) == 0.0


def test_own_distribution_needs_more_than_k(build):
    """A tool with few observations borrows all waits; with enough it uses its own."""
    policy = trained(build, [1.0] * 4)
    for _ in range(3):
        policy.observe_wait("make", 3.0)
    turn = build.turn(computed_tokens=10_000)
    # All: P(1) = 4/7 -> 5.71 - 1 = 4.71; P(3) = 1 -> 10 - 3 = 7.
    assert policy.ttl_s("make", turn) == 3.0
    assert policy.ttl_s("bash", turn) == 1.0


def test_queueing_delay_of_evicted_returns_adds_to_the_benefit(build):
    """Only returns without a pin count: delay 8 s, so waits of 5 s pay although reload is 1 s."""
    policy = trained(build, [5.0] * 4)
    turn = build.turn(computed_tokens=1000)
    assert policy.ttl_s("bash", turn) == 0.0
    policy.on_event(build.event(Kind.KV_PIN, 0.0, 3))
    policy.on_event(build.event(Kind.GPU_SUBMIT, 0.0, 3, turn=1))
    policy.on_event(build.event(Kind.GPU_SCHED_FIRST, 100.0, 3, turn=1))
    assert policy.ttl_s("bash", turn) == 0.0
    policy.on_event(build.event(Kind.GPU_SUBMIT, 0.0, 4, turn=1))
    policy.on_event(build.event(Kind.GPU_SCHED_FIRST, 8.0, 4, turn=1))
    assert policy.ttl_s("bash", turn) == 5.0


def test_continuity_is_minus_the_correlation(build):
    """Two sessions of 3 turns: pairs (1,2), (2,1), (3,0) fall on a line, so eta = 1;
    sessions of 1 and 3 turns add (1,0): corr of (1,0),(1,2),(2,1),(3,0) is -0.4264."""
    same = trained(build, [])
    mixed = trained(build, [])
    for session, turns in ((0, 3), (1, 3)):
        same.on_event(build.event(Kind.GPU_END, 1.0, session, turn=turns - 1))
        same.on_event(build.event(Kind.SESSION_END, 1.0, session))
    for session, turns in ((0, 1), (1, 3)):
        mixed.on_event(build.event(Kind.GPU_END, 1.0, session, turn=turns - 1))
        mixed.on_event(build.event(Kind.SESSION_END, 1.0, session))
    assert same._continuity.factor() == pytest.approx(1.0)
    # x = 1,1,2,3 (mean 1.75), y = 0,2,1,0 (mean 0.75): cov -1.25/4, var 2.75/4 each.
    assert mixed._continuity.factor() == pytest.approx(1.25 / 2.75)
    assert trained(build, [])._continuity.factor() == 1.0


def test_old_waits_are_forgotten(build):
    """After 1000 waits of 1 s the first ones of 9 s have left the distribution."""
    policy = trained(build, [9.0] * 500 + [1.0] * 1000)
    assert policy.ttl_s("bash", build.turn(computed_tokens=16_000)) == 1.0


def test_a_larger_benefit_keeps_longer(build):
    """A reload of 1 s keeps nothing over waits of 2 and 9 s; 16 s keep all: P(9)*16 - 9 = 7, and 2 s
    half of them: 16/2 - 2 = 6.
    """
    turn = build.turn(computed_tokens=1000)
    assert trained(build, [2.0, 2.0, 9.0, 9.0]).ttl_s("bash", turn) == 0.0
    assert trained(build, [2.0, 2.0, 9.0, 9.0], benefit_scale=16).ttl_s("bash", turn) == 9.0
