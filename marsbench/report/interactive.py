"""A ``Chart`` as what Plotly draws in the page: plain traces and layouts, one per panel.

Panels are drawn one by one, so that the page can stack them on a phone, and all names of a figure
stand once, in a legend of the page. Colours of text and grid are set by the page, light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from marsbench.report.chart import Bars, Chart, Dots, Heat, Layers, Line, Panel, Rule
from marsbench.report.style import Look, log_ticks, short

SYMBOLS = {
    "o": "circle", "s": "square", "^": "triangle-up", "v": "triangle-down", "D": "diamond",
    "P": "cross", "X": "x", "<": "triangle-left", ">": "triangle-right", "*": "star", "h": "hexagon",
}  # fmt: skip
DASHES = {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}
PATTERNS = {"": "", "++": "+", "///": "/", "\\\\\\": "\\", "xxx": "x", "...": "."}
DIGITS = 5
"""Significant digits of a number in the page: more than a pixel shows."""

Json = dict[str, Any]


def interactive(chart: Chart) -> Json:
    """Names with their looks for the legend, and the panels."""
    names: dict[str, Json] = {}
    for panel in chart.panels:
        for mark in panel.marks:
            if isinstance(mark, Layers):
                names |= {name: _swatch(name, look) for name, (_, look) in mark.layers.items()}
            elif isinstance(mark, Bars):
                names.setdefault(mark.name, _swatch(mark.name, mark.look))
            elif isinstance(mark, Line | Dots):
                look = mark.look
                line = {"symbol": SYMBOLS[look.marker], "dash": DASHES[look.dash]}
                names.setdefault(mark.name, {**_swatch(mark.name, look), **line})
    legend = list(names.values())
    return {
        "title": chart.title,
        "columns": chart.columns,
        "legend": legend if len(legend) > 1 else [],
        "panels": [_panel(panel, chart) for panel in chart.panels],
    }


def _swatch(name: str, look: Look) -> Json:
    return {"name": name, "color": look.color}


def _pattern(look: Look) -> Json:
    """Hatching over the colour, not instead of it."""
    return {
        "shape": PATTERNS[look.hatch], "size": 6, "solidity": 0.2, "fillmode": "overlay",
        "fgcolor": "rgba(0,0,0,0.55)",
    }  # fmt: skip


def _panel(panel: Panel, chart: Chart) -> Json:
    traces = [trace for mark in panel.marks for trace in _DRAW[type(mark)](mark, panel)]
    layout: Json = {
        "title": panel.title,
        "xaxis": _axis(panel.x_label, _limits(panel, "x"), panel.x_ticks, log=panel.x_log),
        "yaxis": _axis(panel.y_label, _limits(panel, "y"), None, log=panel.y_log),
        "height": 300,
        "barmode": "overlay",
    }
    heat = next((mark for mark in panel.marks if isinstance(mark, Heat)), None)
    if panel.rows or heat is not None:
        rows = list(panel.rows or (heat.rows if heat else ()))
        layout["yaxis"] |= {
            "type": "category", "categoryarray": rows, "categoryorder": "array",
            "range": [len(rows) - 0.5, -0.5], "title": "",
        }  # fmt: skip
        layout["height"] = max(120 + (16 if chart.row_height else 26) * len(rows), 200)
    if heat is not None:
        layout["xaxis"] |= {"type": "category"}
    lines = [mark.at for mark in panel.marks if isinstance(mark, Rule)]
    axes = [mark.axis for mark in panel.marks if isinstance(mark, Rule)]
    layout["shapes"] = [_rule(at, axis) for at, axis in zip(lines, axes, strict=True)]
    return {"traces": traces, "layout": layout}


def _limits(panel: Panel, axis: str) -> tuple[float | None, float | None]:
    """The range of an axis: as given, and of a logarithmic one without, that of the data, so that its
    ticks can be plain numbers.
    """
    log, given = (panel.x_log, panel.x_range) if axis == "x" else (panel.y_log, panel.y_range)
    if not log or None not in given:
        return given
    ends: list[float] = []
    for mark in panel.marks:
        if isinstance(mark, Line):
            ends += list(mark.x if axis == "x" else mark.y)
            ends += [*(mark.low or ()), *(mark.high or ())] if axis == "y" else []
        elif isinstance(mark, Dots) and axis == "x":
            ends += [*mark.x, *(mark.low or ()), *(mark.high or ())]
    known = [end for end in ends if math.isfinite(end) and end > 0]
    if not known:
        return given
    return min(known) / 1.15, max(known) * 1.15


def _axis(
    label: str,
    limits: tuple[float | None, float | None],
    ticks: Sequence[float] | None,
    *,
    log: bool,
) -> Json:
    axis: Json = {"title": label}
    if log:
        axis["type"] = "log"
    low, high = limits
    if low is not None and high is not None:
        axis["range"] = [math.log10(low), math.log10(high)] if log else [low, high]
        if log and ticks is None:
            ticks = log_ticks(low, high)
    elif low == 0.0 and not log:
        axis["rangemode"] = "tozero"
    if ticks is not None:
        axis |= {
            "tickvals": list(ticks),
            "ticktext": [short(float(f"{tick:.3g}")) for tick in ticks],
        }
    return axis


def _line(mark: Line, panel: Panel) -> list[Json]:
    trace: Json = {
        "type": "scatter", "name": mark.name, "y": _plain(mark.y),
        "x": _plain([x + mark.shift for x in mark.x]),
        "mode": "lines+markers" if mark.joined else "markers",
        "line": {"color": mark.look.color, "dash": DASHES[mark.look.dash], "width": 2},
        "marker": {"symbol": SYMBOLS[mark.look.marker], "size": 8, "color": mark.look.color},
        "hovertemplate": _hover(panel, "x", "y", "customdata[2]" if mark.low else "x", bool(mark.low)),
    }  # fmt: skip
    if mark.step:
        trace["line"]["shape"] = "hv"
    if mark.marked is not None:
        trace["marker"]["size"] = [8 if k in set(mark.marked) else 0 for k in range(len(mark.x))]
    if mark.low is not None and mark.high is not None:
        trace |= _interval("y", mark.y, mark.low, mark.high, mark.x)
    return [trace]


def _dots(mark: Dots, panel: Panel) -> list[Json]:
    trace: Json = {
        "type": "scatter", "mode": "markers", "name": mark.name, "x": _plain(mark.x),
        "y": list(mark.rows), "hovertemplate": _hover(panel, "y", "x", "y", bool(mark.low)),
        "marker": {"symbol": SYMBOLS[mark.look.marker], "size": 10, "color": mark.look.color},
    }  # fmt: skip
    if mark.low is not None and mark.high is not None:
        trace |= _interval("x", mark.x, mark.low, mark.high, mark.x)
    return [trace]


def _interval(axis: str, values: Any, low: Any, high: Any, places: Any) -> Json:
    return {
        f"error_{axis}": {
            "type": "data", "symmetric": False, "thickness": 1.2, "width": 3,
            "array": _plain([top - value for value, top in zip(values, high, strict=True)]),
            "arrayminus": _plain([value - end for value, end in zip(values, low, strict=True)]),
        },
        "customdata": [_plain(ends) for ends in zip(low, high, places, strict=True)],
    }  # fmt: skip


def _hover(panel: Panel, key: str, value: str, place: str, has_interval: bool) -> str:
    words = {"x": panel.x_label, "y": panel.y_label}
    first = f"{words[key]}: %{{{place}}}<br>" if words[key] else ""
    ends = " (%{customdata[0]:.4~g} to %{customdata[1]:.4~g})" if has_interval else ""
    return f"{first}{words[value]}: %{{{value}:.4~g}}{ends}"


def _bars(mark: Bars, panel: Panel) -> list[Json]:
    return [
        {
            "type": "bar", "orientation": "h", "name": mark.name, "y": list(mark.rows),
            "base": _plain(mark.starts), "x": _plain(mark.lengths), "width": 0.75,
            "marker": {"color": mark.look.color, "line": {"width": 0},
                       "pattern": _pattern(mark.look)},
            "hovertemplate": "%{y}: %{x:.4~g}",
        }
    ]  # fmt: skip


def _layers(mark: Layers, panel: Panel) -> list[Json]:
    return [
        {
            "type": "scatter", "mode": "lines", "name": name, "x": _plain(mark.x), "y": _plain(values),
            "stackgroup": "one", "fillcolor": look.color, "hovertemplate": "%{y:.0%}",
            "line": {"width": 0, "color": look.color, "shape": "hv"},
            "fillpattern": _pattern(look),
        }
        for name, (values, look) in mark.layers.items()
    ]  # fmt: skip


def _heat(mark: Heat, panel: Panel) -> list[Json]:
    logs = [[math.log(value / mark.middle) for value in row] for row in mark.values]
    reach = max([0.05, *(abs(value) for row in logs for value in row if math.isfinite(value))])
    return [
        {
            "type": "heatmap", "x": list(mark.columns), "y": list(mark.rows), "name": "",
            "z": [_plain(row) for row in logs], "text": [list(row) for row in mark.texts],
            "texttemplate": "%{text}", "hovertemplate": "%{y}, %{x}: %{text}", "showscale": False,
            "zmin": -reach, "zmax": reach,
            "colorscale": [[0, "#c2570c"], [0.5, "#dddddd"], [1, "#2166ac"]],
        }
    ]  # fmt: skip


def _rule(at: float, axis: str) -> Json:
    other = "x" if axis == "y" else "y"
    return {
        "type": "line", f"{axis}0": at, f"{axis}1": at, f"{other}0": 0, f"{other}1": 1,
        f"{other}ref": "paper", "line": {"dash": "dot", "width": 1.5, "color": "#888888"},
    }  # fmt: skip


def _plain(values: Any) -> list[float | None]:
    return [_round(value) for value in values]


def _round(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


_DRAW: dict[type, Callable[[Any, Panel], list[Json]]] = {
    Line: _line, Dots: _dots, Bars: _bars, Layers: _layers, Heat: _heat,
    Rule: lambda _mark, _panel: [],
}  # fmt: skip
