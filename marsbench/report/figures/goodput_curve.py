"""How many sessions meet their SLO, by load and for any SLO from 1.5 to 10 times the ideal latency?"""

from __future__ import annotations

from marsbench.metrics import ALPHAS
from marsbench.report.chart import Chart, Line, Mark, Panel
from marsbench.report.data import ReportData, spread
from marsbench.report.series import over_load
from marsbench.report.style import looks


def draw(data: ReportData) -> Chart | None:
    """Goodput within 3 times the ideal by load; at the highest load the share of sessions within α
    times their ideal. Bars run from the lowest to the highest seed. None without ideal latencies.
    """
    if data.cells["slo_attainment.3"].isna().all():
        return None
    highest = data.at(data.x_values[-1])
    panels = [over_load(data, "session_goodput_per_s.3"), _by_alpha(highest)]
    return Chart(panels, columns=2)


def _by_alpha(data: ReportData) -> Panel:
    tables = [
        spread(data.cells, ["system"], f"slo_attainment.{alpha}").set_index("system")
        for alpha in ALPHAS
    ]
    alphas = [float(alpha) for alpha in ALPHAS]
    marks: list[Mark] = []
    for system, look in looks(data.systems).items():
        mean, low, high = (
            [float(table[name][system]) for table in tables] for name in ("mean", "low", "high")
        )
        marks.append(Line(system, alphas, mean, look, low, high))
    title = data.place(data.x_values[-1])
    return Panel(
        marks, "SLO: latency ≤ α × ideal, α", "share of sessions within SLO", title,
        x_log=True, y_range=(0.0, 1.02), x_ticks=alphas,
    )  # fmt: skip
