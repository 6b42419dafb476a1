"""What fills the KV cache over time: running turns, retained sessions, or reusable leftovers?"""

from __future__ import annotations

import numpy as np
import pandas as pd

from marsbench.events import FIELDS, Kind
from marsbench.report.chart import Chart, Layers, Panel
from marsbench.report.data import ReportData
from marsbench.report.style import KV_LAYERS

FIELD_OF = dict(
    zip(KV_LAYERS, ("referenced_blocks", "pinned_blocks", "cached_blocks"), strict=False)
)
MAX_POINTS = 300
"""More samples than this are averaged: a page has no more pixels."""


def draw(data: ReportData) -> Chart | None:
    """KV occupancy of each system at the highest load, first seed. None without samples."""
    if not data.has_sessions:
        return None
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
    longest = max(float(shares["time_s"].max()) for _, shares in shown)
    panels = [
        Panel(
            [_layers(shares)], "time (s)", "share of KV blocks", system,
            x_range=(0.0, longest), y_range=(0.0, 1.0),
        )
        for system, shares in shown
    ]  # fmt: skip
    return Chart(panels, scale=0.8, title=data.place(data.x_values[-1]))


def _layers(shares: pd.DataFrame) -> Layers:
    return Layers(
        shares["time_s"].tolist(),
        {name: (shares[name].round(4).tolist(), look) for name, look in KV_LAYERS.items()},
    )


def _shares(events: pd.DataFrame) -> pd.DataFrame:
    """Layers as shares of all blocks over time; the last one is what is left."""
    letters = dict(zip(FIELDS[Kind.KV_STATS], "abcdef", strict=True))
    total = events.loc[
        events["kind"] == "RUN_END", "abcdef"[FIELDS[Kind.RUN_END].index("num_blocks")]
    ]
    samples = events[events["kind"] == "KV_STATS"]
    table = pd.DataFrame({"time_s": samples["time_ps"].to_numpy() / 1e12})
    for label, field in FIELD_OF.items():
        blocks = samples[letters[field]].to_numpy()  # -1: a live server does not tell it
        table[label] = np.maximum(blocks, 0) / max(int(total.iloc[0]), 1)
    left = next(name for name in KV_LAYERS if name not in FIELD_OF)
    table[left] = (1.0 - table[list(FIELD_OF)].sum(axis=1)).clip(lower=0.0)
    if len(table) > MAX_POINTS:
        table = table.groupby(np.arange(len(table)) * MAX_POINTS // len(table)).mean()
    return table
