"""How many times better is each system than the baseline, and is that more than chance?"""

from __future__ import annotations

from marsbench.report.chart import Chart, Rule
from marsbench.report.compare import compare_systems, default_baseline
from marsbench.report.data import ReportData
from marsbench.report.series import ratios

SHOWN = {
    "session_latency_s.mean": "mean session latency",
    "session_latency_s.p95": "P95 session latency",
    "slo_attainment.3": "sessions within 3x ideal",
}


def draw(data: ReportData) -> Chart | None:
    """Ratios of the same sessions at the same times, with 95 % intervals over seeds; above 1 is better.
    Cells where a side is unstable are left out: their ratio grows with the length of the run.
    """
    if len(data.systems) < 2:
        return None
    baseline = default_baseline(data.systems)
    found = compare_systems(data, baseline)
    panels = [ratios(data, found, name, title) for name, title in SHOWN.items()]
    panels = [panel for panel in panels if panel.marks]
    if not panels:
        return None
    axis = "y" if len(data.x_values) > 1 else "x"
    for panel in panels:
        panel.marks.append(Rule(f"{baseline} = 1", 1.0, axis))
    return Chart(panels, title=f"against {baseline}")
