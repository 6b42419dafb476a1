"""Session affinity: a session stays where its first turn went, which is where fewest sessions are.

vLLM's post on AgentX (8 Sep 2026) found sticky sessions ahead of every balancing policy it tried.
"""

from __future__ import annotations

from collections.abc import Sequence

from marsbench.admission.base import SessionView
from marsbench.core import PolicyContext
from marsbench.routing.base import Homes, RoutableReplica


class StickySession(Homes):
    """Routing policy that moves a session only when its replica has died."""

    def __init__(self, context: PolicyContext) -> None:
        super().__init__()

    def route(self, turn: SessionView, replicas: Sequence[RoutableReplica], now_s: float) -> int:
        """Where it was, else where fewest unfinished sessions are."""
        home = self.position(turn.session, replicas)
        if home is not None:
            return home
        fewest = min(
            range(len(replicas)), key=lambda i: (replicas[i].sessions, replicas[i].in_flight, i)
        )
        return self.bind(turn.session, replicas, fewest)
