"""Attained service, queues, demotion and anti-starvation of Autellix."""

from __future__ import annotations

import pytest

from baselines.autellix import Autellix
from marsbench.events import Kind


def run_turn(policy, build, *, start_s, end_s, prefill, output, session=0, queued_s=0.0):
    """One turn through the engine: waits ``queued_s``, then runs until ``end_s``."""
    policy.on_event(build.event(Kind.GPU_SUBMIT, start_s, session))
    policy.on_event(build.event(Kind.GPU_SCHED_FIRST, start_s + queued_s, session))
    policy.on_scheduled(build.turn(session=session), prefill, None, start_s + queued_s)
    policy.on_event(build.event(Kind.GPU_END, end_s, session, output_tokens=output))


@pytest.mark.parametrize(
    ("tokens", "level"),
    [(0, 0), (2047, 0), (2048, 1), (8191, 1), (8192, 2), (32767, 2), (32768, 3), (10**6, 3)],
)
def test_level_follows_service_of_finished_turns(build, tokens, level):
    """Queues end at 2048, 8192 and 32768 tokens."""
    policy = Autellix(build.context())
    run_turn(policy, build, start_s=0.0, end_s=10.0, prefill=tokens, output=0)
    assert policy.level(build.turn(), 10.0) == level


def test_turn_sinks_while_it_is_served(build):
    """2000 prefill + 48 decoded tokens end the first quantum of 2048."""
    policy = Autellix(build.context())
    policy.on_event(build.event(Kind.GPU_SUBMIT, 0.0))
    policy.on_event(build.event(Kind.GPU_SCHED_FIRST, 0.0))
    policy.on_scheduled(build.turn(), 2000, 2048, 0.0)
    assert policy.level(build.turn(generated_tokens=47), 1.0) == 0
    assert policy.level(build.turn(generated_tokens=48), 1.0) == 1


def test_starved_session_goes_to_the_top(build):
    """Ran 10 s, so at beta = 2 it is promoted once it has waited 20 s, and not before."""
    policy = Autellix(build.context())
    run_turn(policy, build, start_s=0.0, end_s=10.0, prefill=40_000, output=0)
    policy.on_event(build.event(Kind.GPU_SUBMIT, 100.0, turn=1))
    turn = build.turn(turn_index=1)
    assert policy.level(turn, 119.9) == 3
    assert policy.level(turn, 120.0) == 0


def test_time_in_tools_is_neither_wait_nor_service(build):
    """1000 s of tools do not promote."""
    policy = Autellix(build.context())
    run_turn(policy, build, start_s=0.0, end_s=10.0, prefill=40_000, output=0)
    assert policy.level(build.turn(), 1010.0) == 3


def test_preemption_counts_as_waiting_and_recomputation_as_service(build):
    """Runs 0-2 s, preempted until 6 s: 4 s of wait over 2 s of run reach beta = 2."""
    policy = Autellix(build.context())
    policy.on_event(build.event(Kind.GPU_SUBMIT, 0.0))
    policy.on_event(build.event(Kind.GPU_SCHED_FIRST, 0.0))
    policy.on_scheduled(build.turn(), 3000, None, 0.0)
    policy.on_event(build.event(Kind.GPU_PREEMPT, 2.0))
    assert policy.level(build.turn(), 5.9) == 1
    assert policy.level(build.turn(), 6.0) == 0
    policy.on_event(build.event(Kind.GPU_RESUME, 5.0))
    policy.on_scheduled(build.turn(), 6000, None, 5.0)
    assert policy.level(build.turn(), 5.0) == 2  # 3000 + 6000 >= 8192


def test_children_follow_the_critical_path(build):
    """A child starts at its parent's 3000; the parent goes on at the longest child's 9000."""
    policy = Autellix(build.context())
    run_turn(policy, build, start_s=0.0, end_s=10.0, prefill=3000, output=0)
    for child in (1, 2):
        policy.on_event(build.event(Kind.SESSION_ARRIVE, 10.0, child, parent=0))
        assert policy.level(build.turn(session=child), 10.0) == 1
    run_turn(policy, build, start_s=10.0, end_s=20.0, prefill=6000, output=0, session=1)
    run_turn(policy, build, start_s=10.0, end_s=20.0, prefill=100, output=0, session=2)
    for child in (1, 2):
        policy.on_event(build.event(Kind.SESSION_END, 20.0, child))
    assert policy.level(build.turn(session=0), 20.0) == 2


def test_a_parent_goes_on_at_the_longest_child_not_at_their_sum(build):
    """A parent at 3000 starts two children that add 20,000 each. It goes on at 23,000, in the third
    queue; the work of both would put it into the last, that of the shorter third child into the second.
    """
    policy = Autellix(build.context())
    run_turn(policy, build, start_s=0.0, end_s=10.0, prefill=3000, output=0)
    for child, tokens in ((1, 20_000), (2, 20_000), (3, 100)):
        policy.on_event(build.event(Kind.SESSION_ARRIVE, 10.0, child, parent=0))
        run_turn(policy, build, start_s=10.0, end_s=20.0, prefill=tokens, output=0, session=child)
    for child in (1, 2, 3):
        policy.on_event(build.event(Kind.SESSION_END, 20.0, child))
    assert policy.level(build.turn(session=0), 20.0) == 2


def test_quanta_shrink_and_victims_are_low_large_and_late(build):
    """Step quanta 2048/1024/512/256; victim order is queue, blocks, sequence."""
    policy = Autellix(build.context(params={"step_quanta": 1.0}))
    engine = build.engine()
    for session, tokens in enumerate((0, 3000, 9000, 40_000)):
        run_turn(policy, build, start_s=0.0, end_s=9.0, prefill=tokens, output=0, session=session)
    turns = [build.turn(session=s, num_blocks=9 - s, sequence=s) for s in range(4)]
    assert [policy.prefill_quantum(t, engine, 9.0) for t in turns] == [2048, 1024, 512, 256]
    assert max(turns, key=lambda t: policy.victim_key(t, engine, 9.0)).session == 3
    off = Autellix(build.context())
    assert off.prefill_quantum(turns[0], engine, 9.0) is None


def test_without_queues_the_least_attained_service_goes_first(build):
    """100, 200 and 150 tokens are one queue, in order of submission; plain PLAS goes by tokens."""
    engine = build.engine()
    for queues, order in ((1.0, [0, 1, 2]), (0.0, [0, 2, 1])):
        policy = Autellix(build.context(params={"queues": queues}))
        for session, tokens in enumerate((100, 200, 150)):
            run_turn(
                policy, build, start_s=0.0, end_s=9.0, prefill=tokens, output=0, session=session
            )
        turns = [build.turn(session=session, sequence=session) for session in range(3)]
        turns.sort(key=lambda turn, p=policy: p.waiting_key(turn, engine, 9.0))
        assert [turn.session for turn in turns] == order
