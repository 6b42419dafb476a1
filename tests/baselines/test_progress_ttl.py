"""Progress-TTL: the fitted TTL, who comes back first, room for growth, repair, deadlines."""

from __future__ import annotations

import math

import pytest

from baselines.progress_ttl import BUFFER_TOKENS, WINDOW, ProgressTtl
from marsbench.events import Kind

CAPACITY = 16_000


def case(build, **params):
    return ProgressTtl(build.context(params=params))


def arrive(policy, build, session, prompt, time_s=0.0):
    policy.on_event(build.event(Kind.SESSION_ARRIVE, time_s, session, prompt_tokens=prompt))
    policy.on_event(build.event(Kind.TURN_READY, time_s, session, prompt_tokens=prompt))
    return build.session(session=session, prompt_tokens=prompt, phase_since_s=time_s)


def end_turn(policy, build, session, time_s, output=10, turn=0):
    policy.on_event(build.event(Kind.GPU_FIRST_TOKEN, time_s, session, turn))
    policy.on_event(build.event(Kind.GPU_END, time_s, session, turn, output_tokens=output))


def entered(policy, build, pending, now_s=0.0, active=(), **telemetry):
    view = build.system(active=(*active, *pending), **telemetry)
    return [session.session for session in policy.admit(pending, view, now_s)]


def test_new_sessions_enter_while_contexts_and_margins_fit(build):
    """Two of 7900 tokens fill 16,000 with their margins to the last token; a third waits, and 1 token
    more in the second makes it wait.
    """
    for second, wanted in ((7900, [0, 1]), (7901, [0])):
        policy = case(build)
        pending = [arrive(policy, build, n, size) for n, size in enumerate((7900, second, 7950))]
        assert entered(policy, build, pending) == wanted


def test_nobody_enters_behind_a_turn_that_waits_in_the_engine(build):
    """One that waits there is enough, whatever memory is free."""
    policy = case(build)
    running = build.session(session=9, phase="engine")
    pending = [arrive(policy, build, 0, 100)]
    assert entered(policy, build, pending, active=[running], num_waiting=1) == []
    assert entered(policy, build, pending, active=[running], num_waiting=0) == [0]


def test_before_the_window_is_full_a_session_pauses_when_its_turn_ends(build):
    """The TTL is 0 until 100 waits have been seen, so the next turn queues behind what fits."""
    policy = case(build)
    entered(policy, build, [arrive(policy, build, 0, 1000)])
    assert policy.programs[0].active
    end_turn(policy, build, 0, 1.0)
    assert not policy.programs[0].active


def test_the_ttl_is_the_most_useful_under_a_log_normal_of_the_waits(build):
    """All waits 2 s: staying for just over 2 s pays when losing the context costs more than 2 s, and
    never longer than that cost or the limit.
    """
    policy = case(build, max_ttl_s=10.0)
    policy.waits.values.extend([2.0] * (WINDOW - 1))
    assert policy.ttl_s(5.0) == 0.0
    policy.waits.values.append(2.0)
    assert 2.0 < policy.ttl_s(5.0) <= 5.0
    assert policy.ttl_s(1.9) == 0.0
    assert case(build, max_ttl_s=1.0).ttl_s(5.0) == 0.0


def test_with_waits_of_two_kinds_the_utility_decides(build):
    """By brute force over the fitted distribution: no TTL of a fine grid is worth more."""
    policy = case(build, max_ttl_s=60.0)
    waits = [0.5] * 70 + [20.0] * 30
    policy.waits.values.extend(waits)
    logs = [math.log(w) for w in waits]
    mean = sum(logs) / 100
    sigma = math.sqrt(sum((x - mean) ** 2 for x in logs) / 100)

    def value(ttl, cost=8.0, steps=4000):
        total, seen = 0.0, 0.0
        for k in range(steps):  # the integral of density times outcome, in the logarithm
            x = mean + sigma * (-8 + 16 * (k + 0.5) / steps)
            p = math.exp(-((x - mean) ** 2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
            p *= 16 * sigma / steps
            total += p * ((cost - math.exp(x)) if math.exp(x) <= ttl else -ttl)
            seen += p
        assert seen == pytest.approx(1.0, abs=1e-3)
        return total

    chosen = policy.ttl_s(8.0)
    best = max(value(0.05 * (8.0 / 0.05) ** (k / 60)) for k in range(61))
    assert value(chosen) == pytest.approx(best, rel=0.02)


def test_the_session_that_finished_last_comes_back_first_and_deadlines_come_before(build):
    """Three paused sessions, room for one: the most recent. With ``recent_first`` 0 the one that has
    queued longest. Past its deadline a session enters whatever is in use.
    """
    for recent_first, first in ((1, 2), (0, 0)):
        policy = case(build, recent_first=recent_first)
        for n in range(3):
            arrive(policy, build, n, 9000)
            policy.programs[n].finished_s = float(n)
        back = [build.session(session=n, prompt_tokens=9000, turn_index=1) for n in range(3)]
        for number, session in enumerate(back):  # each begins to wait a second later
            policy._queue(policy.programs[session.session], back, 10.0 + number)
        assert entered(policy, build, back, 20.0) == [first]
    rest = [session for session in back if not policy.programs[session.session].active]
    running = [build.session(session=0, phase="engine")]
    assert entered(policy, build, rest, 300.0, running) == []
    assert entered(policy, build, rest, 312.1, running) == [1, 2]


def test_a_session_past_its_segment_yields_to_whoever_waits(build):
    """After its rounds it gives up its place, but only if another is waiting for one."""
    policy = case(build, max_rounds=1)
    policy.waits.values.extend([0.5] * WINDOW)
    for waiter in (False, True):
        policy.programs.clear()
        entered(policy, build, [arrive(policy, build, 0, 12_000)])
        if waiter:
            running = [build.session(session=0, phase="engine")]
            assert entered(policy, build, [arrive(policy, build, 1, 12_000)], 0.5, running) == []
        end_turn(policy, build, 0, 1.0)
        assert policy.programs[0].active is not waiter
        assert policy.programs[0].yielded is waiter


def test_growth_of_the_rounds_to_come_is_kept_free(build):
    """With 14 rounds of 500 tokens each to come for the newcomer and 12 for the other (7000 + 6000),
    contexts of 1000 and 1000 fit (15,200), of 1000 and 1801 do not (16,001).
    """
    for size, wanted in ((1000, [1]), (1801, [])):
        policy = case(build)
        entered(policy, build, [arrive(policy, build, 0, 1000)])
        for samples, value in ((policy.run_lengths, 20.0), (policy.growth, 500.0)):
            samples.values.extend([value] * WINDOW)
        policy.programs[0].rounds = 2
        new = arrive(policy, build, 1, size)
        running = build.session(session=0, phase="engine")
        assert entered(policy, build, [new], active=[running]) == wanted


def test_repair_pauses_the_longest_active_and_marks_those_in_the_engine(build):
    """Contexts have outgrown the cache by 300: the one in its tools for longest pauses at once; of two in
    the engine the older is marked, and pauses when its turn ends.
    """
    for phase in ("tool", "engine"):
        policy = case(build)
        pending = [arrive(policy, build, n, 7900) for n in range(2)]
        assert entered(policy, build, pending) == [0, 1]
        policy.programs[1].active_since_s = 5.0
        for program in policy.programs.values():
            program.context += 150
        active = [build.session(session=n, phase=phase) for n in range(2)]
        entered(policy, build, [arrive(policy, build, 2, 8000)], 10.0, active)
        first, second = policy.programs[0], policy.programs[1]
        assert (first.active, first.marked) == ((phase == "engine"), (phase == "engine"))
        assert second.active
        assert not second.marked
        end_turn(policy, build, 0, 11.0)
        assert not first.active


def test_an_expired_ttl_makes_room(build):
    """A session in its tools holds its place until its TTL is over."""
    policy = case(build)
    policy.waits.values.extend([1.0] * WINDOW)
    entered(policy, build, [arrive(policy, build, 0, 12_000)])
    end_turn(policy, build, 0, 1.0)
    expires_s = policy.programs[0].expires_s
    assert 2.0 <= expires_s <= 11.0
    waiting, acting = arrive(policy, build, 1, 12_000), build.session(session=0, phase="tool")
    assert entered(policy, build, [waiting], expires_s - 0.01, [acting]) == []
    assert entered(policy, build, [waiting], expires_s, [acting]) == [1]


def test_a_session_larger_than_the_cache_enters_alone(build):
    """Otherwise nothing would ever happen again."""
    policy = case(build)
    assert entered(policy, build, [arrive(policy, build, 0, CAPACITY + 1 - BUFFER_TOKENS)]) == [0]
