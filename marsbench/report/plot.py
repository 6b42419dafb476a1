"""Draws a ``Chart`` with matplotlib, for files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from marsbench.report.chart import Bars, Chart, Dots, Heat, Layers, Line, Panel, Rule
from marsbench.report.style import PANEL, Look, log_ticks, short

HATCH_COLOR = "#00000066"


def plot(chart: Chart, question: str) -> Figure:
    """The figure with its question as the title, laid out so that the legend covers no data."""
    columns = min(chart.columns, len(chart.panels))
    lines = -(-len(chart.panels) // columns)
    width, height = PANEL[0] * chart.scale, PANEL[1] * chart.scale
    if chart.row_height is not None:
        height = 0.9 + chart.row_height * max(len(panel.rows) for panel in chart.panels)
    figure = Figure(figsize=(columns * width + 1.3, lines * height + 0.4), layout="constrained")
    grid = [axes for row in figure.subplots(lines, columns, squeeze=False) for axes in row]
    for axes, panel in zip(grid, chart.panels, strict=False):
        _panel(axes, panel)
    for axes in grid[len(chart.panels) :]:
        axes.set_visible(False)
    title = f"{question}\n{chart.title}" if chart.title else question
    figure.suptitle(title, fontsize="medium", x=0.01, ha="left")
    _legend(figure, chart)
    return figure


def _panel(axes: Axes, panel: Panel) -> None:
    for mark in panel.marks:
        _DRAW[type(mark)](axes, mark, panel)
    named = any(isinstance(mark, Heat) for mark in panel.marks)
    if panel.rows and not named:
        axes.set_yticks(range(len(panel.rows)), list(panel.rows))
        axes.set_ylim(len(panel.rows) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
    axes.set(xlabel=panel.x_label, ylabel=panel.y_label)
    axes.set_title(panel.title)
    for axis, log, given in (("x", panel.x_log, panel.x_range), ("y", panel.y_log, panel.y_range)):
        if not named and not (panel.rows and axis == "y"):
            _scale(axes, axis, log=log, limits=given)
    if panel.x_ticks is not None:
        axes.set_xticks(list(panel.x_ticks), [f"{x:.3g}" for x in panel.x_ticks])
        axes.xaxis.set_minor_locator(NullLocator())


def _scale(axes: Axes, axis: str, *, log: bool, limits: tuple[float | None, float | None]) -> None:
    ticks = getattr(axes, f"{axis}axis")
    if log:
        axes.set(**{f"{axis}scale": "log"})
    low, high = limits
    if low is not None or high is not None:
        axes.set(**{f"{axis}lim": (low, high)})
    if log:
        ticks.set_major_locator(FixedLocator(log_ticks(*ticks.get_view_interval())))
        ticks.set_minor_formatter(NullFormatter())
    ticks.set_major_formatter(FuncFormatter(short))


def _line(axes: Axes, mark: Line, panel: Panel) -> None:
    style: dict[str, Any] = {
        "label": mark.name, "color": mark.look.color, "marker": mark.look.marker,
        "linestyle": mark.look.dash if mark.joined else "", "linewidth": 1.5,
        "markeredgecolor": "white", "markeredgewidth": 0.5,
    }  # fmt: skip
    if mark.marked is not None:
        style["markevery"] = list(mark.marked)
    if mark.step:
        style["drawstyle"] = "steps-post"
    errors = _errors(mark.y, mark.low, mark.high)
    axes.errorbar(
        np.add(mark.x, mark.shift), mark.y, yerr=errors, capsize=2, elinewidth=0.8, **style
    )


def _dots(axes: Axes, mark: Dots, panel: Panel) -> None:
    axes.errorbar(
        mark.x, [panel.rows.index(row) for row in mark.rows],
        xerr=_errors(mark.x, mark.low, mark.high),
        label=mark.name, color=mark.look.color, marker=mark.look.marker, linestyle="", capsize=2.5,
        elinewidth=1.0,
    )  # fmt: skip


def _errors(
    values: Sequence[float], low: Sequence[float] | None, high: Sequence[float] | None
) -> Any:
    """Distances below and above, as matplotlib wants them; None without an interval."""
    if low is None or high is None:
        return None
    return np.maximum([np.subtract(values, low), np.subtract(high, values)], 0.0)


def _bars(axes: Axes, mark: Bars, panel: Panel) -> None:
    """One collection for all bars: a patch each would take seconds for the lanes of a run."""
    place = {name: k for k, name in enumerate(panel.rows)}
    corners = [
        [
            (start, y - 0.36),
            (start, y + 0.36),
            (start + length, y + 0.36),
            (start + length, y - 0.36),
        ]
        for row, start, length in zip(mark.rows, mark.starts, mark.lengths, strict=True)
        for y in (place[row],)
    ]
    axes.add_collection(
        PolyCollection(
            corners, facecolor=mark.look.color, hatch=mark.look.hatch or None, label=mark.name,
            edgecolor=HATCH_COLOR if mark.look.hatch else "none", linewidth=0.0,
        )
    )  # fmt: skip
    axes.autoscale_view()


def _layers(axes: Axes, mark: Layers, panel: Panel) -> None:
    below = np.zeros(len(mark.x))
    for name, (values, look) in mark.layers.items():
        above = below + np.asarray(values)
        axes.fill_between(
            mark.x, below, above, step="post", label=name, facecolor=look.color,
            edgecolor=HATCH_COLOR, hatch=look.hatch or None, linewidth=0.0,
        )  # fmt: skip
        below = above


def _heat(axes: Axes, mark: Heat, panel: Panel) -> None:
    values = np.asarray(mark.values, dtype=float)
    reach = float(np.nanmax(np.abs(np.log(values / mark.middle)))) if values.size else 1.0
    scale = TwoSlopeNorm(0.0, -max(reach, 0.05), max(reach, 0.05))
    colors = sns.diverging_palette(30, 250, s=85, l=55, as_cmap=True)
    axes.imshow(np.log(values / mark.middle), cmap=colors, norm=scale, aspect="auto")
    axes.set_xticks(range(len(mark.columns)), list(mark.columns))
    axes.set_yticks(range(len(mark.rows)), list(mark.rows))
    axes.grid(visible=False)
    for y, row in enumerate(mark.texts):
        for x, text in enumerate(row):
            dark = abs(np.log(values[y, x] / mark.middle)) > 0.7 * reach
            axes.text(x, y, text, ha="center", va="center", fontsize="small",
                      color="white" if dark else "#222222")  # fmt: skip


def _rule(axes: Axes, mark: Rule, panel: Panel) -> None:
    line = axes.axhline if mark.axis == "y" else axes.axvline
    line(mark.at, color="#444444", linestyle=":", linewidth=1.2, label=mark.name)


_DRAW: dict[type, Callable[[Axes, Any, Panel], None]] = {
    Line: _line, Dots: _dots, Bars: _bars, Layers: _layers, Heat: _heat, Rule: _rule,
}  # fmt: skip


def _legend(figure: Figure, chart: Chart) -> None:
    """Every name once, beside all panels."""
    handles: dict[str, Any] = {}
    for panel in chart.panels:
        for mark in panel.marks:
            if isinstance(mark, Line | Dots):
                if not isinstance(
                    handles.get(mark.name), Line2D
                ):  # a marker says more than a patch
                    handles[mark.name] = _sample(mark)
            elif isinstance(mark, Bars):
                handles.setdefault(mark.name, _patch(mark.look))
            elif isinstance(mark, Layers):
                handles |= {name: _patch(look) for name, (_, look) in mark.layers.items()}
            elif isinstance(mark, Rule):
                handles.setdefault(mark.name, Line2D([], [], color="#444444", linestyle=":"))
    if len(handles) > 1:
        figure.legend(list(handles.values()), list(handles), loc="outside right upper")


def _sample(mark: Line | Dots) -> Line2D:
    joined = isinstance(mark, Line) and mark.joined
    dash: Any = mark.look.dash if joined else ""
    return Line2D(
        [], [], color=mark.look.color, marker=mark.look.marker, markeredgecolor="white",
        markeredgewidth=0.5, linestyle=dash,
    )  # fmt: skip


def _patch(look: Look) -> Patch:
    return Patch(
        facecolor=look.color, hatch=look.hatch or None, edgecolor=HATCH_COLOR, linewidth=0.3
    )
