"""Each algorithm against a slow one on random graphs."""

import random
from itertools import permutations
from math import inf

import pytest
from routes import CycleError, Graph, all_pairs, shortest, spanning_tree, topological
from routes.tree import Sets

ROUNDS = 220


def random_graph(draw, size, edges, both=False):
    graph = Graph()
    for _ in range(edges):
        one, other = draw.sample(range(size), 2)
        graph.add(f"n{one}", f"n{other}", draw.randrange(1, 30), both=both)
    return graph


def test_lighter_edge_stays():
    graph = Graph()
    graph.add("a", "b", 5)
    graph.add("a", "b", 3)
    graph.add("a", "b", 9)
    assert list(graph.edges()) == [("a", "b", 3)]
    with pytest.raises(ValueError):
        graph.add("a", "c", -1)


def test_known_path():
    graph = Graph()
    for start, end, weight in (("a", "b", 4), ("a", "c", 1), ("c", "b", 2), ("b", "d", 5)):
        graph.add(start, end, weight)
    assert shortest(graph, "a", "d") == (8, ["a", "c", "b", "d"])
    assert shortest(graph, "d", "a") == (inf, [])
    assert shortest(graph, "a", "a") == (0, ["a"])


def test_paths_agree_with_all_pairs():
    draw = random.Random(11)
    for _ in range(ROUNDS):
        graph = random_graph(draw, 14, 40)
        table = all_pairs(graph)
        for start in graph.nodes():
            for goal in graph.nodes():
                length, path = shortest(graph, start, goal)
                assert length == table.get((start, goal), inf)
                if path:
                    weights = [graph.out(a)[b] for a, b in zip(path, path[1:])]
                    assert sum(weights) == length


def test_tree_is_lightest():
    draw = random.Random(5)
    for _ in range(60):
        graph = random_graph(draw, 6, 12, both=True)
        tree = spanning_tree(graph)
        weight = sum(edge[2] for edge in tree)
        assert weight == slow_weight(graph, len(tree))


def slow_weight(graph, size):
    from itertools import combinations

    best = inf
    edges = [edge for edge in graph.edges() if edge[0] < edge[1]]
    for chosen in combinations(edges, size):
        sets = Sets(graph.nodes())
        if all(sets.merge(edge[0], edge[1]) for edge in chosen):
            best = min(best, sum(edge[2] for edge in chosen))
    return best


def test_sets():
    sets = Sets(list("abcd"))
    assert sets.merge("a", "b")
    assert not sets.merge("b", "a")
    assert sets.merge("c", "b")
    assert sets.size("c") == 3
    assert sets.size("d") == 1
    assert sets.find("a") == sets.find("c") != sets.find("d")


def test_order():
    draw = random.Random(2)
    for _ in range(80):
        graph = Graph()
        for _ in range(9):
            one, other = sorted(draw.sample(range(7), 2))
            graph.add(f"n{one}", f"n{other}")
        order = topological(graph)
        assert order == min(
            list(p)
            for p in permutations(graph.nodes())
            if all(p.index(a) < p.index(b) for a, b, _ in graph.edges())
        )


def test_cycle():
    graph = Graph()
    graph.add("a", "b", both=True)
    graph.add("c", "a")
    with pytest.raises(CycleError):
        topological(graph)
