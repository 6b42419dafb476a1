"""Bugs are put in where they are wanted, and taken out again."""

from __future__ import annotations

import ast

from workloads.tasks.mutators import mutations

SOURCE = '''\
def clip(value, low, high):
    """At least low and at most high."""
    if value < low or value != value:
        return low
    return min(value + 0, high) if not low > high else 1
'''


def test_each_kind_of_bug_is_found():
    """Every mutator that a source has a place for puts bugs into it."""
    found = {m.mutator for m in mutations(SOURCE)}
    assert found == {
        "comparison", "logic", "off-by-one", "negation", "operator", "arguments", "min-max",
    }  # fmt: skip


def test_bugs_change_one_line_and_can_be_undone():
    """A mutated source parses, differs in one line, and undoing gives the original."""
    for mutation in mutations(SOURCE):
        broken = mutation.apply(SOURCE)
        ast.parse(broken)
        pairs = zip(SOURCE.splitlines(), broken.splitlines(), strict=True)
        assert sum(a != b for a, b in pairs) == 1
        assert mutation.undo(broken) == SOURCE


def test_known_bug():
    """A comparison becomes its neighbour."""
    lines = {m.after.strip() for m in mutations(SOURCE) if m.mutator == "comparison"}
    assert "if value <= low or value != value:" in lines
    assert "if value < low or value == value:" in lines


def test_same_bugs_in_every_run():
    """Mutations come in one order."""
    assert mutations(SOURCE) == mutations(SOURCE)
