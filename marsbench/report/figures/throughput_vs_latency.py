"""How much work does each system get done, at what latency?"""

from __future__ import annotations

from marsbench.report.chart import Chart, Line, Mark, Panel, log_if_wide
from marsbench.report.data import ReportData, spread
from marsbench.report.style import looks

SHOWN = {
    "session_latency_s.mean": "mean session latency (s)",
    "session_latency_s.p95": "P95 session latency (s)",
}
HOUR_S = 3600


def draw(data: ReportData) -> Chart | None:
    """A point a load, joined as load grows, means over seeds: to the right is more work, down is less
    waiting, and a line that turns upwards has nothing left to give. None for a single load.
    """
    if len(data.x_values) < 2:
        return None
    return Chart([_panel(data, column, label) for column, label in SHOWN.items()], columns=2)


def _panel(data: ReportData, column: str, label: str) -> Panel:
    rate = spread(data.cells, ["system", data.x], "sessions_per_s")
    latency = spread(data.cells, ["system", data.x], column)
    both = rate.merge(latency, on=["system", data.x], suffixes=("", "_latency")).dropna()
    marks: list[Mark] = []
    for system, look in looks(data.systems).items():
        rows = both[both["system"] == system].sort_values(data.x)
        if len(rows):
            per_hour = (rows["mean"] * HOUR_S).tolist()
            marks.append(Line(system, per_hour, rows["mean_latency"].tolist(), look))
    log = log_if_wide(both["mean_latency"].tolist())
    return Panel(
        marks, "sessions completed per hour", label, y_log=log, y_range=(None if log else 0.0, None)
    )
