"""Whether a cell is past its stability point: a queue that grows as long as sessions arrive.

There, every latency grows with the length of the run, and so does a ratio to it: it says how long
somebody ran, not how good a system is.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from marsbench.metrics.base import Measured, Result, metric, ratio

FEWEST = 12
"""Sessions below which a trend cannot be told from chance."""
GROWTH = 2.0
LEFT = 0.2
CHANCE = 2.326
"""Standard errors of a rank correlation that chance exceeds once in a hundred cells."""


@metric("1", "lower")
def slowdown_growth(cell: Measured) -> Result:
    """Mean slowdown of the last third of arrivals ÷ of the first third (latency without ideals)."""
    late = _by_arrival(cell)
    third = len(late) // 3
    return ratio(float(late[-third:].mean()), float(late[:third].mean())) if third else None


@metric("1", "lower")
def backlog_at_end(cell: Measured) -> Result:
    """Sessions still in the system when the last one arrived ÷ all that arrived."""
    sessions = cell.sessions
    left = ~(sessions["end_s"] <= sessions["arrival_s"].max())
    return ratio(int(left.sum()), len(sessions))


@metric("1", "lower")
def unstable(cell: Measured) -> Result:
    """1 if later sessions wait ever longer: slowdown at least doubles from the first third of arrivals
    to the last, by more than chance, and a fifth of the sessions is left at the last arrival; else 0.
    """
    late = _by_arrival(cell)
    if len(late) < FEWEST:
        return None
    growth, left = slowdown_growth(cell), backlog_at_end(cell)
    assert isinstance(growth, float)
    assert isinstance(left, float)
    chance = _rank_correlation(late) * np.sqrt(len(late) - 1) < CHANCE
    return int(growth >= GROWTH and left >= LEFT and not chance)


def _by_arrival(cell: Measured) -> np.typing.NDArray[np.float64]:
    """Slowdowns of completed sessions in order of arrival."""
    done = cell.finished.sort_values("arrival_s", kind="stable")
    column = "latency_s" if done["slowdown"].isna().all() else "slowdown"
    values: np.typing.NDArray[np.float64] = done[column].dropna().to_numpy(dtype=np.float64)
    return values


def _rank_correlation(values: np.typing.NDArray[np.float64]) -> float:
    """Spearman's, with the order of the values; 0 if they are all equal."""
    ranks = pd.Series(values).rank().to_numpy()
    if ranks.std() == 0:
        return 0.0
    return float(np.corrcoef(np.arange(len(values)), ranks)[0, 1])
