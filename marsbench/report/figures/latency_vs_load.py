"""How does session latency grow with load under each system?"""

from __future__ import annotations

from marsbench.report.chart import Chart
from marsbench.report.data import ReportData
from marsbench.report.series import over_load


def draw(data: ReportData) -> Chart:
    """Mean, P90 and P99 of the sessions of a cell; bars run from the lowest to the highest seed."""
    names = ("session_latency_s.mean", "session_latency_s.p90", "session_latency_s.p99")
    return Chart([over_load(data, name) for name in names])
