"""MARS before two replicas: where sessions are placed, when they move, and what a death does."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from cells import events, num_sessions, some_sessions, spread
from fleets import play_system
from policy_glass import glazed
from policy_views import Sess, Sys, context

from mars_impl.fleet import MarsFleet
from marsbench.core import to_ps
from marsbench.engine.plan import ReplicaChange
from marsbench.events import Event, Kind, Status


@dataclass(frozen=True)
class System(Sys):
    """Telemetry with two replicas, neither of them idle."""

    replicas: tuple[Sys, ...] = (Sys(num_running=1), Sys(num_running=1))


class Story:
    """A MarsFleet before two replicas of 16,000 tokens that prefill 1,000 tokens/s."""

    def __init__(self) -> None:
        self.fleet = MarsFleet(context(), 3)
        self.prompts: dict[int, int] = {}
        for replica in (0, 1):
            self.tell(0.0, Kind.REPLICA_UP, -1, replica, 1000)

    def tell(self, now_s, kind, session, *args, turn=-1, call=-1):
        self.fleet.on_event(Event(now_s, kind, session, turn, call, args))

    def arrive(self, now_s, session, prompt, parent=-1):
        self.prompts[session] = prompt
        self.tell(now_s, Kind.SESSION_ARRIVE, session, prompt, parent, 0)
        self.tell(now_s, Kind.TURN_READY, session, prompt, turn=0)

    def ask(self, now_s, *sessions):
        """Who is admitted of these pending sessions."""
        pending = [Sess(k, prompt_tokens=self.prompts[k]) for k in sessions]
        return [turn.session for turn in self.fleet.admit(pending, System(), now_s)]

    def run(self, now_s, session, turn=0):
        """The turn is sent where MARS says and runs; returns the replica's position."""
        at = self.fleet.route(Sess(session), (), now_s)
        self.tell(now_s, Kind.GPU_SUBMIT, session, self.prompts[session], 0, turn=turn)
        self.tell(now_s, Kind.GPU_SCHED_FIRST, session, 0, self.prompts[session], turn=turn)
        return at

    def end(self, now_s, session, turn=0):
        """The turn ends with 100 tokens, and its tools run."""
        self.tell(now_s, Kind.GPU_END, session, 100, 0, self.prompts[session], 0, 1, 0, turn=turn)

    def back(self, now_s, session, prompt, turn):
        self.prompts[session] = prompt
        self.tell(now_s, Kind.TURN_READY, session, prompt, turn=turn)


def test_new_sessions_go_where_most_memory_is_left():
    """6,000 tokens to the first replica, 2,000 to the second, and the next two there as well; one of
    11,000 fits neither and waits.
    """
    story = Story()
    homes = []
    for session, prompt in enumerate((6000, 2000, 1000, 1000)):
        story.arrive(session, session, prompt)
        assert story.ask(session, session) == [session]
        homes.append(story.run(session, session))
    assert homes[:3] == [0, 1, 1]
    story.arrive(9.0, 9, 15_000)
    assert story.ask(9.0, 9) == []


def test_a_sub_agent_stays_with_its_root():
    """Its prefix is there, however full that replica is."""
    story = Story()
    story.arrive(0.0, 0, 9000)
    story.ask(0.0, 0)
    assert story.run(0.0, 0) == 0
    story.arrive(2.0, 1, 1000, parent=0)
    assert story.ask(2.0, 1) == [1]
    assert story.run(2.0, 1) == 0


def test_whoever_lost_its_place_moves_once_it_has_waited_for_the_cost():
    """Two sessions at the first replica, of 5,000 tokens each; the elder grows to 11,000, so the
    younger loses its place at the end of its turn. Computing its 6,000 tokens elsewhere takes 6 s at
    full speed: before that it stays at the gate, then it goes to the second replica.
    """
    story = Story()
    fleet = story.fleet
    for session in (0, 1):
        story.arrive(0.0, session, 5000)
    assert story.ask(0.0, 0) == [0]
    story.run(0.0, 0)
    fleet._place(fleet.whole.state.sessions[1], 0, 5000.0)
    story.run(0.0, 1)
    story.end(1.0, 0)
    story.back(1.0, 0, 11_000, 1)
    assert story.ask(1.0, 0) == [0], "the elder keeps its place"
    story.run(1.0, 0, turn=1)
    story.end(4.0, 1)
    story.back(4.0, 1, 6000, 1)
    assert story.ask(4.0, 1) == []
    assert story.ask(4.0 + 5.9, 1) == []
    assert story.ask(4.0 + 5.9 + 1.0, 1) == [1], "looked at once a second"
    assert fleet.route(Sess(1), (), 10.9) == 1


def test_sessions_of_a_dead_replica_are_placed_again():
    """A turn that was in flight goes to the living replica at once; one in its tools when it is back
    and is let in there.
    """
    story = Story()
    for session in (0, 1):
        story.arrive(0.0, session, 3000)
        story.ask(0.0, session)
        story.run(0.0, session)
    assert [story.fleet.route(Sess(k), (), 1.0) for k in (0, 1)] == [0, 1]
    story.tell(2.0, Kind.REPLICA_DOWN, -1, 0, 1, 0, 100)
    assert story.fleet.route(Sess(0), (), 2.0) == 0, "position 0 is replica 1 now"
    assert story.fleet._homes == {0: 1, 1: 1}
    story.tell(3.0, Kind.REPLICA_UP, -1, 2, 1000)
    story.arrive(3.0, 2, 3000)
    assert story.ask(3.0, 2) == [2]
    assert story.fleet.route(Sess(2), (), 3.0) == 1, "the new one, which is empty"


@pytest.mark.parametrize("name", ["mars", "mars-no-control-plane", "mars-no-kv-signal"])
@pytest.mark.parametrize("seed", range(3))
def test_every_session_ends_whatever_happens_to_replicas(name, seed):
    """Behind glass as without: all sessions end once although replicas die and are added."""
    sessions = some_sessions(20, seed)
    changes = [
        ReplicaChange(to_ps(1.0), dies=1),
        ReplicaChange(to_ps(2.0), added=2),
        ReplicaChange(to_ps(3.0), dies=0),
    ]
    arrivals_s = spread(len(sessions), 0.15)
    log = play_system(name, sessions, arrivals_s, num_replicas=3, changes=changes)
    ends = events(log, Kind.SESSION_END)
    assert len({end["session"] for end in ends}) == len(ends) == num_sessions(sessions)
    assert sum(end["status"] == Status.OK for end in ends) == len(ends) - 1
    assert {e["replica"] for e in events(log, Kind.ROUTE)} >= {0, 1, 2, 3}
    glass = play_system(name, sessions, arrivals_s, num_replicas=3, changes=changes, wrap=glazed)
    assert glass.rows == log.rows
