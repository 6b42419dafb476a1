"""Makes the tables of ``trace stats``, which lose nothing on a narrow terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from marsbench.trace.stats import PERCENTILES, Distance, TraceStats

_BETWEEN_COLUMNS = 3
"""Characters that a further column takes besides its text: a rule and two blanks."""


def stats_tables(stats: TraceStats, width: int) -> list[Any]:
    """Return tables of totals, provenance and distributions for a terminal of ``width`` characters."""
    from rich.table import Table
    from rich.text import Text

    totals = Table("total", "value", title="Totals")
    for name, value in stats.to_json().items():
        if not isinstance(value, dict):
            totals.add_row(name, f"{value:.4f}" if isinstance(value, float) else f"{value:,}")
    known = Table(title="Provenance")
    known.add_column("field", no_wrap=True)
    known.add_column("how it is known", overflow="fold")
    for name, how in stats.provenance.items():
        known.add_row(name, Text(how))
    columns = ("n", "mean", *(f"p{p}" for p in PERCENTILES))
    rows = []
    for name, distribution in stats.distributions.items():
        found = distribution.summary()
        rows.append((name, *(_number(found[c]) if c in found else "" for c in columns)))
    return [totals, known, *_split("Distributions", ("quantity", *columns), rows, width)]


def distance_tables(distances: Iterable[Distance], width: int) -> list[Any]:
    """Return tables that show how far two traces are apart, with the largest distance first."""
    columns = ("quantity", "KS", "n", "n against", "p50", "p50 against")
    rows = [
        (d.quantity, f"{d.ks:.3f}", *map(_number, (d.num, d.num_against, d.p50, d.p50_against)))
        for d in sorted(distances, key=lambda d: -d.ks)
    ]
    return _split("Distance (KS: 0 = same, 1 = disjoint)", columns, rows, width)


def _split(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], width: int
) -> list[Any]:
    """Return one table, or several that all begin with the first column if one would be too wide."""
    from rich.table import Table
    from rich.text import Text

    tables: list[Any] = []
    for chosen in _that_fit(columns, rows, width):
        table = Table(title=title if not tables else f"{title}, continued")
        table.add_column(columns[0], no_wrap=True)
        for index in chosen:
            table.add_column(columns[index], justify="right", no_wrap=True)
        for row in rows:
            table.add_row(Text(row[0]), *(row[index] for index in chosen))
        tables.append(table)
    return tables


def _that_fit(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int
) -> Iterator[list[int]]:
    """Yield the columns of each table, which has one at least, however narrow the terminal is."""
    widths = [max(len(text) for text in column) for column in zip(columns, *rows, strict=True)]
    first = widths[0] + _BETWEEN_COLUMNS + 1
    chosen: list[int] = []
    used = first
    for index in range(1, len(columns)):
        if chosen and used + widths[index] + _BETWEEN_COLUMNS > width:
            yield chosen
            chosen, used = [], first
        chosen.append(index)
        used += widths[index] + _BETWEEN_COLUMNS
    yield chosen


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"
