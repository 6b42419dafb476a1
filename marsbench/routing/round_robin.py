"""Round robin: turns go to the replicas in turn, whatever they hold."""

from __future__ import annotations

from collections.abc import Sequence

from marsbench.admission.base import SessionView
from marsbench.core import PolicyContext
from marsbench.events import Event
from marsbench.routing.base import RoutableReplica


class RoundRobin:
    """Routing policy without any state but a counter."""

    def __init__(self, context: PolicyContext) -> None:
        self._next = 0

    def on_event(self, event: Event) -> None:
        """Nothing to learn."""

    def route(self, turn: SessionView, replicas: Sequence[RoutableReplica], now_s: float) -> int:
        """The next one."""
        chosen = self._next % len(replicas)
        self._next += 1
        return chosen
