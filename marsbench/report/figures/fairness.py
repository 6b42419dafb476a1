"""Is what one session gains taken from another?"""

from __future__ import annotations

from marsbench.report.chart import Chart
from marsbench.report.data import ReportData
from marsbench.report.series import over_load


def draw(data: ReportData) -> Chart | None:
    """Jain's index of slowdowns (1 = all slowed down alike), the largest slowdown, and the longest a turn
    was ready without being scheduled. Bars run from the lowest to the highest seed. None without ideal
    latencies.
    """
    if data.cells["jain_slowdown"].isna().all():
        return None
    panels = [
        over_load(data, "jain_slowdown", share=True),
        over_load(data, "max_slowdown"),
        over_load(data, "max_wait_s"),
    ]
    return Chart(panels)
