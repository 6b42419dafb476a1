"""Least loaded: every turn goes where fewest turns are in flight.

What vLLM's own coordinator of data-parallel ranks does (``vllm/v1/engine/coordinator.py`` scores a
rank by its waiting and running requests); here the front door counts what it has sent.
"""

from __future__ import annotations

from collections.abc import Sequence

from marsbench.admission.base import SessionView
from marsbench.core import PolicyContext
from marsbench.events import Event
from marsbench.routing.base import RoutableReplica, least


class LeastLoaded:
    """Routing policy by load alone."""

    def __init__(self, context: PolicyContext) -> None:
        pass

    def on_event(self, event: Event) -> None:
        """Nothing to learn."""

    def route(self, turn: SessionView, replicas: Sequence[RoutableReplica], now_s: float) -> int:
        """Fewest turns in flight."""
        return least(replicas)
