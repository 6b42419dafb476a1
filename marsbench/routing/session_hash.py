"""Session hash: a session's number decides where all of its turns go, by rendezvous hashing.

What a load balancer with consistent hashing on a session header does: no state, and when a replica
dies or is added only the sessions that it concerns move.
"""

from __future__ import annotations

from collections.abc import Sequence

from marsbench.admission.base import SessionView
from marsbench.core import PolicyContext
from marsbench.events import Event
from marsbench.routing.base import RoutableReplica

MASK = (1 << 64) - 1


class SessionHash:
    """Routing policy without state."""

    def __init__(self, context: PolicyContext) -> None:
        pass

    def on_event(self, event: Event) -> None:
        """Nothing to learn."""

    def route(self, turn: SessionView, replicas: Sequence[RoutableReplica], now_s: float) -> int:
        """The replica whose hash together with the session is highest."""
        session = turn.session
        return max(range(len(replicas)), key=lambda i: mixed(session, replicas[i].index))


def mixed(session: int, replica: int) -> int:
    """64 bits that differ for each pair (splitmix64): equal on every machine, unlike ``hash``."""
    z = (session * 0x9E3779B97F4A7C15 + replica * 0xD1B54A32D192ED03 + 1) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)
