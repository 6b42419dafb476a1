"""What fills the KV cache over time: running turns, retained sessions, or reusable leftovers?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from marsbench.events import FIELDS, Kind
from marsbench.report.data import ReportData
from marsbench.report.style import legend, panels

LAYERS = {
    "running turns": ("referenced_blocks", "#2171b5"),
    "retained for returning sessions": ("pinned_blocks", "#d55e00"),
    "reusable, evictable": ("cached_blocks", "#c6dbef"),
}
MAX_POINTS = 500
"""More samples than this are averaged: a page has no more pixels."""


def draw(data: ReportData) -> Figure | None:
    """KV occupancy of each system at the highest load, first seed; None without samples."""
    data = data.at(data.x_values[-1])
    cells = data.cells[data.cells["seed"] == data.cells["seed"].min()]
    shown: list[tuple[str, pd.DataFrame]] = []
    for system in data.systems:
        for row in cells[cells["system"] == system].head(1).itertuples():
            shares = _shares(data.samples(int(row.run), int(row.cell), "KV_STATS", "RUN_END"))
            if len(shares):
                shown.append((system, shares))
    if not shown:
        return None
    columns = min(3, len(shown))
    figure, axes = panels(-(-len(shown) // columns), columns, share=True, scale=0.72)
    for panel, (system, shares) in zip(axes, shown, strict=False):
        _stack(panel, shares)
        panel.set_title(system)
    for panel in axes[len(shown) :]:
        panel.set_visible(False)
    figure.supxlabel("time (s)", fontsize="medium")
    figure.supylabel("share of KV blocks", fontsize="medium")
    legend(figure, axes[0], loc="outside upper center", ncols=len(LAYERS))
    return figure


def _shares(events: pd.DataFrame) -> pd.DataFrame:
    """Layers as shares of all blocks over time."""
    letters = dict(zip(FIELDS[Kind.KV_STATS], "abcdef", strict=True))
    total = events.loc[
        events["kind"] == "RUN_END", "abcdef"[FIELDS[Kind.RUN_END].index("num_blocks")]
    ]
    samples = events[events["kind"] == "KV_STATS"]
    table = pd.DataFrame({"time_s": samples["time_ps"].to_numpy() / 1e12})
    for label, (field, _) in LAYERS.items():
        blocks = samples[letters[field]].to_numpy()  # -1: a live server does not tell it
        table[label] = np.maximum(blocks, 0) / max(int(total.iloc[0]), 1)
    if len(table) > MAX_POINTS:
        table = table.groupby(np.arange(len(table)) * MAX_POINTS // len(table)).mean()
    return table


def _stack(axes: Axes, shares: pd.DataFrame) -> None:
    axes.stackplot(
        shares["time_s"],
        *(shares[label] for label in LAYERS),
        labels=list(LAYERS),
        colors=[color for _, color in LAYERS.values()],
        linewidth=0,
        step="post",
    )
    axes.set(ylim=(0, 1), xlim=(0, float(shares["time_s"].max())))
