"""The cells of a run as an aligned text table."""

from __future__ import annotations

from typing import Any

COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("latency mean s", "session_latency_s.mean", ".1f"),
    ("p95 s", "session_latency_s.p95", ".1f"),
    ("slowdown p50", "session_slowdown.p50", ".2f"),
    ("within 3x", "slo_attainment.3", ".0%"),
    ("sessions/h", "sessions_per_s", ",.0f"),
    ("KV hits", "prefix_cache_hit_rate", ".1%"),
    ("preempted", "preemptions", ",d"),
    ("GPU", "gpu_utilisation", ".0%"),
    ("tools", "tool_utilisation", ".0%"),
)
"""Heading, path in a cell's metrics, format. Rates are printed per hour."""


def table(cells: list[dict[str, Any]]) -> str:
    """The cells as aligned text, one line each."""
    keys = ["workload", "profile", "tool_cores", "load", "seed", "system"]
    shown = [key for key in keys if len({str(cell[key]) for cell in cells}) > 1 or key == "system"]
    rows = [[*shown, *(heading for heading, _, _ in COLUMNS)]]
    for cell in cells:
        names = [_name(cell, key) for key in shown]
        rows.append([*names, *(_number(cell["metrics"], p, form) for _, p, form in COLUMNS)])
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    left = len(shown)
    lines = [
        "  ".join(
            text.ljust(width) if k < left else text.rjust(width)
            for k, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def _name(cell: dict[str, Any], key: str) -> str:
    if key == "load" and cell["load"] is None and cell["rate_per_s"] is not None:
        return f"{cell['rate_per_s']:g}/s"
    mark = " (hindsight)" if key == "system" and cell.get("hindsight") else ""
    mark = " (oracle)" if key == "system" and cell.get("oracle") else mark
    return f"{'-' if cell[key] is None else cell[key]}{mark}"


def _number(metrics: dict[str, Any], path: str, form: str) -> str:
    value: Any = metrics
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None:
        return "-"
    return format(value * 3600 if path == "sessions_per_s" else value, form)
