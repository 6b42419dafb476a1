"""A directed graph with weights."""

from __future__ import annotations

from collections.abc import Iterator


class Graph:
    """Nodes are whatever can be hashed; weights are numbers that are not negative."""

    def __init__(self) -> None:
        self._out: dict[str, dict[str, int]] = {}

    def add(self, start: str, end: str, weight: int = 1, *, both: bool = False) -> None:
        """Add an edge; of two with the same ends the lighter one stays."""
        if weight < 0:
            raise ValueError("a weight is negative")
        self._out.setdefault(end, {})
        edges = self._out.setdefault(start, {})
        edges[end] = min(weight, edges.get(end, weight))
        if both:
            self.add(end, start, weight)

    def nodes(self) -> list[str]:
        return sorted(self._out)

    def edges(self) -> Iterator[tuple[str, str, int]]:
        for start, ends in self._out.items():
            for end, weight in ends.items():
                yield start, end, weight

    def out(self, node: str) -> dict[str, int]:
        return self._out.get(node, {})
