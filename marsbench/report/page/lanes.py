"""Session lanes as the page holds them: whole tenths of seconds, which compress well."""

from __future__ import annotations

from typing import Any

from marsbench.report.data import ReportData
from marsbench.report.interactive import Json
from marsbench.report.lanes import lanes
from marsbench.report.style import component_looks

MOST = 40
"""Sessions in the page: with eight systems and 40 turns each, a few hundred kilobytes."""
TENTHS = 10


def lanes_of(data: ReportData) -> Json | None:
    """``sessions``, ``components`` with their colours, and by system and session the turns as
    [start, seconds of each component], all in tenths of a second; None without turn tables.
    """
    found = lanes(data, MOST)
    if found is None:
        return None
    systems: dict[str, list[Any]] = {}
    columns = ["ready_s", *(f"{name}_s" for name in found.components)]
    for system, turns in found.turns.items():
        tenths = (turns[columns] * TENTHS).round().astype(int)
        by_session = {
            str(session): tenths.loc[part.index].to_numpy().tolist()
            for session, part in turns.groupby("session_id", sort=False)
        }
        systems[system] = [by_session.get(session, []) for session in found.sessions]
    return {
        "place": found.place,
        "shown": f"{len(found.sessions)} of {found.arrived} sessions",
        "sessions": found.sessions,
        "components": [
            {"name": name.replace("_", " "), "color": look.color}
            for name, look in component_looks(found.components).items()
        ],
        "systems": systems,
    }
