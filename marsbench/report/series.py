"""The one way a metric is drawn against load: a line per system, or a row each if there is one load."""

from __future__ import annotations

from collections.abc import Sequence

from marsbench.metrics import ALPHAS, catalogue
from marsbench.report.chart import Dots, Line, Mark, Panel, log_if_wide
from marsbench.report.compare import Comparison
from marsbench.report.data import ReportData, spread
from marsbench.report.style import looks

MAX_TICKS = 8
"""Up to so many loads, each has its own tick."""
FARTHEST = 6.0
"""An interval that reaches farther than so many times its ratio leaves the picture."""
WORDS = {"p50": "median", "p90": "P90", "p95": "P95", "p99": "P99"}


def label_of(column: str) -> str:
    """Axis label of a metric column such as ``session_latency_s.p95``."""
    name, _, part = column.partition(".")
    label = next(metric.label for metric in catalogue() if metric.name == name)
    if part in ALPHAS:
        return label.replace(" (", f" within {part}x ideal (", 1)
    return f"{WORDS.get(part, part)} {label}" if part else label


def over_load(data: ReportData, column: str, *, share: bool = False) -> Panel:
    """A metric of every system over load: mean over seeds, bars from the lowest seed to the highest.
    A ``share`` has an axis from 0 to 1.
    """
    table = spread(data.cells, ["system", data.x], column).dropna(subset=["mean"])
    known = [system for system in data.systems if (table["system"] == system).any()]
    marks: list[Mark] = []
    shift = _shifts(data)
    for system, look in looks(data.systems).items():
        rows = table[table["system"] == system]
        values, low, high = (rows[name].tolist() for name in ("mean", "low", "high"))
        if not len(rows):
            continue
        if len(data.x_values) > 1:
            marks.append(
                Line(system, rows[data.x].tolist(), values, look, low, high, shift=shift[system])
            )
        else:
            marks.append(Dots(system, [system], values, look, low, high))
    return _panel(data, marks, known, label_of(column), table["low"].tolist() + table["high"].tolist(),
                  share=share)  # fmt: skip


def _panel(
    data: ReportData,
    marks: list[Mark],
    systems: Sequence[str],
    label: str,
    values: list[float],
    *,
    share: bool,
) -> Panel:
    log = not share and log_if_wide(values) and min(values) > 0
    limits = (0.0, 1.02) if share else (None if log else 0.0, None)
    if len(data.x_values) > 1:
        few = len(data.x_values) <= MAX_TICKS
        return Panel(
            marks, data.x_label, label, y_log=log, y_range=limits,
            x_ticks=data.x_values if few else None,
        )  # fmt: skip
    return Panel(marks, label, x_log=log, x_range=limits, rows=systems)


def _shifts(data: ReportData) -> dict[str, float]:
    """How far beside its load each system is drawn: bars of neighbours do not hide each other."""
    loads, systems = data.x_values, data.systems
    step = 0.012 * (loads[-1] - loads[0]) if len(loads) > 1 else 0.0
    return {name: (k - (len(systems) - 1) / 2) * step for k, name in enumerate(systems)}


def ratios(data: ReportData, found: Sequence[Comparison], statistic: str, title: str) -> Panel:
    """Paired ratios over load with their intervals; what is unstable on either side is left out."""
    marks: list[Mark] = []
    shown = [
        entry for entry in found
        if entry.statistic == statistic and entry.ratio is not None and not entry.unstable
    ]  # fmt: skip
    reach, shift = [1.0], _shifts(data)
    for system, look in looks(data.systems).items():
        mine = [entry for entry in shown if entry.system == system]
        if not mine:
            continue
        value, low, high = (
            [float(getattr(entry, name)) for entry in mine] for name in ("ratio", "low", "high")
        )
        reach += [
            min(max(end, point / FARTHEST), point * FARTHEST)
            for point, *ends in zip(value, low, high, strict=True)
            for end in ends
        ]
        x = [float(getattr(entry, data.x) or 0.0) for entry in mine]
        if len(data.x_values) > 1:
            marks.append(Line(system, x, value, look, low, high, shift=shift[system]))
        else:
            marks.append(Dots(system, [system], value, look, low, high))
    span = (min(reach) / 1.3, max(reach) * 1.3)
    if len(data.x_values) > 1:
        return Panel(marks, data.x_label, "times better (paired)", title, y_log=True,
                     y_range=span, x_ticks=data.x_values[:MAX_TICKS])  # fmt: skip
    rows = [system for system in data.systems if any(entry.system == system for entry in shown)]
    return Panel(marks, "times better (paired)", title=title, x_log=True, x_range=span, rows=rows)
