"""Which contexts are evicted first: tail-optimised LRU and CacheWise."""

from __future__ import annotations

import math

from baselines.cachewise import CacheWise
from baselines.tlru import Tlru
from marsbench.events import Kind


def given_up(policy, pins, engine, now_s):
    pins = sorted(pins, key=lambda pin: policy.reclaim_key(pin, engine, now_s), reverse=True)
    return [pin.session for pin in pins]


def test_tlru_protects_what_would_make_the_next_turn_slow(build):
    """With 1024 tokens to come and 8192 allowed, 7168 may be lost and 7169 may not."""
    policy, engine = Tlru(build.context()), build.engine()
    for tokens, kept in ((7168, False), (7169, True)):
        turn = build.turn(prompt_tokens=tokens)
        assert (policy.on_turn_end(turn, ("ls",), False, engine, 0.0) is not None) == kept


def test_tlru_gives_up_the_least_recently_used_and_to_everybody(build):
    """Kept since 5, 1 and 3 s: 1, 3, 5; a waiting turn may take them."""
    policy, engine = Tlru(build.context()), build.engine()
    pins = [build.pin(session=n, since_s=since) for n, since in enumerate((5.0, 1.0, 3.0))]
    assert given_up(policy, pins, engine, 9.0) == [1, 2, 0]
    assert policy.yields_to(pins[0], build.turn(session=7), engine, 9.0)


def test_cachewise_takes_cached_prefixes_first(build):
    """Preempted, then cached, then cold turns, each in order of submission."""
    policy, engine = CacheWise(build.context()), build.engine(cached={2: 16, 3: 900})
    turns = [build.turn(session=n, sequence=n, num_preemptions=int(n == 4)) for n in range(5)]
    turns.sort(key=lambda turn: policy.waiting_key(turn, engine, 0.0))
    assert [turn.session for turn in turns] == [4, 2, 3, 0, 1]


def test_cachewise_gives_up_who_is_expected_back_last(build):
    """Listings take 1 s and tests 60 s. At 10 s a test begun at 0 s is 50 s away, a listing begun at 9.5 s
    half a second; a listing begun at 0 s is 9 s late and counts as 9 s away; who is back goes last.
    """
    policy, engine = CacheWise(build.context()), build.engine()
    policy.observe_wait("ls", 1.0)
    policy.observe_wait("pytest", 60.0)
    for session, (tool, since_s) in enumerate((("pytest", 0.0), ("ls", 9.5), ("ls", 0.0))):
        turn = build.turn(session=session)
        assert policy.on_turn_end(turn, (tool,), False, engine, since_s).until_s == math.inf
    pins = [build.pin(session=n, since_s=since) for n, since in enumerate((0.0, 9.5, 0.0))]
    pins.append(build.pin(session=3, returned=True))
    assert given_up(policy, pins, engine, 10.0) == [0, 2, 1, 3]


def test_cachewise_learns_how_long_tools_take(build):
    """Two seconds before anything is seen, then the mean of all, then the tool's own."""
    policy, engine = CacheWise(build.context()), build.engine()
    assert policy.expected_wait_s("ls") == 2.0
    policy.on_turn_end(build.turn(), ("pytest",), False, engine, 0.0)
    policy.on_event(build.event(Kind.TURN_READY, 30.0, turn=1))
    assert policy.expected_wait_s("ls") == 30.0
    policy.observe_wait("ls", 1.0)
    assert (policy.expected_wait_s("ls"), policy.expected_wait_s("pytest")) == (1.0, 30.0)
