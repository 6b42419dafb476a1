"""How many sessions are let in, and how busy are the tool cores, over time?"""

from __future__ import annotations

import numpy as np
import pandas as pd

from marsbench.core import PS_PER_S
from marsbench.report.chart import Chart, Line, Mark, Panel
from marsbench.report.data import ReportData
from marsbench.report.style import Look, looks

MAX_POINTS = 150
"""Stretches of time a line has."""


def draw(data: ReportData) -> Chart | None:
    """At the highest load and the first seed: sessions in the system and those of them that were let in,
    tool calls that run and that wait (where any did), from the events of each cell. None without events.
    """
    if not data.has_sessions:
        return None
    load = data.x_values[-1]
    here = data.at(load)
    here = here.only(seed=min(here.cells["seed"].tolist()))
    places = zip(*(here.cells[name].tolist() for name in ("system", "run", "cell")), strict=True)
    events = {str(system): here.samples(run, cell, *_STEPS) for system, run, cell in places}
    end = max((float(part["time_ps"].max()) for part in events.values() if len(part)), default=0.0)
    if not end:
        return None
    edges = np.linspace(0, end, MAX_POINTS)
    panels = [
        Panel(_lines(events, kinds, edges), "time (s)", label, y_range=(0.0, None))
        for label, kinds in COUNTED.items()
    ]
    panels = [panel for panel in panels if any(_seen(mark) for mark in panel.marks)]
    return Chart(panels, columns=2, title=f"{data.place(load)}, first seed")


def _seen(mark: Mark) -> bool:
    """Whether there was any of what is counted."""
    return isinstance(mark, Line) and max(mark.y) > 0


COUNTED = {
    "sessions in the system": {"SESSION_ARRIVE": 1, "SESSION_END": -1},
    "sessions let in": {"SESSION_ADMIT": 1, "SESSION_END": -1},
    "tool calls running": {"TOOL_START": 1, "TOOL_END": -1},
    "tool calls waiting for a core": {"TOOL_ENQUEUED": 1, "TOOL_START": -1},
}
_STEPS = tuple(dict.fromkeys(kind for kinds in COUNTED.values() for kind in kinds))


def _lines(events: dict[str, pd.DataFrame], kinds: dict[str, int], edges: np.ndarray) -> list[Mark]:
    drawn: dict[str, Look] = looks(events)
    marks: list[Mark] = []
    for system, part in events.items():
        mine = part[part["kind"].isin(list(kinds))]
        if kinds.get("SESSION_ADMIT"):
            admitted = part.loc[part["kind"] == "SESSION_ADMIT", "session"]
            mine = mine[(mine["kind"] != "SESSION_END") | mine["session"].isin(admitted)]
        steps = mine["kind"].astype(str).map(kinds).to_numpy(dtype=np.int64)
        total = np.concatenate([[0], np.cumsum(steps)])
        at = total[np.searchsorted(mine["time_ps"].to_numpy(), edges, side="right")]
        times = (edges / PS_PER_S).round(1).tolist()
        marked = list(range(len(times) // 12, len(times), len(times) // 6))
        marks.append(Line(system, times, at.tolist(), drawn[system], step=True, marked=marked))
    return marks
