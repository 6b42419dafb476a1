"""The numbers of bench_plugin: contenders, medians, and ratios of neighbours in time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

STOCK, NULL, MARS = "stock", "null policies", "MARS"


def interval(values: Sequence[float], *, draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the median; the value itself where there is only one."""
    found = np.asarray(values, dtype=float)
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(found, (draws, len(found))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)


def ratio(ours: Sequence[float], stock: Sequence[float]) -> dict[str, float]:
    """Median of the quotients of neighbours in time, with its interval."""
    quotients = [a / b for a, b in zip(ours, stock, strict=True)]
    low, high = interval(quotients)
    return {"ratio": statistics.median(quotients), "low": low, "high": high}


def summary(runs: dict[str, list[float]], unit: str, stock: str) -> dict[str, Any]:
    """Median and all runs of each contender, and its ratio to the stock one."""
    return {
        name: {
            unit: statistics.median(values),
            "runs": values,
            **({} if name == stock else ratio(values, runs[stock])),
        }
        for name, values in runs.items()
    }


def told(name: str, row: dict[str, Any], key: str, unit: str) -> str:
    """A contender's number and its ratio to the stock one, in words."""
    text = f"{name} {row[key]:.1f} {unit}"
    if "ratio" in row:
        text += f" ({row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}])"
    return text
