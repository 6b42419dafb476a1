"""Where does a session's time go: waiting, prefill, work done twice, decode, or tools?"""

from __future__ import annotations

import numpy as np

from marsbench.report.chart import Bars, Chart, Mark, Panel
from marsbench.report.data import ReportData, spread
from marsbench.report.style import COMPONENT_LOOKS, LOAD_LOOK

ROOM = 1.05
"""The longest bar ends before the frame does."""


def draw(data: ReportData) -> Chart:
    """Mean seconds of a completed session by component, at the lowest and the highest load."""
    loads = dict.fromkeys([data.x_values[0], data.x_values[-1]])
    return Chart([_stack(data.at(load), data.place(load)) for load in loads], columns=2)


def _stack(data: ReportData, title: str) -> Panel:
    systems = data.systems
    start = np.zeros(len(systems))
    marks: list[Mark] = []
    shown = dict(COMPONENT_LOOKS)
    if "latency_breakdown_s.load" in data.cells:
        shown = {"backlog": shown["backlog"], "queue": shown["queue"], "load": LOAD_LOOK} | shown
    for name, look in shown.items():
        table = spread(data.cells, ["system"], f"latency_breakdown_s.{name}")
        length = table.set_index("system")["mean"].reindex(systems).fillna(0.0).to_numpy()
        words = name.replace("_", " ")
        marks.append(Bars(words, systems, start.tolist(), length.tolist(), look))
        start = start + length
    longest = float(start.max()) * ROOM
    return Panel(
        marks, "mean session latency (s)", title=title, x_range=(0.0, longest or None), rows=systems
    )
