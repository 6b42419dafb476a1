"""How many sessions meet their SLO, for any SLO from 1.5 to 10 times the ideal latency?"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from marsbench.metrics import ALPHAS
from marsbench.report.data import ReportData, over_seeds
from marsbench.report.style import legend, looks, panels


def draw(data: ReportData) -> Figure | None:
    """Goodput and attainment by α at the highest load; None without ideal latencies."""
    data = data.at(data.x_values[-1])
    if data.cells["slo_attainment.3"].isna().all():
        return None
    figure, (left, right) = panels(1, 2)
    _curves(left, data, "session_goodput_per_s")
    left.set(ylabel="session goodput (1/s)", ylim=(0, None))
    _curves(right, data, "slo_attainment")
    right.set(ylabel="share of sessions within SLO", ylim=(0, 1.02))
    figure.suptitle(data.place(data.x_values[-1]), fontsize="medium")
    legend(figure, left)
    return figure


def _curves(axes: Axes, data: ReportData, metric: str) -> None:
    tables = [
        over_seeds(data.cells, ["system"], f"{metric}.{alpha}").set_index("system")
        for alpha in ALPHAS
    ]
    for system, look in looks(data.systems).items():
        axes.errorbar(
            [float(alpha) for alpha in ALPHAS],
            [float(table["mean"][system]) for table in tables],
            yerr=[float(table["half"][system]) for table in tables],
            label=system,
            color=look.color,
            marker=look.marker,
            linestyle=look.dash,
            linewidth=look.width,
            capsize=2,
            elinewidth=0.8,
            zorder=3 if system == "mars" else 2,
        )
    axes.set(xscale="log", xlabel="SLO: latency ≤ α × ideal, α")
    axes.set_xticks([float(alpha) for alpha in ALPHAS], ALPHAS)
    axes.minorticks_off()
