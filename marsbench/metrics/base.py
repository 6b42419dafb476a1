"""What a metric is: a declared name, unit and direction, and one function over a cell's tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from marsbench.tables import CellTables

Value = float | int | None
"""A number, or None where there is nothing to measure."""
Result = Value | dict[str, Value]
Better = Literal["lower", "higher", "neither"]

PERCENTILES = (50, 90, 95, 99)
ALPHAS = ("1.5", "2", "3", "5", "10")
"""Session SLOs as multiples of the ideal latency; "3" is the one quoted alone."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Warm-up and cool-down left out of the measurement, seconds of the arrival period.

    Both are counted on arrivals, which all systems of a comparison share, so a cut never changes
    which sessions are compared.
    """

    warmup_s: float = 0.0
    cooldown_s: float = 0.0


@dataclass(frozen=True, slots=True)
class CellFacts:
    """What a cell's tables do not know."""

    wall_s: float | None = None
    """How long the cell took to run, on the clock on the wall."""
    num_gpus: int = 1
    theoretical_prefix_cache_hit_rate: float | None = None
    """Hit rate of an infinite prefix cache on the same prompts."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One cell as metrics see it, cut to the measured window."""

    sessions: pd.DataFrame
    """Top-level sessions that arrived in the window; sub-agents count in their parents."""
    finished: pd.DataFrame
    """Those of them that completed."""
    ended: pd.DataFrame
    """Top-level sessions that completed during the window (what rates count)."""
    turns: pd.DataFrame
    """Turns of all sessions, sub-agents included, that got ready in the window."""
    calls: pd.DataFrame
    """Tool calls enqueued in the window."""
    window_s: float
    makespan_s: float
    """First arrival to the end of the last session."""
    tables: CellTables
    facts: CellFacts


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric's declaration; ``formula`` is the docstring of its function."""

    name: str
    unit: str
    better: Better
    formula: str
    compute: Callable[[Measured], Result]
    host_only: bool = False
    """Said only of cells with host memory for KV."""
    fleet_only: bool = False
    """Said only of cells with several replicas."""

    @property
    def label(self) -> str:
        """Axis label: name in words, with the unit."""
        words = self.name.removesuffix("_s").removesuffix("_per").replace("_", " ")
        return words if self.unit in {"1", ""} else f"{words} ({self.unit})"


_METRICS: dict[str, Metric] = {}


def metric(
    unit: str, better: Better, *, host_only: bool = False, fleet_only: bool = False
) -> Callable[[Callable[[Measured], Result]], Callable[[Measured], Result]]:
    """Declare the decorated function as the metric of its name."""

    def declare(function: Callable[[Measured], Result]) -> Callable[[Measured], Result]:
        name = function.__name__
        formula = " ".join((function.__doc__ or "").split())
        assert formula, f"metric {name} has no formula in its docstring"
        assert name not in _METRICS, f"metric {name} is declared twice"
        _METRICS[name] = Metric(name, unit, better, formula, function, host_only, fleet_only)
        return function

    return declare


def declared() -> Mapping[str, Metric]:
    """All metrics declared so far, by name."""
    return _METRICS


def measure(tables: CellTables, facts: CellFacts, cut: Cut) -> Measured:
    """Cut a cell's tables to the measured window."""
    top = tables.sessions[tables.sessions["parent"] < 0]
    first, last_arrival = _span(top["arrival_s"])
    last_end = _span(top["end_s"])[1]
    start = first + cut.warmup_s
    stop = last_arrival - cut.cooldown_s if cut.cooldown_s > 0 else last_end
    in_window = (top["arrival_s"] >= start) & (top["arrival_s"] <= stop)
    done = top["status"] == "ok"
    ended = (top["end_s"] >= start) & (top["end_s"] <= stop)
    turns, calls = tables.turns, tables.calls
    return Measured(
        sessions=top[in_window],
        finished=top[in_window & done],
        ended=top[ended & done],
        turns=turns[(turns["ready_s"] >= start) & (turns["ready_s"] <= stop)],
        calls=calls[(calls["enqueued_s"] >= start) & (calls["enqueued_s"] <= stop)],
        window_s=max(stop - start, 0.0),
        makespan_s=last_end - first,
        tables=tables,
        facts=facts,
    )


def _span(times: pd.Series[float]) -> tuple[float, float]:
    """Smallest and largest of what happened; zeros if nothing did."""
    known = times.to_numpy()[~np.isnan(times.to_numpy())]
    return (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)


def distribution(values: pd.Series[float]) -> dict[str, Value]:
    """Mean and percentiles (linear interpolation) of what is not NaN; None if nothing is left."""
    known = values.to_numpy(dtype=np.float64)
    known = known[~np.isnan(known)]
    names = [f"p{percentile}" for percentile in PERCENTILES]
    if not len(known):
        return dict.fromkeys(["mean", *names])
    points: npt.NDArray[np.float64] = np.percentile(known, PERCENTILES)
    return {"mean": float(known.mean()), **dict(zip(names, points.tolist(), strict=True))}


def ratio(part: float, whole: float) -> float | None:
    """Part / whole; None if there is no whole, or no number."""
    if not whole or math.isnan(whole) or math.isnan(part):
        return None
    return float(part) / float(whole)
