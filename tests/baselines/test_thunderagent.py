"""ThunderAgent: which sessions pause and which come back, on a cache of 10,000 tokens."""

from __future__ import annotations

from baselines.thunderagent import PauseRules, ThunderAgent
from marsbench.events import Kind


def thunder(build, **rules):
    return ThunderAgent(build.context(num_blocks=10_000, block_size=1), PauseRules(**rules))


def view(build, *active, free=0):
    """Telemetry with so many free tokens: with none, nothing counts as shared."""
    return build.system(active=active, num_blocks=10_000, block_size=1, free_blocks=free)


def names(sessions):
    return [session.session for session in sessions]


def new(build, session, tokens, since_s=0.0):
    return build.session(
        session=session, prompt_tokens=tokens, context_tokens=0, phase_since_s=since_s
    )


def running(build, session, tokens):
    return build.session(
        session=session, prompt_tokens=0, context_tokens=tokens, phase="engine", turn_index=1
    )


def acting(build, session, tokens, since_s=0.0):
    return build.session(
        session=session, prompt_tokens=0, context_tokens=tokens, phase="tool", phase_since_s=since_s
    )


def back(build, session, tokens, since_s=0.0):
    """It has returned from its tools and asks to enter."""
    return build.session(
        session=session, prompt_tokens=tokens, context_tokens=0, phase_since_s=since_s, turn_index=1
    )


def test_a_new_session_enters_at_once_if_it_fits_with_the_margins(build):
    """A running 6000 and 100 for each of the two leave room for 3800 tokens, not for 3801."""
    crowd = view(build, running(build, 0, 6000))
    assert names(thunder(build).admit([new(build, 1, 3800)], crowd, 0.0)) == [1]
    assert names(thunder(build).admit([new(build, 1, 3801)], crowd, 0.0)) == []


def test_new_sessions_queue_behind_those_that_did_not_fit(build):
    """Session 2 would fit at 1 s, but 1 has been queued before it; the test at 5 s takes the smaller."""
    policy, crowd = thunder(build), view(build, running(build, 0, 6000))
    large, small = new(build, 1, 5000), new(build, 2, 1000)
    assert names(policy.admit([large], crowd, 0.0)) == []
    assert names(policy.admit([large, small], crowd, 1.0)) == []
    assert names(policy.admit([large, small], crowd, 5.0)) == [2]


def test_what_sessions_in_the_engine_share_is_subtracted(build):
    """Two contexts of 6000 in the engine use 9000 blocks: 3000 are shared, so they fit (9200), and 700
    more do; with nothing subtracted they would be too many.
    """
    crowd = view(build, running(build, 0, 6000), running(build, 1, 6000), free=1000)
    assert names(thunder(build).admit([new(build, 2, 700)], crowd, 0.0)) == [2]
    assert names(thunder(build, subtract_shared=0.0).admit([new(build, 2, 700)], crowd, 0.0)) == []


def test_a_context_in_tools_counts_in_full_unless_it_decays(build):
    """8000 tokens in tools since 1 s: the router counts 8000, the paper 4000; 5000 more fit only there."""
    crowd = view(build, acting(build, 0, 8000))
    assert names(thunder(build).admit([new(build, 1, 5000)], crowd, 1.0)) == []
    assert names(thunder(build, decay=2.0).admit([new(build, 1, 5000)], crowd, 1.0)) == [1]


def test_sessions_in_tools_pause_first_and_the_smallest_first(build):
    """5500 + 4000 + 1500 and the margins are 11,300 of 10,000: the 1500 suffice."""
    policy = thunder(build)
    crowd = view(build, running(build, 0, 5500), acting(build, 1, 4000), acting(build, 2, 1500))
    policy.admit([], crowd, 9.0)
    assert (policy.paused, policy.marked) == ({2}, set())


def test_if_those_in_tools_do_not_suffice_all_that_run_pause_when_their_turn_ends(build):
    """11,000 run and 2000 are in tools: these pause, and since a mark frees nothing both runners get
    one; session 1 pauses when its turn ends, not before.
    """
    policy = thunder(build)
    crowd = view(build, running(build, 0, 6000), running(build, 1, 5000), acting(build, 2, 2000))
    policy.admit([], crowd, 100.0)
    assert (policy.paused, policy.marked) == ({2}, {0, 1})
    policy.on_event(build.event(Kind.GPU_END, 103.0, 1))
    assert (policy.paused, policy.marked) == ({1, 2}, {0})


def test_restore_takes_those_with_a_turn_then_new_ones_then_those_in_tools(build):
    """6300 tokens are free: 3100 for the smaller session that is back, 1100 for the new one, 600 for the
    one in its tools, the smallest of all; the larger one that is back needs 5100 and stays out.
    """
    policy = thunder(build)
    policy.paused, policy.queued = {1, 2, 4}, {3}
    back_1, back_2 = back(build, 1, 5000), back(build, 2, 3000)
    fresh, away = new(build, 3, 1000), acting(build, 4, 500)
    crowd = view(build, running(build, 0, 3600), back_1, back_2, away)
    assert names(policy.admit([back_1, fresh, back_2], crowd, 5.0)) == [3, 2]
    assert policy.paused == {1}


def test_restore_comes_before_the_test(build):
    """What is paused in a test waits for the next one, even if it would fit beside the others."""
    policy = thunder(build)
    crowd = view(build, running(build, 0, 6000), acting(build, 1, 5000), acting(build, 2, 1000))
    policy.admit([], crowd, 0.0)
    assert policy.paused == {1, 2}
    policy.admit([], crowd, 5.0)
    assert policy.paused == {1}


def test_the_test_is_made_once_a_period(build):
    """Within 5 s of a test nothing pauses, however full it is."""
    policy = thunder(build)
    policy.admit([], view(build), 0.0)
    crowd = view(build, acting(build, 0, 50_000), running(build, 1, 5000))
    policy.admit([], crowd, 4.9)
    assert policy.paused == set()
    policy.admit([], crowd, 5.0)
    assert policy.paused == {0}


def test_a_turn_that_has_waited_half_an_hour_goes_on(build):
    """Back since 4 s, too large for the room: held at 1803.9 s, sent on at 1804 s."""
    policy = thunder(build)
    policy.paused = {1}
    waiting = back(build, 1, 5000, since_s=4.0)
    crowd = view(build, running(build, 0, 9000), waiting)
    assert names(policy.admit([waiting], crowd, 1803.9)) == []
    assert names(policy.admit([waiting], crowd, 1804.0)) == [1]


def test_an_idle_system_never_stops(build):
    """A session larger than the cache enters when nothing else runs (the engine rejects it)."""
    assert names(thunder(build).admit([new(build, 0, 99_999)], view(build), 0.0)) == [0]
