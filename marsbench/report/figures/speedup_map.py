"""Where is each system faster than the baseline, and by how much?"""

from __future__ import annotations

from marsbench.report.chart import Chart, Heat, Panel
from marsbench.report.compare import Comparison, compare_systems, default_baseline
from marsbench.report.data import ReportData

SHOWN = {
    "session_latency_s.mean": "mean session latency",
    "session_latency_s.p99": "P99 session latency",
}
UNSTABLE = "unstable"


def draw(data: ReportData) -> Chart | None:
    """Paired ratios of latency, above 1 is faster; in brackets where the 95 % interval includes 1. Cells
    where a side is unstable have no colour: their ratio grows with the length of the run.
    """
    if len(data.systems) < 2:
        return None
    baseline = default_baseline(data.systems)
    found = compare_systems(data, baseline)
    systems = [system for system in data.systems if system != baseline]
    panels = [_panel(data, found, systems, name, title) for name, title in SHOWN.items()]
    return Chart(panels, columns=2, title=f"against {baseline}", row_height=0.32)


def _panel(
    data: ReportData, found: list[Comparison], systems: list[str], name: str, title: str
) -> Panel:
    entries = {(e.system, e.where): e for e in found if e.statistic == name}
    places = list(dict.fromkeys(where for _, where in entries))
    rows = [[entries.get((system, place)) for place in places] for system in systems]
    heat = Heat(
        [place.removeprefix("at ") for place in places],
        systems,
        [[_value(entry) for entry in row] for row in rows],
        [[_text(entry) for entry in row] for row in rows],
    )
    return Panel([heat], title=title, rows=systems)


def _value(entry: Comparison | None) -> float:
    if entry is None or entry.ratio is None or entry.unstable:
        return 1.0
    return entry.ratio


def _text(entry: Comparison | None) -> str:
    if entry is None or entry.ratio is None:
        return ""
    if entry.unstable:
        return UNSTABLE
    text = f"{entry.ratio:.2f}x"
    return text if entry.significant else f"({text})"
