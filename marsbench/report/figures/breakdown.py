"""Where does a session's time go: waiting, prefill, work done twice, decode, or tools?"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from marsbench.report.data import ReportData, over_seeds
from marsbench.report.style import COMPONENT_COLORS, legend, panels


def draw(data: ReportData) -> Figure | None:
    """Mean seconds of a completed session by component, at the lowest and the highest load."""
    loads = data.x_values
    loads = loads if len(loads) < 2 else [loads[0], loads[-1]]
    figure, axes = panels(1, len(loads))
    for panel, load in zip(axes, loads, strict=True):
        _stack(panel, data.at(load))
        panel.set_title(data.place(load))
    legend(figure, axes[0])
    return figure


def _stack(axes: Axes, data: ReportData) -> None:
    systems = data.systems
    left = np.zeros(len(systems))
    for name, color in COMPONENT_COLORS.items():
        table = over_seeds(data.cells, ["system"], f"latency_breakdown_s.{name}")
        width = table.set_index("system")["mean"].reindex(systems).fillna(0.0).to_numpy()
        axes.barh(
            systems, width, left=left, color=color, label=name.replace("_", " "),
            height=0.72, edgecolor="white", linewidth=0.4,
        )  # fmt: skip
        left += width
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="mean session latency (s)", xlim=(0, None))
