"""The one way a metric is drawn against load: a line per system, or bars if there is one load."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from marsbench.metrics import catalogue
from marsbench.report.data import ReportData, over_seeds
from marsbench.report.style import looks, scale_to, short_numbers

MAX_TICKS = 8
"""Up to so many loads, each has its own tick."""


def label_of(column: str) -> str:
    """Axis label of a metric column such as ``session_latency_s.p95``."""
    name, _, part = column.partition(".")
    label = next(metric.label for metric in catalogue() if metric.name == name)
    return f"{part} {label}" if part else label


def draw_series(axes: Axes, data: ReportData, column: str) -> None:
    """A metric of every system over load, with 95 % intervals over seeds."""
    table = over_seeds(data.cells, ["system", data.x], column).dropna(subset=["mean"])
    if len(data.x_values) > 1:
        _lines(axes, data, table, column)
    else:
        _bars(axes, data, table, column)


def _lines(axes: Axes, data: ReportData, table: pd.DataFrame, column: str) -> None:
    for system, look in looks(data.systems).items():
        rows = table[table["system"] == system]
        axes.errorbar(
            rows[data.x],
            rows["mean"],
            yerr=rows["half"],
            label=system,
            color=look.color,
            marker=look.marker,
            linestyle=look.dash,
            linewidth=look.width,
            capsize=2,
            elinewidth=0.8,
            zorder=3 if system == "mars" else 2,
        )
    axes.set(xlabel=data.x_label, ylabel=label_of(column))
    if len(data.x_values) <= MAX_TICKS:
        axes.set_xticks(data.x_values, [f"{x:.3g}" for x in data.x_values])
    scale_to(axes, table["mean"].tolist())


def _bars(axes: Axes, data: ReportData, table: pd.DataFrame, column: str) -> None:
    shown = [system for system in data.systems if (table["system"] == system).any()]
    rows = table.set_index("system").loc[shown]
    places = np.arange(len(shown))
    axes.barh(
        places,
        rows["mean"],
        xerr=rows["half"],
        color=[looks(data.systems)[system].color for system in shown],
        error_kw={"capsize": 2.5, "ecolor": "#444444", "elinewidth": 1.0},
        height=0.7,
    )
    axes.set_yticks(places, shown)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set(xlabel=label_of(column), xlim=(0, None))
    short_numbers(axes, "x")
