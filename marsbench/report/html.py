"""One self-contained HTML page: no scripts, no requests, figures inside."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from marsbench.metrics import catalogue
from marsbench.report.data import ReportData
from marsbench.report.table import headings, report_rows, text_cells

FigureEntry = tuple[str, str, str, str]
"""Name, question, caption, PNG in base64."""

_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; max-width: 1160px;
       margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { margin-top: 2.6rem; font-size: 1.25rem }
h3 { font-size: 1rem; margin: 1.8rem 0 .3rem } .note { color: #666; font-size: .9rem }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e4e4e4;
         white-space: nowrap }
th { border-bottom: 2px solid #999 } td.key, th.key { text-align: left }
tr.mars td { background: #fdf1e7; font-weight: 600 } .wide { overflow-x: auto }
img { max-width: 100%; height: auto } td.text { text-align: left; white-space: normal }
"""


@dataclass(frozen=True, slots=True)
class Section:
    """One scenario: its table and figures."""

    title: str
    data: ReportData
    figures: list[FigureEntry]


def page(data: ReportData, sections: list[Section]) -> str:
    """The whole page."""
    runs = ", ".join(escape(run_id) for run_id in data.run_ids)
    failed, arrived = int(data.cells["failed"].sum()), int(data.cells["arrived"].sum())
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'>",
        f"<title>marsbench {runs}</title><style>{_CSS}</style></head><body>",
        "<h1>marsbench report</h1>",
        f"<p class='note'>Run {runs}: {len(data.cells)} cells, {arrived:,} sessions, {failed:,} failed.",
        "Latency counts from a session's arrival; means are over seeds, ± is a 95 % interval (from 3 seeds on);",
        "failed sessions miss every SLO.</p>",
    ]
    for section in sections:
        parts.append(f"<h2>{escape(section.title)}</h2>")
        parts.append(_results(section.data))
        for name, question, caption, png in section.figures:
            parts.append(f"<h3 id='{name}'>{escape(question)}</h3>")
            parts.append(f"<img alt='{escape(question)}' src='data:image/png;base64,{png}'>")
            parts.append(f"<p class='note'>{escape(' '.join(caption.split()))}</p>")
    parts.append("<h2>Metrics</h2>")
    parts.append(_definitions())
    parts.append("</body></html>\n")
    return "\n".join(parts)


def _results(data: ReportData) -> str:
    """One scenario's table; its heading already names the workload and the profile."""
    skip = 2
    head = "".join(
        f"<th{' class=key' if k < 4 - skip else ''}>{escape(name)}</th>"
        for k, name in enumerate(headings()[skip:])
    )
    body = []
    for row in report_rows(data):
        cells = "".join(
            f"<td{' class=key' if k < 4 - skip else ''}>{escape(cell)}</td>"
            for k, cell in enumerate(text_cells(row)[skip:])
        )
        body.append(f"<tr{' class=mars' if row['system'] == 'mars' else ''}>{cells}</tr>")
    return f"<div class='wide'><table><tr>{head}</tr>{''.join(body)}</table></div>"


def _definitions() -> str:
    rows = "".join(
        f"<tr><td class=key>{metric.name}</td><td class=key>{escape(metric.unit)}</td>"
        f"<td class=key>{metric.better}</td><td class=text>{escape(metric.formula)}</td></tr>"
        for metric in catalogue()
    )
    head = "".join(f"<th class=key>{name}</th>" for name in ("metric", "unit", "better", "formula"))
    return f"<div class='wide'><table><tr>{head}</tr>{rows}</table></div>"
