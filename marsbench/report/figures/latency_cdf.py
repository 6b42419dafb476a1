"""Which sessions are slow: how are latencies and slowdowns distributed?"""

from __future__ import annotations

import numpy as np
import pandas as pd

from marsbench.report.chart import Chart, Line, Mark, Panel
from marsbench.report.data import ReportData
from marsbench.report.series import label_of
from marsbench.report.style import looks

MARKERS = 6
"""Markers on a curve: enough to tell it from another, few enough to see the curve."""
MAX_POINTS = 400
"""More sessions than this are drawn as so many quantiles."""


def draw(data: ReportData) -> Chart | None:
    """Share of arrived sessions done within a latency (failed ones never are), all seeds, at the
    lowest and the highest load. None without session tables.
    """
    if not data.has_sessions:
        return None
    panels = []
    for load in dict.fromkeys([data.x_values[0], data.x_values[-1]]):
        here = data.at(load)
        sessions = here.sessions()
        for column, name in (("latency_s", "session_latency_s"), ("slowdown", "session_slowdown")):
            if sessions[column].notna().any():
                marks = _curves(here, sessions, column)
                panels.append(
                    Panel(
                        marks,
                        label_of(name),
                        "share of sessions",
                        here.place(load),
                        x_log=True,
                        y_range=(0.0, 1.02),
                    )
                )
    return Chart(panels, columns=2)


def _curves(data: ReportData, sessions: pd.DataFrame, column: str) -> list[Mark]:
    marks: list[Mark] = []
    for system, look in looks(data.systems).items():
        values = sessions.loc[sessions["system"] == system, column].sort_values().to_numpy()
        share = np.arange(1, len(values) + 1) / max(len(values), 1)
        known = np.flatnonzero(~np.isnan(values))
        if len(known) > MAX_POINTS:
            known = known[np.linspace(0, len(known) - 1, MAX_POINTS).round().astype(int)]
        if not len(known):
            continue
        marked = np.unique(np.linspace(0, len(known) - 1, MARKERS + 2).round().astype(int))[1:-1]
        marks.append(
            Line(
                system,
                values[known].tolist(),
                share[known].tolist(),
                look,
                step=True,
                marked=marked.tolist(),
            )
        )
    return marks
