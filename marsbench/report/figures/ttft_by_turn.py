"""Do returning turns wait for their first token, as the context grows?"""

from __future__ import annotations

import numpy as np
import pandas as pd

from marsbench.report.chart import Chart, Line, Mark, Panel, log_if_wide
from marsbench.report.data import ReportData
from marsbench.report.style import looks

EDGES = (0, 1, 2, 3, 5, 8, 12, 18, 27, 40, 60, 90, 135, 200, 10_000)
"""Turn indices where a group begins: single turns first, then ever wider groups."""
FEWEST = 5
"""Turns a group needs."""


def draw(data: ReportData) -> Chart | None:
    """Time to first token by the index of the turn, from 1, at the highest load, all seeds: mean and
    P95 of each group of turns. None without turn tables.
    """
    if not data.has_sessions:
        return None
    load = data.x_values[-1]
    turns = data.at(load).turns(["turn_index", "ready_s", "first_token_s"])
    turns["ttft_s"] = turns["first_token_s"] - turns["ready_s"]
    turns = turns.dropna(subset=["ttft_s"])
    if turns["turn_index"].nunique() < 2:
        return None
    turns["group"] = np.digitize(turns["turn_index"], EDGES)
    panels = [
        _panel(data, turns, None, "mean TTFT (s)"),
        _panel(data, turns, 95, "P95 TTFT (s)"),
    ]
    return Chart(panels, columns=2, title=data.place(load))


def _panel(data: ReportData, turns: pd.DataFrame, percent: int | None, label: str) -> Panel:
    marks: list[Mark] = []
    reached: list[float] = []
    for system, look in looks(data.systems).items():
        groups = turns[turns["system"] == system].groupby("group")
        table = groups.agg(
            turn=("turn_index", "mean"), mean=("ttft_s", "mean"), size=("ttft_s", "size")
        )
        if percent is not None:
            table["mean"] = groups["ttft_s"].quantile(percent / 100)
        table = table[table["size"] >= FEWEST]
        if len(table):
            reached += table["mean"].tolist()
            marks.append(Line(system, (table["turn"] + 1).tolist(), table["mean"].tolist(), look))
    log = log_if_wide(reached) and min(reached) > 0
    return Panel(
        marks, "turn of the session", label, x_log=True, y_log=log,
        y_range=(None if log else 0.0, None),
    )  # fmt: skip
