"""A metric: one decorated function over a cell's tables; its docstring is the formula."""

from __future__ import annotations

from marsbench.metrics.base import Measured, Result, metric


@metric("1", "neither")
def skeleton_short_turns(cell: Measured) -> Result:
    """Turns with at most 50 output tokens."""
    return int((cell.turns["output_tokens"] <= 50).sum())
