"""Tables of a trace show every name and every number in full, however narrow the terminal."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from marsbench.core import Session, ToolCall, Turn
from marsbench.trace.stats import collect_stats, compare_stats
from marsbench.trace.tables import distance_tables, stats_tables


def big_trace():
    """A trace whose names and numbers are long."""
    tools = (ToolCall("Bash", "shell_read", 12_345.678, result_tokens=1_234_567),)
    turns = (Turn(123_456_789, 7_654_321, tools=tools), Turn(5, 5, think_s=0.125))
    return collect_stats([Session("a", turns)], {"agent": "derived: " + "a long reason " * 12})


def shown(tables, width):
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    for table in tables:
        console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_nothing_is_cut(width):
    """At any width each name and each number stands whole, and no line is longer than the width."""
    stats = big_trace()
    text = shown(stats_tables(stats, width), width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    numbers = set(re.findall(r"[\d.,]+", text))
    for name, distribution in stats.distributions.items():
        assert name in text
        for value in distribution.summary().values():
            whole = f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"
            assert whole in numbers
    distances = compare_stats(stats, stats)
    text = shown(distance_tables(distances, width), width)
    assert "…" not in text
    assert all(d.quantity in text for d in distances)


def test_columns_go_on_in_a_further_table():
    """What does not fit beside the names follows in a table that names the rows again."""
    wide, narrow = (shown(stats_tables(big_trace(), width), width) for width in (160, 80))
    assert "continued" not in wide
    assert "Distributions, continued" in narrow
    assert narrow.count("tool_wall_s[shell_read]") > wide.count("tool_wall_s[shell_read]") == 1


def test_class_names_are_no_markup():
    """A class in brackets is shown as it is called."""
    assert "tool_wall_s[shell_read]" in shown(stats_tables(big_trace(), 160), 160)


def test_largest_distance_first():
    """Rows of a comparison are in order of their distance, the largest on top."""
    near, far = Session("a", (Turn(10, 5),)), Session("b", (Turn(10, 500),))
    rows = compare_stats(collect_stats([near], {}), collect_stats([far], {}))
    text = shown(distance_tables(rows, 160), 160)
    assert text.index("output_tokens") < text.index("first_prompt_tokens")
