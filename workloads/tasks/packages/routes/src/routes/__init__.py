"""Graphs with weights, and what can be asked of them."""

from routes.graph import Graph
from routes.order import CycleError, topological
from routes.paths import all_pairs, shortest
from routes.tree import spanning_tree

__all__ = ["CycleError", "Graph", "all_pairs", "shortest", "spanning_tree", "topological"]
