"""Do two runs of the same cells agree? Their metrics cell by cell, their sessions one by one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from marsbench.errors import ResultsError
from marsbench.runfolder import read_summary, read_table

CELL = ("workload", "profile", "tool_cores", "load", "rate_per_s", "seed", "system")
"""What a cell is found by in the other run; engines may differ."""


@dataclass(frozen=True, slots=True)
class CellAgreement:
    """One cell in both runs. Differences are relative to the first run."""

    cell: dict[str, Any]
    mean_latency_s: tuple[float, float]
    worst: float
    """Of any latency, rate or hit metric."""
    sessions: int
    """Completed in both."""
    session_median: float
    session_p95: float
    """Of a session's latency."""
    moved: str
    """The session whose latency differs most; empty if all are equal."""


def compare_runs(left: Path, right: Path) -> list[CellAgreement]:
    """Compare every cell of both runs; ResultsError if they do not hold the same cells."""
    first, second = _cells(left), _cells(right)
    if first.keys() != second.keys():
        only = min(map(str, first.keys() ^ second.keys()))
        raise ResultsError(
            f"{left} and {right} are not runs of the same cells: only one has {only}; "
            "run both with the same experiment"
        )
    return [
        _compare(key, (left, first[key]), (right, second[key])) for key in first
    ]  # in the order of the first run


def _cells(run: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    return {tuple(cell[name] for name in CELL): cell for cell in read_summary(run)["cells"]}


def _compare(
    key: tuple[Any, ...], left: tuple[Path, dict[str, Any]], right: tuple[Path, dict[str, Any]]
) -> CellAgreement:
    numbers = [_numbers(cell) for _, cell in (left, right)]
    one, two = (latencies(run, cell["cell"]) for run, cell in (left, right))
    gaps = {name: difference(one[name], two[name]) for name in one.keys() & two.keys()}
    moved = max(sorted(gaps), key=gaps.__getitem__) if any(gaps.values()) else ""
    values = list(gaps.values()) or [0.0]
    return CellAgreement(
        dict(zip(CELL, key, strict=True)),
        (numbers[0]["latency mean"], numbers[1]["latency mean"]),
        max(difference(value, numbers[1][name]) for name, value in numbers[0].items()),
        len(gaps),
        float(np.percentile(values, 50)),
        float(np.percentile(values, 95)),
        moved,
    )


def _numbers(cell: dict[str, Any]) -> dict[str, float]:
    """The metrics that comparisons of systems are made of; NaN where there is nothing."""
    metrics = cell["metrics"]
    found = {
        f"latency {name}": metrics["session_latency_s"][name] for name in ("mean", "p95", "p99")
    }
    found["goodput@3"] = metrics["session_goodput_per_s"]["3"]
    found["sessions/s"] = metrics["sessions_per_s"]
    found["hit rate"] = metrics["prefix_cache_hit_rate"]
    return {name: float("nan") if value is None else value for name, value in found.items()}


def latencies(run: Path, cell: int) -> dict[str, float]:
    """Return session -> its latency in seconds, of the completed sessions of a cell."""
    columns = ["cell", "session_id", "latency_s"]
    table = read_table(run, "sessions", columns=columns, filters=[("cell", "=", cell)])
    known = table[table["latency_s"].notna()]
    return dict(zip(known["session_id"].astype(str), known["latency_s"], strict=True))


def difference(left: float, right: float) -> float:
    """Return the difference relative to the left value; infinite if that is zero or missing and the
    other is not.
    """
    if left == right or (np.isnan(left) and np.isnan(right)):
        return 0.0
    return abs(right - left) / abs(left) if left and not np.isnan(left + right) else float("inf")
