"""How evenly sessions are served."""

from __future__ import annotations

import numpy as np

from marsbench.metrics.base import Measured, Result, metric, ratio


@metric("1", "higher")
def jain_slowdown(cell: Measured) -> Result:
    """Jain's index of session slowdowns, (Σ x)² ÷ (n Σ x²): 1 = all slowed down alike."""
    slowdown = cell.finished["slowdown"].to_numpy()
    slowdown = slowdown[~np.isnan(slowdown)]
    return ratio(float(slowdown.sum()) ** 2, len(slowdown) * float((slowdown**2).sum()))


@metric("1", "lower")
def max_slowdown(cell: Measured) -> Result:
    """Largest session slowdown."""
    largest = cell.finished["slowdown"].max()
    return None if np.isnan(largest) else float(largest)


@metric("s", "lower")
def max_wait_s(cell: Measured) -> Result:
    """Longest time a turn was ready without being scheduled: a starvation alarm."""
    longest = (cell.turns["sched_first_s"] - cell.turns["ready_s"]).max()
    return None if np.isnan(longest) else float(longest)
