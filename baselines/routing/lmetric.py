"""LMetric: the least product of new prefill tokens and batch size.

arXiv:2603.15202: load indicators are multiplied, so that no weight between cache and load has to be
tuned. New prefill tokens are those queued at the replica and those of the turn that it has not cached;
the batch is what it has in flight with the turn.
"""

from __future__ import annotations

from collections.abc import Sequence

from marsbench.admission.base import SessionView
from marsbench.core import PolicyContext
from marsbench.events import Event
from marsbench.routing.base import RoutableReplica


class LMetric:
    """Routes to the replica where new tokens times turns in flight are least; it has no
    parameters.
    """

    def __init__(self, context: PolicyContext) -> None:
        pass

    def on_event(self, event: Event) -> None:
        """Nothing to learn: the views carry what it counts."""

    def route(self, turn: SessionView, replicas: Sequence[RoutableReplica], now_s: float) -> int:
        """Return the replica with the least product."""

        def product(position: int) -> tuple[int, int]:
            replica = replicas[position]
            new = replica.prefill_tokens + turn.prompt_tokens - replica.cached_tokens(turn)
            return new * (replica.in_flight + 1), position

        return min(range(len(replicas)), key=product)
