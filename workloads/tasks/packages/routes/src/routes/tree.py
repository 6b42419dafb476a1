"""Minimum spanning trees (Kruskal), on sets that merge."""

from __future__ import annotations

from routes.graph import Graph


class Sets:
    """Disjoint sets of nodes."""

    def __init__(self, nodes: list[str]) -> None:
        self._above = {node: node for node in nodes}
        self._size = dict.fromkeys(nodes, 1)

    def find(self, node: str) -> str:
        while self._above[node] != node:
            self._above[node] = self._above[self._above[node]]
            node = self._above[node]
        return node

    def merge(self, one: str, other: str) -> bool:
        """Join two sets; False if they are one already."""
        big, small = self.find(one), self.find(other)
        if big == small:
            return False
        if self._size[big] < self._size[small]:
            big, small = small, big
        self._above[small] = big
        self._size[big] += self._size[small]
        return True

    def size(self, node: str) -> int:
        return self._size[self.find(node)]


def spanning_tree(graph: Graph) -> list[tuple[str, str, int]]:
    """Edges of a lightest forest that joins what can be joined; directions are ignored."""
    sets = Sets(graph.nodes())
    edges = sorted(graph.edges(), key=lambda edge: (edge[2], edge[0], edge[1]))
    return [edge for edge in edges if sets.merge(edge[0], edge[1])]
