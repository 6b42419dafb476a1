"""The part of ``marsbench validate`` for two run folders: how far they agree, and where they part."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from marsbench.cli import RunFailed
from marsbench.errors import ConfigError


def compare(runs: list[Path], *, tolerance: float, as_json: bool) -> None:
    """Print a row a cell; RunFailed if any metric differs by more than the tolerance."""
    from marsbench.experiment.runs_agree import compare_runs

    if len(runs) != 2:
        raise ConfigError(f"validate compares two run folders, not {len(runs)}")
    found = compare_runs(*runs)
    if as_json:
        print(json.dumps([dataclasses.asdict(each) for each in found], indent=1))
    else:
        print(
            "| workload | tool cores | load | seed | system | mean s | mean s | largest | sessions: median | p95 |"
        )
        print("|---|--:|--:|--:|---|--:|--:|--:|--:|--:|")
        for each in found:
            cell, (one, two) = each.cell, each.mean_latency_s
            pace = cell["load"] if cell["load"] is not None else f"{cell['rate_per_s']}/s"
            print(
                f"| {cell['workload']} | {cell['tool_cores']} | {pace} | {cell['seed']} | "
                f"{cell['system']} | {one:,.2f} | {two:,.2f} | {each.worst:.4%} | "
                f"{each.session_median:.4%} | {each.session_p95:.4%} |"
            )
    worst = max(found, key=lambda each: each.worst)
    if worst.worst > tolerance:
        part = f", most of all session {worst.moved}" if worst.moved else ""
        raise RunFailed(
            f"{runs[0]} and {runs[1]} differ by {worst.worst:.2%} in {worst.cell['system']} on "
            f"{worst.cell['workload']}{part}; --tolerance {tolerance:g} allows less"
        )
