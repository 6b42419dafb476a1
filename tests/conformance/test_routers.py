"""What every registered router must keep, before two simulated engines."""

from __future__ import annotations

import pytest
from cells import events, num_sessions, some_sessions, spread
from fleets import play, play_system
from policy_glass import BehindGlass, CheatError, glazed

from marsbench.core import to_ps
from marsbench.engine.plan import ReplicaChange
from marsbench.events import Kind
from marsbench.routing import router_paths
from marsbench.routing.base import FirstReplica
from marsbench.system import Policies

DIES = (ReplicaChange(to_ps(1.5), added=1), ReplicaChange(to_ps(2.0), dies=0))


@pytest.mark.parametrize("router", sorted(router_paths()))
def test_no_router_needs_more_than_its_protocol_promises(router):
    """Behind glass it gives the same records, and all sessions end although a replica dies."""
    sessions = some_sessions(12, seed=5)
    arrivals_s = spread(len(sessions), 0.2)
    name = f"vllm@{router}"
    seen = play_system(name, sessions, arrivals_s, changes=DIES)
    glass = play_system(name, sessions, arrivals_s, changes=DIES, wrap=glazed)
    assert glass.rows == seen.rows
    assert len(events(seen, Kind.SESSION_END)) == num_sessions(sessions)
    assert {e["replica"] for e in events(seen, Kind.ROUTE) if e["time_ps"] > to_ps(2.1)} <= {1, 2}


@pytest.mark.parametrize("router", sorted(router_paths()))
def test_every_router_uses_all_replicas(router):
    """Twelve sessions that start together are not all sent to one place."""
    sessions = some_sessions(12, seed=6)
    log = play_system(f"vllm@{router}", sessions, spread(len(sessions), 0.0))
    assert {e["replica"] for e in events(log, Kind.ROUTE)} == {0, 1}


class Peeking(FirstReplica):
    def route(self, turn, replicas, now_s):
        return int(replicas[0].core is None)


def test_a_router_that_looks_into_an_engine_is_caught():
    """The glass refuses what no protocol offers."""
    with pytest.raises(CheatError, match="asked a replica for 'core'"):
        play(
            some_sessions(2, seed=1), [0.0, 0.0, 0.0],
            front=Policies(routing=BehindGlass(Peeking())),  # type: ignore[arg-type]
            inside=[Policies(), Policies()], num_replicas=2,
        )  # fmt: skip
