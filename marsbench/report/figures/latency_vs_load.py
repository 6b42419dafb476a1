"""How does session latency grow with load under each system?"""

from __future__ import annotations

from matplotlib.figure import Figure

from marsbench.report.data import ReportData
from marsbench.report.series import draw_series
from marsbench.report.style import legend, panels


def draw(data: ReportData) -> Figure:
    """Mean and 95th percentile against load; bars are 95 % intervals over seeds."""
    figure, (left, right) = panels(1, 2)
    draw_series(left, data, "session_latency_s.mean")
    draw_series(right, data, "session_latency_s.p95")
    if len(data.x_values) > 1:
        legend(figure, left)
    return figure
