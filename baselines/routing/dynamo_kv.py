"""Dynamo's KV router, its preset: least prefill still to do and KV in use, prefix overlap counted.

``lib/llm/src/kv_router/scheduler.rs``: the cost of a worker is ``overlap_score_weight`` (1.0) x its
prefill blocks, those of the turn that are not cached there included, + its decode blocks; the least
cost wins (``router_temperature`` 0). Workers tell their blocks by KV events; load is what the router
has sent itself. Differs: ties go to the first, not at random.
"""

from __future__ import annotations

from collections.abc import Sequence

from marsbench.admission.base import SessionView
from marsbench.core import PolicyContext
from marsbench.events import Event
from marsbench.routing.base import RoutableReplica


class DynamoKv:
    """Routing policy by prefix overlap and load, in blocks."""

    def __init__(self, context: PolicyContext) -> None:
        self._weight = context.params.get("overlap_score_weight", 1.0)

    def on_event(self, event: Event) -> None:
        """Nothing to learn: the views carry what it counts."""

    def route(self, turn: SessionView, replicas: Sequence[RoutableReplica], now_s: float) -> int:
        """Return the replica with the least cost."""

        def cost(position: int) -> tuple[float, int]:
            replica = replicas[position]
            new = turn.prompt_tokens - replica.cached_tokens(turn)
            prefill = (replica.prefill_tokens + new) / replica.block_size
            decode = (replica.context_tokens + turn.prompt_tokens) / replica.block_size
            return self._weight * prefill + decode, position

        return min(range(len(replicas)), key=cost)
