"""Who pays for whom: are short sessions slowed down more than long ones?"""

from __future__ import annotations

import numpy as np
import pandas as pd

from marsbench.report.chart import Chart, Line, Mark, Panel, log_if_wide
from marsbench.report.data import ReportData
from marsbench.report.style import looks

GROUPS = 6
"""Sessions are grouped by their ideal latency into so many groups of equal number."""


def draw(data: ReportData) -> Chart | None:
    """Slowdown of sessions by how long they take alone, at the highest load, all seeds: mean and P95 of
    each sixth of the sessions. None without ideal latencies.
    """
    if not data.has_sessions:
        return None
    load = data.x_values[-1]
    here = data.at(load)
    sessions = here.sessions().dropna(subset=["slowdown"])
    if sessions["session_id"].nunique() < GROUPS:
        return None
    sessions["group"] = pd.qcut(sessions["ideal_s"], GROUPS, duplicates="drop")
    panels = [
        _panel(here, sessions, None, "mean session slowdown"),
        _panel(here, sessions, 95, "P95 session slowdown"),
    ]
    return Chart(panels, columns=2, title=data.place(load))


def _panel(data: ReportData, sessions: pd.DataFrame, percent: int | None, label: str) -> Panel:
    marks: list[Mark] = []
    reached: list[float] = []
    for system, look in looks(data.systems).items():
        groups = sessions[sessions["system"] == system].groupby("group", observed=True)
        x = groups["ideal_s"].median().tolist()
        values = groups["slowdown"]
        y = values.mean() if percent is None else values.agg(lambda s: np.percentile(s, percent))
        reached += y.tolist()
        marks.append(Line(system, x, y.tolist(), look))
    return Panel(
        marks, "latency of the session alone (s)", label, x_log=True, y_log=log_if_wide(reached)
    )
