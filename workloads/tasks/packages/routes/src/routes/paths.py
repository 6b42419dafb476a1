"""Shortest paths: from one node (Dijkstra), and between all pairs (Floyd and Warshall)."""

from __future__ import annotations

import heapq
from math import inf

from routes.graph import Graph


def shortest(graph: Graph, start: str, goal: str) -> tuple[float, list[str]]:
    """Length and nodes of a shortest path; (inf, []) if there is none."""
    best = {start: 0.0}
    before: dict[str, str] = {}
    heap = [(0.0, start)]
    while heap:
        length, node = heapq.heappop(heap)
        if node == goal:
            return length, _trace(before, start, goal)
        if length > best[node]:
            continue
        for end, weight in graph.out(node).items():
            longer = length + weight
            if longer < best.get(end, inf):
                best[end] = longer
                before[end] = node
                heapq.heappush(heap, (longer, end))
    return inf, []


def all_pairs(graph: Graph) -> dict[tuple[str, str], float]:
    """Length of a shortest path between any two nodes that have one."""
    nodes = graph.nodes()
    found = {(node, node): 0.0 for node in nodes}
    for start, end, weight in graph.edges():
        found[start, end] = min(found.get((start, end), inf), weight)
    for middle in nodes:
        for start in nodes:
            first = found.get((start, middle), inf)
            if first == inf:
                continue
            for end in nodes:
                longer = first + found.get((middle, end), inf)
                if longer < found.get((start, end), inf):
                    found[start, end] = longer
    return found


def _trace(before: dict[str, str], start: str, goal: str) -> list[str]:
    path = [goal]
    while path[-1] != start:
        path.append(before[path[-1]])
    return path[::-1]
