"""The results table: one row per workload, profile, load and system, averaged over seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TextIO

from marsbench.report.data import SCENARIO, ReportData, over_seeds


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
)
KEYS = (*SCENARIO, "load", "rate_per_s", "system")


def report_rows(data: ReportData) -> list[dict[str, Any]]:
    """Rows in the order they are printed: the key, ``seeds``, and per metric mean and interval.

    ``METRIC`` is the mean over seeds, ``METRIC ±`` the half-width of its 95 % interval (None
    below three seeds).
    """
    order = {system: rank for rank, system in enumerate(data.systems)}
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for column in COLUMNS:
        for record in over_seeds(data.cells, KEYS, column.metric).to_dict("records"):
            key = tuple(_number(record[name]) for name in KEYS)
            row = rows.setdefault(key, dict(zip(KEYS, key, strict=True)))
            row["seeds"] = max(int(record["seeds"]), int(row.get("seeds", 0)))
            row[column.metric] = _number(record["mean"])
            row[f"{column.metric} ±"] = _number(record["half"])

    def position(row: dict[str, Any]) -> tuple[Any, ...]:
        x = row["load"] if row["load"] is not None else row["rate_per_s"]
        scenario = tuple(str(row[name]) for name in SCENARIO)
        return (*scenario, math.inf if x is None else x, order[row["system"]])

    return sorted(rows.values(), key=position)


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def text_cells(row: dict[str, Any]) -> list[str]:
    """A row as printed: key columns, then ``mean`` or ``mean ±half`` of each metric."""
    cells = [str(row["workload"]), str(row["profile"]), _load(row), str(row["system"])]
    return cells + [_value(row, column) for column in COLUMNS]


def headings() -> list[str]:
    """Headings of ``text_cells``."""
    return ["workload", "profile", "load", "system", *(column.heading for column in COLUMNS)]


def _load(row: dict[str, Any]) -> str:
    if row["load"] is not None:
        return f"{row['load']:.3g}"
    return "closed" if row["rate_per_s"] is None else f"{row['rate_per_s']:.3g}/s"


def _value(row: dict[str, Any], column: Column) -> str:
    mean, half = row[column.metric], row[f"{column.metric} ±"]
    if mean is None:
        return "-"
    text = number(mean, column.form)
    return f"{text} ±{number(half, column.form)}" if half and column.metric == _WITH_HALF else text


_WITH_HALF = COLUMNS[0].metric
"""Only the headline number carries its interval in print; ``--json`` has them all."""


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


_DROPPED_FIRST = ("recomputed", "p99", "p50", "preempted", "goodput@3 1/s", "TTFT s", "sessions/s")
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
