"""How much does each system sustain with the objective met?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from marsbench.metrics.slo import Clause, parse_slo
from marsbench.report.capacity import SustainedRow, rows_in
from marsbench.report.chart import Bars, Chart, Dots, Line, Mark, Panel, Rule, log_if_wide
from marsbench.report.data import ReportData
from marsbench.report.style import Look, looks

INTERVAL = Look("#888888", marker="D")
"""Seen on white and on the page's dark paper."""


def draw(data: ReportData) -> Chart | None:
    """The sustained load with its 95 % interval over seeds, and what every cell of the search gave: a
    point a load and seed, beside the bound. None without a capacity search.
    """
    panels = []
    for found, rows in rows_in(data):
        panels.append(_bars(found, rows))
        panels += [_tried(found, rows, clause) for clause in parse_slo(found["slo"]).clauses]
    return Chart(panels, columns=2) if panels else None


def _bars(found: Mapping[str, Any], rows: Sequence[SustainedRow]) -> Panel:
    scale, unit = (1.0, "agents") if found["loop"] == "closed" else (3600.0, "sessions/hour")
    marks: list[Mark] = []
    names = []
    for row, look in zip(rows, looks(row.system for row in rows).values(), strict=True):
        if row.sustained is None:
            names.append(f"{row.system} (none)")
            continue
        bound = f" ({row.sustained.bound})" if row.sustained.bound else ""
        names.append(row.system + bound)
        value = row.sustained.value * scale
        marks.append(Bars(row.system, names[-1:], [0.0], [value], look))
        if row.sustained.low is not None and row.sustained.high is not None:
            ends = [row.sustained.low * scale], [row.sustained.high * scale]
            marks.append(Dots("95 % interval", names[-1:], [value], INTERVAL, *ends))
    title = f"sustained with {found['slo']}"
    return Panel(marks, unit, title=title, x_range=(0.0, None), rows=names)


def _tried(found: Mapping[str, Any], rows: Sequence[SustainedRow], clause: Clause) -> Panel:
    """The bounded number of every cell that was run, over its load."""
    scale, label = (
        (1.0, "agents at once") if found["loop"] == "closed" else (3600.0, "sessions/hour")
    )
    here = rows[0]
    same = ("workload", "profile", "engine", "tool_cores", "host_kv_gib")
    scenario = next(
        s for s in found["scenarios"] if all(s[name] == getattr(here, name) for name in same)
    )
    marks: list[Mark] = []
    shown = []
    for system, look in looks(row.system for row in rows).items():
        points = sorted(
            (tried["value"] * scale, tried["bounds"][clause.text])
            for search in scenario["searches"] if search["system"] == system
            for tried in search["tried"]
            if tried["bounds"][clause.text] is not None
            and math.isfinite(tried["bounds"][clause.text])
        )  # fmt: skip
        if points:
            x, y = (list(side) for side in zip(*points, strict=True))
            shown += y
            marks.append(Line(system, x, y, look, joined=False))
    marks.append(Rule(clause.text, clause.bound))
    what = clause.text.partition(f" {clause.sign} ")[0]
    log = log_if_wide([*shown, clause.bound]) and min(shown, default=0.0) > 0
    return Panel(marks, label, what, y_log=log)
