"""Which sessions are slow: how are latencies and slowdowns distributed at the highest load?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from marsbench.report.data import ReportData
from marsbench.report.series import label_of
from marsbench.report.style import legend, log_axis, looks, panels


def draw(data: ReportData) -> Figure:
    """Share of arrived sessions done within a latency (failed ones never are), all seeds."""
    data = data.at(data.x_values[-1])
    sessions = data.sessions()
    has_ideal = bool(sessions["slowdown"].notna().any())
    figure, axes = panels(1, 2 if has_ideal else 1)
    _curves(axes[0], data, sessions, "latency_s")
    axes[0].set(xlabel=label_of("session_latency_s"), ylabel="share of sessions")
    if has_ideal:
        _curves(axes[1], data, sessions, "slowdown")
        axes[1].set(xlabel=label_of("session_slowdown"), ylabel="share of sessions")
    figure.suptitle(data.place(data.x_values[-1]), fontsize="medium")
    legend(figure, axes[0])
    return figure


def _curves(axes: Axes, data: ReportData, sessions: pd.DataFrame, column: str) -> None:
    for system, look in looks(data.systems).items():
        values = sessions.loc[sessions["system"] == system, column].sort_values().to_numpy()
        share = np.arange(1, len(values) + 1) / max(len(values), 1)
        known = ~np.isnan(values)
        axes.step(
            values[known],
            share[known],
            where="post",
            label=system,
            color=look.color,
            linestyle=look.dash,
            linewidth=look.width,
            zorder=3 if system == "mars" else 2,
        )
    log_axis(axes, "x")
    axes.set_ylim(0, 1.02)
