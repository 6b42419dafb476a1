"""The evolved policy of agentservesim: pins, order, victim."""

from __future__ import annotations

from baselines.evolved_gate import EvolvedGate
from marsbench.events import Kind


def test_tools_that_take_longer_than_three_seconds_are_not_waited_for(build):
    """One wait of 3 s is still kept for; one of 9 s moves the average to 4.2 s, beyond 1.5 * 2 s."""
    policy, turn = EvolvedGate(build.context()), build.turn()
    assert policy.ttl_s("bash", turn) == 2.0
    policy.observe_wait("bash", 3.0)
    assert policy.ttl_s("bash", turn) == 2.0
    policy.observe_wait("bash", 9.0)
    assert policy.ttl_s("bash", turn) == 0.0


def test_pinned_sessions_go_first_then_arrival_with_a_bonus_for_small_contexts(build):
    """Sessions of 1000 and 9000 tokens, the larger 7 s older: 8 s later by size, it goes second. One of
    90,000 counts as 10,000. A pin passes all.
    """
    policy, engine = EvolvedGate(build.context()), build.engine()
    turns = [
        build.turn(session=0, session_arrival_s=0.0, prompt_tokens=9000),
        build.turn(session=1, session_arrival_s=7.0, prompt_tokens=1000),
        build.turn(session=2, session_arrival_s=0.5, prompt_tokens=90_000),
    ]

    def order():
        return [t.session for t in sorted(turns, key=lambda t: policy.waiting_key(t, engine, 9.0))]

    assert order() == [1, 0, 2]
    policy.on_event(build.event(Kind.KV_PIN, 9.0, 2))
    assert order() == [2, 1, 0]


def test_the_victim_is_the_cheapest_to_compute_again(build):
    """1000 prompt and 900 generated tokens cost less than 2000 and 1; others pass what does not fit."""
    policy, engine = EvolvedGate(build.context()), build.engine()
    cheap = build.turn(session=0, prompt_tokens=1000, generated_tokens=900)
    dear = build.turn(session=1, prompt_tokens=2000, generated_tokens=1)
    assert max((cheap, dear), key=lambda t: policy.victim_key(t, engine, 0.0)) is cheap
    assert policy.skip_blocked()
