"""The page from its template: what it says in words, its table, figures, lanes and provenance."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from marsbench.metrics import catalogue
from marsbench.report.capacity import SustainedRow, capacity_table, rows_in, sentence, warnings_of
from marsbench.report.data import ReportData
from marsbench.report.interactive import Json
from marsbench.report.page.lanes import lanes_of
from marsbench.report.page.provenance import provenance
from marsbench.report.page.verdict import verdict
from marsbench.report.table import COLUMNS, best_of, load_text, number, report_rows


@dataclass(frozen=True, slots=True)
class Section:
    """One scenario: its heading, its cells and its figures as (name, question, caption, chart)."""

    title: str
    data: ReportData
    figures: list[tuple[str, str, str, Json]]


def page(data: ReportData, sections: Sequence[Section]) -> str:
    """The whole page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("marsbench.report.page", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    charts: dict[str, Json] = {}
    lanes: dict[str, Json] = {}
    shown = []
    for k, section in enumerate(sections):
        figures = []
        for name, question, caption, chart in section.figures:
            charts[f"{name}-{k}"] = chart
            figures.append({"id": f"{name}-{k}", "question": question, "caption": caption})
        found = lanes_of(section.data)
        if found is not None:
            lanes[f"lanes-{k}"] = found
        shown.append(
            {
                "id": f"section-{k}",
                "title": section.title,
                "verdict": verdict(section.data),
                "capacities": [_capacity(*found) for found in rows_in(section.data)],
                "rows": table_rows(section.data),
                "systems": section.data.systems,
                "loads": [section.data.place(load) for load in section.data.x_values],
                "figures": figures,
                "lanes": found
                and {"id": f"lanes-{k}", **{n: found[n] for n in ("place", "shown")}},
            }
        )
    template = environment.get_template("report.html.j2")
    text: str = template.render(
        run_ids=data.run_ids,
        num_cells=len(data.cells),
        arrived=int(data.cells["arrived"].sum()),
        failed=int(data.cells["failed"].sum()),
        sections=shown,
        columns=COLUMNS,
        definitions=catalogue(),
        provenance=provenance(data),
        style=_text("report.css"),
        script=_text("report.js"),
        plotly=_packed(_plotly()),
        content=_packed(
            json.dumps({"charts": charts, "lanes": lanes}, ensure_ascii=False, allow_nan=False)
        ),
    )
    return text


def _capacity(found: Mapping[str, Any], rows: Sequence[SustainedRow]) -> Json:
    """What a capacity search found, as a table and in words."""
    header, table = capacity_table(rows, closed=found["loop"] == "closed")
    notes = [f"{row.system}: {note}" for row in rows for note in row.notes]
    return {
        "slo": found["slo"],
        "sentences": [sentence(row, found) for row in rows],
        "header": header,
        "rows": table,
        "notes": [*notes, *warnings_of(found)],
    }


def table_rows(data: ReportData) -> list[Json]:
    """Rows of the key table: texts to show, numbers to sort by, and which is the best of its load."""
    rows = report_rows(data)
    best = best_of(rows)
    return [
        {
            "load": load_text(row),
            "load_value": next(
                (row[k] for k in ("load", "rate_per_s", "active") if row[k] is not None), 0.0
            ),
            "place": data.place(_x(row, data)),
            "system": row["system"],
            "unstable": row["unstable"],
            "cells": [
                {
                    "text": "–" if row[c.metric] is None else number(row[c.metric], c.form),
                    "value": row[c.metric],
                    "range": _range(row, c.metric, c.form),
                    "best": (k, c.metric) in best,
                }
                for c in COLUMNS
            ],
        }
        for k, row in enumerate(rows)
    ]


def _x(row: Mapping[str, Any], data: ReportData) -> float:
    value = row[data.x]
    return float("nan") if value is None else float(value)


def _range(row: Mapping[str, Any], metric: str, form: str) -> str:
    low, high = row[f"{metric} low"], row[f"{metric} high"]
    if low is None or low == high:
        return ""
    return f"{number(low, form)} to {number(high, form)} over {row['seeds']} seeds"


def _packed(text: str) -> str:
    """Compressed, for the page's script to unpack: a third of its size."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode("ascii")


def _text(name: str) -> str:
    return (files("marsbench.report.page") / name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    """Plotly's own script for pages without a network."""
    return (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
