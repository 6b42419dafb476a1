#!/usr/bin/env python3
"""Holds run folders against the claims: scripts/claims_table.py RUN... [--out DIR --name NAME]

Prints one page - the claims with what was measured and the cells that decide them, MARS's factor
over every system by workload and profile, fairness - and then every cell. With --out, writes it to
DIR/NAME.md, and every number of every cell and system to DIR/NAME.csv.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import astuple
from pathlib import Path

import pandas as pd
from claims_checks import HEAVY, ORACLE, checks

from marsbench.errors import ResultsError
from marsbench.report.factors import (
    CELL,
    SCARCE,
    Factors,
    best_other,
    geomean,
    read_factors,
)


def table(frame: pd.DataFrame, decimals: int = 2) -> str:
    """A Markdown table, numbers to the right."""
    numeric = [pd.api.types.is_numeric_dtype(frame[name]) for name in frame.columns]
    head = "| " + " | ".join(map(str, frame.columns)) + " |"
    rule = "|" + "|".join("--:" if right else "---" for right in numeric) + "|"
    lines = [
        "| " + " | ".join(shown(value, decimals) for value in row) + " |"
        for row in frame.itertuples(index=False)
    ]
    return "\n".join([head, rule, *lines])


def shown(value: object, decimals: int) -> str:
    """A cell of a table."""
    if not isinstance(value, float):
        return str(value)
    if pd.isna(value):
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.{decimals}f}"


def claims(pairs: Factors) -> str:
    """The table of claims."""
    columns = ["claim", "target", "measured", "verdict", "cells", "sessions", "decided by"]
    return table(pd.DataFrame([astuple(check) for check in checks(pairs)], columns=columns))


def factors(pairs: Factors) -> str:
    """MARS against each system over all cells: how many times better it is."""
    rows = pairs.rows
    lines = []
    for system, part in rows.groupby("system"):
        ratio, heavy = part["mean_s_ratio"], part[part["load"] >= HEAVY]
        interval = pairs.interval(part)
        lines.append(
            {
                "system": system,
                "cells": len(part),
                "mean latency": geomean(ratio),
                "95 % interval": "" if interval is None else f"{interval[0]:.2f}-{interval[1]:.2f}",
                "lowest": ratio.min(),
                "highest": ratio.max(),
                f"load >= {HEAVY}": geomean(heavy["mean_s_ratio"]),
                "P90": geomean(part["p90_s_ratio"]),
                "P95": geomean(part["p95_s_ratio"]),
                "P99": geomean(part["p99_s_ratio"]),
                "goodput": geomean(part["goodput_ratio"]),
                "throughput": geomean(part["throughput_share"]),
            }
        )
    return table(pd.DataFrame(lines).sort_values("mean latency", ascending=False))


def by_place(pairs: Factors) -> str:
    """Factors by workload and profile, geometric mean over loads >= HEAVY."""
    rows = pairs.rows[pairs.rows["load"] >= HEAVY]
    if rows.empty:
        return f"(no cell at load >= {HEAVY})"
    place = ["workload", "profile", "tool_cores"]
    wide = rows.pivot_table(
        index=place, columns="system", values="mean_s_ratio", aggfunc=geomean
    )  # fmt: skip
    order = wide.apply(geomean).sort_values(ascending=False).index
    best = best_other(rows).groupby(place)["mean_s_ratio"].apply(geomean).rename("best other")
    demand = rows.groupby(place)["demand"].first().rename("CPU demand")
    return table(wide[order].join(best).join(demand).reset_index())


def by_load(pairs: Factors) -> str:
    """Factors over the best other, the oracle and stock vLLM by load."""
    rows, best = pairs.rows, best_other(pairs.rows)
    lines = {
        "best other": best,
        **{name: rows[rows["system"] == name] for name in ("vllm-tuned", "static-best", ORACLE)},
    }
    columns = {
        name: part.groupby("load")["mean_s_ratio"].apply(geomean)
        for name, part in lines.items()
        if len(part)
    }
    columns["best other, lowest"] = best.groupby("load")["mean_s_ratio"].min()
    return table(pd.DataFrame(columns).reset_index())


def fairness(pairs: Factors) -> str:
    """How evenly each system serves, mean over the cells that all systems have."""
    part = pairs.systems[pairs.systems["load"] >= HEAVY]
    part = part if len(part) else pairs.systems
    shared = part.groupby(CELL)["system"].transform("nunique") == part["system"].nunique()
    part = part[shared] if shared.any() else part
    found = part.groupby("system").agg(
        **{
            "Jain index": ("jain", "mean"),
            "Jain, lowest": ("jain", "min"),
            "slowdown P99": ("slowdown_p99", geomean),
            "slowdown P99, highest": ("slowdown_p99", "max"),
            "longest wait s": ("max_wait_s", geomean),
            "longest wait s, highest": ("max_wait_s", "max"),
            "cells": ("jain", "size"),
        }
    )
    return table(found.sort_values("Jain index", ascending=False).reset_index())


def cells(pairs: Factors) -> str:
    """Every cell: ratio of mean latencies, and the best other."""
    best = best_other(pairs.rows).set_index(CELL)
    wide = pairs.rows.pivot_table(index=CELL, columns="system", values="mean_s_ratio")
    mars = pairs.systems[pairs.systems["system"] == "mars"].set_index(CELL)["mean_s"]
    front = pd.DataFrame(
        {"mars s": mars, "best other": best["system"], "x": best["mean_s_ratio"]}
    ).reindex(wide.index)
    return table(front.join(wide).reset_index())


def page(pairs: Factors) -> str:
    """All of it, in Markdown."""
    seeds = "-".join(map(str, sorted({pairs.rows["seeds"].min(), pairs.rows["seeds"].max()})))
    scarce = pairs.rows[pairs.rows["demand"] >= SCARCE].groupby(CELL).ngroups
    failed = pairs.rows.loc[pairs.rows["failed"] > 0, "system"].unique()
    lines = [
        ("Ratios say how many times better MARS is (1 = equal, below 1 = worse): geometric mean over "
        f"seeds of another system's number over MARS's. {pairs.rows.groupby(CELL).ngroups} cells, "
        f"{scarce} of them with tools that need {SCARCE:.0%} of their cores or more at load 1.0; "
        f"{seeds} seeds; intervals: 95 %, Student's t over seeds of log ratios; code {', '.join(sorted(pairs.commits))}."),
        *(f"Input {name}: SHA-256 `{sha}`." for name, sha in sorted(pairs.inputs.items())),
        *([f"Some sessions failed under: {', '.join(failed)}."] if len(failed) else []),
        (f"`static-best` and `{ORACLE}` know the future; *best other* is the best online system of a cell "
        "besides MARS, tuned variants counted."),
    ]  # fmt: skip
    sections = {
        "Claims": claims(pairs),
        "MARS against each system": factors(pairs),
        "By load": by_load(pairs),
        f"By workload and profile, load >= {HEAVY}": by_place(pairs),
        f"Fairness, load >= {HEAVY}, the systems' own numbers": fairness(pairs),
        "Mean latency over MARS's, cell by cell": cells(pairs),
    }
    text = [f"## {title}\n\n{body}\n" for title, body in sections.items()]
    return "\n".join(["\n".join(lines), "", *text])


def main() -> int:
    """Read runs, write and print the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, help="folder for NAME.md and NAME.csv")
    parser.add_argument("--name", default="claims", help="of the files (claims)")
    args = parser.parse_args()
    missing = [run for run in args.runs if not (run / "summary.json").exists()]
    if missing:
        print(f"{missing[0]}: no summary.json; give finished run folders", file=sys.stderr)
        return 2
    try:
        pairs = read_factors(args.runs, "mars")
    except ResultsError as error:
        print(error, file=sys.stderr)
        return 2
    text = page(pairs)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        numbers = pairs.rows.drop(columns=["hindsight", "clairvoyant", "online"])
        numbers.to_csv(args.out / f"{args.name}.csv", index=False, float_format="%.5g")
        (args.out / f"{args.name}.md").write_text(f"# {args.name}\n\n{text}")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
