"""Orders of the engine's queue proposed for vLLM, SGLang and llm-d: one timeline each."""

from __future__ import annotations

import math

import pytest

from baselines.program_fairness import ProgramFairness
from baselines.residual_sjf import ResidualSjf
from baselines.session_affinity import SessionAffinity
from baselines.uniboost import UniBoost
from marsbench.events import Kind


def order(policy, turns, engine, now_s):
    return [t.session for t in sorted(turns, key=lambda t: policy.waiting_key(t, engine, now_s))]


def test_residual_sjf_counts_the_blocks_that_are_left(build):
    """60,000 tokens of which 59,200 are cached (50 blocks of 16 left) pass 1000 cold ones (62 blocks);
    1007 cold tokens are 62 blocks, too, and go by submission; a preempted turn stays in front.
    """
    engine = build.engine(cached={2: 59_200})
    turns = [
        build.turn(session=0, sequence=0, prompt_tokens=1007),
        build.turn(session=1, sequence=1, prompt_tokens=1000),
        build.turn(session=2, sequence=2, prompt_tokens=60_000),
        build.turn(session=3, sequence=3, prompt_tokens=90_000, num_preemptions=1),
    ]
    assert order(ResidualSjf(build.context()), turns, engine, 1.0) == [3, 2, 0, 1]


def test_residual_sjf_lets_stragglers_pass(build):
    """A large prompt that has waited 10 s goes before a small one, not before."""
    old = build.turn(session=0, sequence=0, prompt_tokens=60_000, ready_s=0.0)
    small = build.turn(session=1, sequence=1, prompt_tokens=100, ready_s=9.0)
    policy = ResidualSjf(build.context())
    assert order(policy, [old, small], build.engine(), 9.9) == [1, 0]
    assert order(policy, [old, small], build.engine(), 10.0) == [0, 1]


def affinity_case(build, **changes):
    """Two cold turns, then two warm continuations of sessions that ran at 1 s and 2 s."""
    turns = tuple(
        build.turn(session=n, sequence=n, turn_index=int(n > 1), ready_s=3.0) for n in range(4)
    )
    policy = SessionAffinity(build.context(params=changes))
    for session in (2, 3):
        policy.on_event(build.event(Kind.GPU_END, session - 1.0, session))
    return policy, turns, build.engine(waiting=turns, cached={2: 64, 3: 64})


def test_session_affinity_promotes_one_warm_continuation(build):
    """The first warm one passes, the second keeps its place; a cold first turn never passes."""
    policy, turns, engine = affinity_case(build)
    assert order(policy, turns, engine, 4.0) == [2, 0, 1, 3]


def test_session_affinity_is_bounded_in_window_wait_hit_and_age(build):
    """Beyond the window of 2, once the head has waited 2 s, for a hit below 5 blocks of 16 tokens, and 60 s
    after the session ran, the order is that of submission.
    """
    arrival = [0, 1, 2, 3]
    for changes, now_s in (({"window": 2}, 4.0), ({}, 5.0), ({"min_blocks": 5}, 4.0)):
        policy, turns, engine = affinity_case(build, **changes)
        assert order(policy, turns, engine, now_s) == arrival
    policy, turns, engine = affinity_case(build, head_wait_s=1000, recent_s=60)
    assert order(policy, turns, engine, 61.0) == [2, 0, 1, 3]
    assert order(policy, turns, engine, 61.5) == [3, 0, 1, 2]
    assert order(policy, turns, engine, 62.5) == arrival


def test_session_affinity_never_passes_a_preempted_turn(build):
    """The preempted turn first, then the promoted one."""
    policy, turns, _ = affinity_case(build)
    preempted = build.turn(session=9, sequence=9, num_preemptions=1, ready_s=3.9)
    engine = build.engine(waiting=(*turns, preempted), cached={2: 64, 3: 64})
    assert order(policy, [*turns, preempted], engine, 4.0) == [9, 2, 0, 1, 3]


def test_uniboost_moves_a_turn_by_its_work(build):
    """At 0.1 per second, 1 s of prefill is worth ln(1/(1 - e^-0.1))/0.1 = 23.5 s and 10 s of it 4.6 s: a
    small turn passes a large one that is up to 18.9 s older. Prefix hits are no work.
    """
    policy = UniBoost(build.context())
    assert policy.boost_s(1.0) == pytest.approx(-math.log(1 - math.exp(-0.1)) / 0.1)
    large = build.turn(session=0, sequence=0, prompt_tokens=10_000, ready_s=0.0)
    for ready_s, expected in ((18.8, [1, 0]), (19.0, [0, 1])):
        small = build.turn(session=1, sequence=1, prompt_tokens=1000, ready_s=ready_s)
        assert order(policy, [large, small], build.engine(), 20.0) == expected
        warm = build.engine(cached={0: 9000})
        assert order(policy, [large, small], warm, 20.0) == [0, 1]


def test_uniboost_without_gamma_is_first_come_first_served(build):
    """No boost for anybody."""
    assert UniBoost(build.context(params={"gamma_per_s": 0.0})).boost_s(0.001) == 0.0


def fair_case(build, **params):
    """Session 0 has had 1000 + 2 * 500 tokens at 0 s, session 1 only 1000."""
    policy = ProgramFairness(build.context(params=params))
    for session, output in ((0, 500), (1, 0)):
        policy.on_event(build.event(Kind.TURN_READY, 0.0, session, prompt_tokens=1000))
        policy.on_event(build.event(Kind.GPU_END, 0.0, session, output_tokens=output))
    return policy


def test_program_fairness_halves_service_with_time(build):
    """2000 tokens are 1000 after a minute and 500 after two; the next turn adds to what is left."""
    policy = fair_case(build)
    assert [policy.service(0, at_s) for at_s in (0.0, 60.0, 120.0)] == [2000.0, 1000.0, 500.0]
    policy.on_event(build.event(Kind.GPU_END, 60.0, 0, output_tokens=0))
    assert policy.service(0, 60.0) == 2000.0


def test_program_fairness_weighs_service_against_the_wait(build):
    """Of 2000 and 1000 tokens the second goes first (0.8 * 0.5 = 0.4 against a wait worth 0.2) unless the
    wait weighs more than a third: 0.5 * 0 + 0.5 * 1 against 0.5 * 0.5 + 0.
    """
    served = build.turn(session=0, sequence=0, ready_s=0.0)
    other = build.turn(session=1, sequence=1, ready_s=10.0)
    engine = build.engine(waiting=(served, other))
    assert order(fair_case(build), [served, other], engine, 10.0) == [1, 0]
    assert order(fair_case(build, wait_weight=0.5), [served, other], engine, 10.0) == [0, 1]
