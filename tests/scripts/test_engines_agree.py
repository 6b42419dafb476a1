"""The comparison of two engines' results against numbers worked out by hand."""

from __future__ import annotations

import engines_agree
import pytest


def cell(system="mars", mean=100.0, hits=0.5):
    return {"workload": "w", "profile": "p", "tool_cores": 2, "load": 1.0, "seed": 0, "system": system,
            "metrics": {"session_latency_s": {"mean": mean, "p95": 200.0, "p99": 300.0},
                        "session_goodput_per_s": {"3": 0.0}, "sessions_per_s": 1.0,
                        "prefix_cache_hit_rate": hits}}  # fmt: skip


def test_the_largest_relative_difference_of_a_cell_counts():
    """Mean 100 and 101: 1 %; hits 0.5 and 0.51: 2 %; zero goodput on both: none."""
    [(_, one, two, gap)] = engines_agree.compare([cell()], [cell(mean=101.0, hits=0.51)])
    assert (one, two) == (100.0, 101.0)
    assert gap == pytest.approx(0.02)


def test_a_number_that_was_zero_differs_without_bound():
    """Nothing against something is no agreement."""
    assert engines_agree.difference(0.0, 1.0) == float("inf")


def test_runs_of_other_cells_are_refused():
    """A system missing in one run is an error, not a shorter table."""
    with pytest.raises(ValueError, match="2 cells are in one run only"):
        engines_agree.compare([cell("mars")], [cell("vllm")])
