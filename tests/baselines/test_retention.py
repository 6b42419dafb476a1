"""Retention rules of fixed TTL, InferCept and Continuum."""

from __future__ import annotations

import pytest

from baselines.continuum import Continuum
from baselines.fixed_ttl import FixedTtl
from baselines.infercept import InferCept
from marsbench.events import Kind


def test_fixed_ttl_keeps_all_but_the_last_turn(build):
    """A turn that ends at 4 s is kept until 4 + 6 s."""
    policy, engine = FixedTtl(build.context()), build.engine()
    assert policy.on_turn_end(build.turn(), ("ls",), False, engine, 4.0).until_s == 10.0
    assert policy.on_turn_end(build.turn(), (), True, engine, 4.0) is None


def test_fixed_ttl_parameter(build):
    """``ttl_s`` overrides the constant."""
    policy = FixedTtl(build.context(params={"ttl_s": 1.5}))
    assert policy.on_turn_end(build.turn(), ("ls",), False, build.engine(), 4.0).until_s == 5.5


def test_infercept_drops_at_break_even(build):
    """C = 1000 at 1000 tokens/s: T = 1 s; others hold 3000, so keeping pays for T*(C+3000)/C = 4 s."""
    policy = InferCept(build.context())
    engine = build.engine(running=(build.turn(session=5, computed_tokens=3000),))
    pin = build.pin(context_tokens=1000, since_s=10.0)
    assert list(policy.review([pin], engine, 13.99)) == []
    assert list(policy.review([pin], engine, 14.01)) == [pin]
    assert list(policy.review([pin], build.engine(), 11.01)) == [pin]  # nobody waits: 1 s


def test_infercept_counts_the_quadratic_term(build):
    """With 1e-6 s a pair: T(2000) = 2 + 1e-6 * 2000^2 / 2 = 4 s."""
    policy = InferCept(build.context(prefill_s_per_pair=1e-6))
    pin = build.pin(context_tokens=2000, since_s=0.0)
    assert policy.excess_waste(pin, 0, 4.0) == pytest.approx(0.0)


def test_infercept_spares_sessions_that_are_back(build):
    """A returned session is not dropped by review and is reclaimed last."""
    policy, engine = InferCept(build.context()), build.engine()
    back, away = build.pin(session=1, returned=True), build.pin(session=2, since_s=99.0)
    assert list(policy.review([back], engine, 100.0)) == []
    assert max((back, away), key=lambda p: policy.reclaim_key(p, engine, 100.0)) is away


def ends_turn(policy, build, tool, at_s, session=0):
    return policy.on_turn_end(build.turn(session=session), (tool,), False, build.engine(), at_s)


def test_continuum_pins_unseen_and_quick_tools_only(build):
    """Waits of 1 s and 4 s give a mean of 2.5 s > 2 s: no pin; one more of 0.5 s gives 1.83 s."""
    policy = Continuum(build.context())
    assert ends_turn(policy, build, "bash", 0.0).until_s == 2.0
    policy.on_event(build.event(Kind.TURN_READY, 1.0, turn=1))
    assert ends_turn(policy, build, "bash", 10.0).until_s == 12.0
    policy.on_event(build.event(Kind.TURN_READY, 14.0, turn=2))
    assert ends_turn(policy, build, "bash", 20.0) is None
    policy.on_event(build.event(Kind.TURN_READY, 20.5, turn=3))
    assert ends_turn(policy, build, "bash", 30.0).until_s == 32.0
    assert ends_turn(policy, build, "pytest", 30.0, session=1).until_s == 32.0


def test_continuum_counts_a_return_once(build):
    """The submission that follows a return is not a second observation."""
    policy = Continuum(build.context())
    ends_turn(policy, build, "bash", 0.0)
    policy.on_event(build.event(Kind.TURN_READY, 1.0, turn=1))
    policy.on_event(build.event(Kind.GPU_SUBMIT, 99.0, turn=1))
    assert ends_turn(policy, build, "bash", 100.0) is not None


def test_continuum_keys_parallel_calls_by_their_tools(build):
    """A search and a test run at once took 9 s. That tells about those two together, in whichever
    order and however often each was called, and nothing about a search alone.
    """
    policy, engine = Continuum(build.context()), build.engine()
    policy.on_turn_end(build.turn(), ("search", "pytest"), False, engine, 0.0)
    policy.on_event(build.event(Kind.TURN_READY, 9.0, turn=1))
    both = policy.on_turn_end(build.turn(), ("pytest", "search", "search"), False, engine, 10.0)
    assert both is None
    alone = build.turn(session=1)
    assert policy.on_turn_end(alone, ("search",), False, engine, 10.0).until_s == 12.0


def test_continuum_needs_a_tool_call(build):
    """A turn without tools or after which nothing comes is not pinned."""
    policy, engine = Continuum(build.context()), build.engine()
    assert policy.on_turn_end(build.turn(), (), False, engine, 0.0) is None
    assert policy.on_turn_end(build.turn(), ("bash",), True, engine, 0.0) is None


def test_continuum_order_is_pinned_then_oldest(build):
    """A pinned young session passes; after its pin is gone it is behind again."""
    policy, engine = Continuum(build.context()), build.engine()
    old = build.turn(session=0, session_arrival_s=0.0)
    young = build.turn(session=1, session_arrival_s=5.0)
    policy.on_event(build.event(Kind.KV_PIN, 6.0, 1))
    assert policy.waiting_key(young, engine, 7.0) < policy.waiting_key(old, engine, 7.0)
    policy.on_event(build.event(Kind.KV_UNPIN, 8.0, 1))
    assert policy.waiting_key(young, engine, 9.0) > policy.waiting_key(old, engine, 9.0)


def test_continuum_gives_up_the_latest_expiry(build):
    """Under pressure the pin that would last longest goes first, expiry spares who is back."""
    policy, engine = Continuum(build.context()), build.engine()
    pins = [build.pin(session=s, until_s=u) for s, u in ((0, 5.0), (1, 9.0), (2, 7.0))]
    assert max(pins, key=lambda p: policy.reclaim_key(p, engine, 1.0)).session == 1
    assert policy.spares_returned()


@pytest.mark.parametrize("policy", [FixedTtl, InferCept, Continuum])
def test_pins_do_not_yield_to_waiting_turns(build, policy):
    """A newcomer that does not fit waits for pins to end instead of taking them."""
    pin, newcomer = build.pin(session=0), build.turn(session=1)
    assert policy(build.context()).yields_to(pin, newcomer, build.engine(), 1.0) is False
