"""Order by arrival of the session."""

from __future__ import annotations

from baselines.session_fcfs import SessionFcfs
from marsbench.events import Kind


def test_continuation_of_older_session_passes_younger_first_turn(build):
    """The session's arrival decides, not the turn's."""
    policy, engine = SessionFcfs(), build.engine()
    old = build.turn(session=0, session_arrival_s=1.0, ready_s=50.0, sequence=9, turn_index=3)
    young = build.turn(session=1, session_arrival_s=2.0, ready_s=2.0, sequence=1)
    order = sorted([young, old], key=lambda t: policy.waiting_key(t, engine, 60.0))
    assert order == [old, young]
    assert max([young, old], key=lambda t: policy.victim_key(t, engine, 60.0)) is young


def test_sessions_of_one_instant_keep_their_index(build):
    """A burst is served session by session, not turn by turn."""
    policy, engine = SessionFcfs(), build.engine()
    late_turn_of_first = build.turn(session=0, sequence=7)
    early_turn_of_second = build.turn(session=1, sequence=2)
    assert policy.waiting_key(late_turn_of_first, engine, 0.0) < policy.waiting_key(
        early_turn_of_second, engine, 0.0
    )


def test_child_ranks_with_its_parent(build):
    """A sub-agent that starts at 9 s for a session of 1 s passes a session of 5 s."""
    policy, engine = SessionFcfs(), build.engine()
    policy.on_event(build.event(Kind.SESSION_ARRIVE, 1.0, 0))
    policy.on_event(build.event(Kind.SESSION_ARRIVE, 5.0, 1))
    policy.on_event(build.event(Kind.SESSION_ARRIVE, 9.0, 2, parent=0, parent_turn=3))
    child = build.turn(session=2, session_arrival_s=9.0, sequence=8)
    other = build.turn(session=1, session_arrival_s=5.0, sequence=4)
    assert policy.waiting_key(child, engine, 9.0) < policy.waiting_key(other, engine, 9.0)
