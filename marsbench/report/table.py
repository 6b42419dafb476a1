"""The results table: one row per workload, profile, load and system, averaged over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from marsbench.metrics import catalogue
from marsbench.report.data import SCENARIO, ReportData, spread


@dataclass(frozen=True, slots=True)
class Column:
    """One column: heading, the metric it shows, and how its numbers are printed."""

    heading: str
    metric: str
    form: str = ".3g"


COLUMNS = (
    Column("latency s", "session_latency_s.mean"),
    Column("p50", "session_latency_s.p50"),
    Column("p95", "session_latency_s.p95"),
    Column("p99", "session_latency_s.p99"),
    Column("slowdown", "session_slowdown.mean", ".2f"),
    Column("goodput@3 1/s", "session_goodput_per_s.3"),
    Column("SLO@3", "slo_attainment.3", ".0%"),
    Column("sessions/s", "sessions_per_s"),
    Column("TTFT s", "ttft_s.mean"),
    Column("KV hits", "prefix_cache_hit_rate", ".1%"),
    Column("recomputed", "recomputed_tokens", ",.0f"),
    Column("preempted", "preemptions", ",.0f"),
    Column("failed", "failed", ",.0f"),
    Column("sessions", "arrived", ",.0f"),
    Column("distinct", "distinct", ",.0f"),
)
KEYS = (*SCENARIO, "load", "rate_per_s", "active", "system")


def report_rows(data: ReportData) -> list[dict[str, Any]]:
    """Rows in the order they are printed: the key, ``seeds``, ``unstable``, and every metric.

    ``METRIC`` is the mean over seeds, ``METRIC low`` and ``METRIC high`` the lowest and highest seed.
    """
    order = {system: rank for rank, system in enumerate(data.systems)}
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for column in COLUMNS:
        for record in spread(data.cells, KEYS, column.metric).to_dict("records"):
            key = tuple(_number(record[name]) for name in KEYS)
            row = rows.setdefault(key, dict(zip(KEYS, key, strict=True)))
            row["seeds"] = max(int(record["seeds"]), int(row.get("seeds", 0)))
            row[column.metric] = _number(record["mean"])
            for end in ("low", "high"):
                row[f"{column.metric} {end}"] = _number(record[end])

    for (_, *place), cells in data.cells.groupby(["run", *KEYS], dropna=False):
        row = rows[tuple(_number(value) for value in place)]
        row["unstable"] = bool(data.unstable(cells))

    def position(row: dict[str, Any]) -> tuple[Any, ...]:
        x = next((row[k] for k in ("load", "rate_per_s", "active") if row[k] is not None), None)
        scenario = tuple(str(row[name]) for name in SCENARIO)
        return (*scenario, math.inf if x is None else x, order[row["system"]])

    return sorted(rows.values(), key=position)


def best_of(rows: Sequence[Mapping[str, Any]]) -> set[tuple[int, str]]:
    """(row, metric) of the best value of each column among the systems of a scenario and load, and of
    those that are printed alike; none where all are, or where the metric has no better direction.
    """
    better = {metric.name: metric.better for metric in catalogue()} | {"failed": "lower"}
    found: set[tuple[int, str]] = set()
    places: dict[Any, list[int]] = {}
    for k, row in enumerate(rows):
        place = tuple(row[name] for name in KEYS if name != "system")
        places.setdefault(place, []).append(k)
    for here in places.values():
        for column in COLUMNS:
            direction = better.get(column.metric.partition(".")[0], "neither")
            values = {k: rows[k][column.metric] for k in here if rows[k][column.metric] is not None}
            shown = {k: number(value, column.form) for k, value in values.items()}
            if direction == "neither" or len(set(shown.values())) < 2:
                continue
            top = shown[(min if direction == "lower" else max)(values, key=lambda k: values[k])]
            found |= {(k, column.metric) for k, text in shown.items() if text == top}
    return found


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def text_cells(row: dict[str, Any]) -> list[str]:
    """A row as printed: key columns, then each metric's mean, for the first with its seeds' range."""
    system = f"{row['system']} (unstable)" if row["unstable"] else str(row["system"])
    cells = [str(row["workload"]), str(row["profile"]), load_text(row), system]
    return cells + [_value(row, column) for column in COLUMNS]


def headings() -> list[str]:
    """Headings of ``text_cells``."""
    return ["workload", "profile", "load", "system", *(column.heading for column in COLUMNS)]


def load_text(row: dict[str, Any]) -> str:
    """Return a cell's load, or its rate, as the table shows it."""
    if row["load"] is not None:
        return f"{row['load']:.3g}"
    if row["active"] is not None:
        return f"{row['active']:.0f} agents"
    return "closed" if row["rate_per_s"] is None else f"{number(3600 * row['rate_per_s'])}/h"


def _value(row: dict[str, Any], column: Column) -> str:
    mean, low, high = (row[f"{column.metric}{end}"] for end in ("", " low", " high"))
    if mean is None:
        return "-"
    text = number(mean, column.form)
    if column.metric != _WITH_SPREAD or low == high:
        return text
    return f"{text} ({number(low, column.form)}–{number(high, column.form)})"


_WITH_SPREAD = COLUMNS[0].metric
"""Only the headline number is printed with its lowest and highest seed; ``--json`` has them all."""


def number(value: float, form: str = ".3g") -> str:
    """Three significant digits by default, and never in powers of ten for large numbers."""
    if form == ".3g" and abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:{form}}"


def print_table(
    header: list[str], rows: list[list[str]], stream: TextIO, *, num_text: int = 4
) -> None:
    """Columns aligned (the first ``num_text`` to the left); bold headings on a terminal."""
    if stream.isatty():
        from rich.console import Console
        from rich.table import Table

        console = Console(file=stream)
        caption, header, rows, num_text = fit(header, rows, console.width, num_text)
        if caption:
            console.print(caption, markup=False, highlight=False)
        table = Table(header_style="bold", box=None, pad_edge=False)
        for k, name in enumerate(header):
            table.add_column(name, justify="left" if k < num_text else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        return
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = [
            cell.ljust(width) if k < num_text else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip(), file=stream)


_DROPPED_FIRST = (
    "sessions",
    "recomputed",
    "p99",
    "p50",
    "preempted",
    "goodput@3 1/s",
    "TTFT s",
    "sessions/s",
)
"""Metric columns that a narrow terminal does without, in this order."""


def fit(
    header: list[str], rows: list[list[str]], width: int, num_text: int
) -> tuple[str, list[str], list[list[str]], int]:
    """Caption, header, rows and ``num_text`` of a table for a terminal of ``width`` columns.

    If it is too wide, text columns with one value become the caption, then metrics are left out.
    """
    caption: list[str] = []

    def too_wide() -> bool:
        columns = zip(header, *rows, strict=True)
        return sum(max(map(len, column)) + 2 for column in columns) - 2 > width

    def drop(k: int) -> None:
        nonlocal header, rows
        header = header[:k] + header[k + 1 :]
        rows = [row[:k] + row[k + 1 :] for row in rows]

    for name in list(header[:num_text]):
        k = header.index(name)
        if too_wide() and rows and len({row[k] for row in rows}) == 1:
            caption.append(f"{name} {rows[0][k]}")
            drop(k)
            num_text -= 1
    for name in _DROPPED_FIRST:
        if name in header and too_wide():
            drop(header.index(name))
    return ", ".join(caption), header, rows, num_text
