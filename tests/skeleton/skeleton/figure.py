"""How many sessions did each system complete?"""

from __future__ import annotations

from marsbench.report.chart import Bars, Chart, Panel
from marsbench.report.data import ReportData
from marsbench.report.style import looks


def draw(data: ReportData) -> Chart:
    """Completed sessions of all cells, by system."""
    completed = data.cells.groupby("system")["completed"].sum()
    systems = data.systems
    bars = [
        Bars(system, [system], [0.0], [float(completed[system])], look)
        for system, look in looks(systems).items()
    ]
    return Chart([Panel(list(bars), "completed sessions", rows=systems)])
