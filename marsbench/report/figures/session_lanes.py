"""What does each session do in every moment, and where do sessions wait for each other?"""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from marsbench.report.chart import Bars, Chart, Mark, Panel
from marsbench.report.data import ReportData
from marsbench.report.lanes import Lanes, lanes, runs
from marsbench.report.style import component_looks

MOST = 16
"""Sessions a panel has room for."""
STEPS = 400
"""Pieces a lane can be told apart in."""


def draw(data: ReportData) -> Chart | None:
    """One row a session, at the highest load and the first seed: some sessions, evenly spaced by
    arrival, with what took most of each moment. None without turn tables.
    """
    found = lanes(data, MOST)
    if found is None or not found.turns:
        return None
    names = {session: str(k + 1) for k, session in enumerate(found.sessions)}
    parts = [f"{name}_s" for name in found.components]
    longest = max(
        float((turns["ready_s"] + turns[parts].sum(axis=1)).max()) for turns in found.turns.values()
    )
    panels = [
        Panel(
            _marks(found, turns, names, longest / STEPS), "time (s)", "session", system,
            x_range=(0.0, longest * 1.01), rows=list(names.values()),
        )
        for system, turns in found.turns.items()
    ]  # fmt: skip
    return Chart(panels, columns=2, title=found.place, row_height=0.16)


def _marks(lanes: Lanes, turns: pd.DataFrame, names: dict[str, str], step_s: float) -> list[Mark]:
    pieces: list[tuple[str, float, float, int]] = []
    for session, own in turns.groupby("session_id"):
        found = runs(own, lanes.components, step_s)
        row = names[str(session)]
        pieces += [
            (row, *piece)
            for piece in zip(found.starts, found.lengths, found.components, strict=True)
        ]
    marks: list[Mark] = []
    for k, (name, look) in enumerate(component_looks(lanes.components).items()):
        mine = [piece for piece in pieces if piece[3] == k]
        rows, starts, lengths = [p[0] for p in mine], [p[1] for p in mine], [p[2] for p in mine]
        marks.append(Bars(name.replace("_", " "), rows, starts, lengths, replace(look, hatch="")))
    return marks
