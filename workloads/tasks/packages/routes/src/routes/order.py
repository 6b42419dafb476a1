"""Orders in which every node comes after those that lead to it."""

from __future__ import annotations

import heapq

from routes.graph import Graph


class CycleError(ValueError):
    """There is no such order."""


def topological(graph: Graph) -> list[str]:
    """The order that takes the smallest node whenever there is a choice."""
    waiting = dict.fromkeys(graph.nodes(), 0)
    for _, end, _ in graph.edges():
        waiting[end] += 1
    ready = [node for node, count in waiting.items() if count == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        node = heapq.heappop(ready)
        order.append(node)
        for end in graph.out(node):
            waiting[end] -= 1
            if waiting[end] == 0:
                heapq.heappush(ready, end)
    if len(order) < len(waiting):
        raise CycleError("the graph has a cycle")
    return order
