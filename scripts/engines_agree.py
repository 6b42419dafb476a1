#!/usr/bin/env python3
"""Do two engines give the same results? scripts/engines_agree.py RUN_A RUN_B [--out FILE.md]

Both run folders must hold the same cells. Prints, cell by cell, the mean session latency on both,
the largest relative difference of any latency, hit rate or throughput metric, and the largest of all.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

CELL = ("workload", "profile", "tool_cores", "load", "seed", "system")
LIMIT = 0.01
"""Largest relative difference that passes."""


def numbers(cell: dict[str, Any]) -> dict[str, float]:
    """The metrics that claims are made of."""
    metrics = cell["metrics"]
    found = {
        f"latency {name}": metrics["session_latency_s"][name] for name in ("mean", "p95", "p99")
    }
    found["goodput@3"] = metrics["session_goodput_per_s"]["3"]
    found["sessions/s"] = metrics["sessions_per_s"]
    found["hit rate"] = metrics["prefix_cache_hit_rate"]
    return found


def difference(left: float, right: float) -> float:
    """Relative to the left one."""
    if left == right:
        return 0.0
    return abs(right - left) / abs(left) if left else float("inf")


def compare(
    left: list[dict[str, Any]], right: list[dict[str, Any]]
) -> list[tuple[tuple[Any, ...], float, float, float]]:
    """(cell, mean latency of both, largest relative difference) of every cell; ValueError if the
    two do not hold the same cells.
    """
    first = {tuple(cell[name] for name in CELL): numbers(cell) for cell in left}
    second = {tuple(cell[name] for name in CELL): numbers(cell) for cell in right}
    if first.keys() != second.keys():
        only = sorted(map(str, first.keys() ^ second.keys()))
        raise ValueError(f"{len(only)} cells are in one run only, such as {only[0]}")
    return [
        (
            cell,
            one["latency mean"],
            second[cell]["latency mean"],
            max(difference(one[name], second[cell][name]) for name in one),
        )
        for cell, one in first.items()
    ]


def main() -> int:
    """Compare two runs; status 1 if any number differs by more than 1 %."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, help="Markdown file to write as well")
    args = parser.parse_args()
    try:
        cells = [json.loads((run / "summary.json").read_text())["cells"] for run in args.runs]
        rows = compare(*cells)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    lines = [
        "| workload | tool cores | load | system | mean s | mean s | largest difference |",
        "|---|--:|--:|---|--:|--:|--:|",
    ]
    for (workload, _, cores, load, _, system), one, two, gap in rows:
        lines.append(
            f"| {workload} | {cores} | {load} | {system} | {one:,.2f} | {two:,.2f} | {gap:.4%} |"
        )
    worst = max(gap for *_, gap in rows)
    lines.append(f"\nLargest difference of any latency, rate or hit metric: {worst:.4%}.")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text)
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
