"""llm-d's scorers with the weights of its default plug-ins: queue 2, KV use 2, prefix cache 3.

Gateway API inference extension, default configuration of the endpoint picker: ``queue-scorer`` (1 for
the shortest queue, 0 for the longest), ``kv-cache-utilization-scorer`` (1 - use) and
``prefix-cache-scorer`` (share of the prompt that is cached); the highest weighted sum wins. Differs:
the prefix index is exact (llm-d's precise mode), metrics are never old, ties go to the first.
"""

from __future__ import annotations

from collections.abc import Sequence

from marsbench.admission.base import SessionView
from marsbench.core import PolicyContext
from marsbench.events import Event
from marsbench.routing.base import RoutableReplica


class LlmD:
    """Routing policy by a weighted sum of scores in 0..1."""

    def __init__(self, context: PolicyContext) -> None:
        params = context.params
        self._queue = params.get("queue_weight", 2.0)
        self._use = params.get("kv_weight", 2.0)
        self._prefix = params.get("prefix_weight", 3.0)

    def on_event(self, event: Event) -> None:
        """Nothing to learn: engines are asked."""

    def route(self, turn: SessionView, replicas: Sequence[RoutableReplica], now_s: float) -> int:
        """Return the replica with the highest score."""
        queues = [replica.num_waiting for replica in replicas]
        shortest, longest = min(queues), max(queues)

        def score(position: int) -> float:
            replica = replicas[position]
            queue = 1.0
            if longest > shortest:
                queue = (longest - queues[position]) / (longest - shortest)
            free = replica.free_blocks / replica.num_blocks
            cached = replica.cached_tokens(turn) / turn.prompt_tokens
            return self._queue * queue + self._use * free + self._prefix * cached

        return max(range(len(replicas)), key=lambda i: (score(i), -i))
