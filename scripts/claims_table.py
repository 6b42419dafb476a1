#!/usr/bin/env python3
"""Holds run folders against the paper's claims and ours: scripts/claims_table.py RUN... [--out DIR]

For every cell (workload, profile, tool cores, load) the mean over seeds of each system's metric is
divided by MARS's, so a ratio above 1 says how many times better MARS is. Writes cells.csv (one row
a cell and system) and claims.md (the claims, cell by cell and as geometric means) to --out, and
prints claims.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

CELL = ["workload", "profile", "tool_cores", "load"]
CLAIRVOYANT = {"oracle"}
HINDSIGHT = {"static-best"}


def read(runs: list[Path]) -> pd.DataFrame:
    """One row a cell, system and seed."""
    rows = []
    for run in runs:
        summary = json.loads((run / "summary.json").read_text())
        for cell in summary["cells"]:
            metrics = cell["metrics"]
            rows.append(
                {
                    **{name: cell[name] for name in [*CELL, "system", "seed"]},
                    "workload": Path(str(cell["workload"])).name,
                    "mean_s": metrics["session_latency_s"]["mean"],
                    "p90_s": metrics["session_latency_s"]["p90"],
                    "p95_s": metrics["session_latency_s"]["p95"],
                    "p99_s": metrics["session_latency_s"]["p99"],
                    "goodput": metrics["session_goodput_per_s"]["3"],
                    "throughput": metrics["sessions_per_s"],
                    "hit_rate": metrics["prefix_cache_hit_rate"],
                    "jain": metrics["jain_slowdown"],
                }
            )
    return pd.DataFrame(rows)


def ratios(cells: pd.DataFrame) -> pd.DataFrame:
    """System over MARS for latencies (MARS over system for goodput), a row a cell and system."""
    mean = cells.drop(columns="seed").groupby([*CELL, "system"], as_index=False).mean()
    mars = mean[mean["system"] == "mars"].drop(columns="system")
    joined = mean.merge(mars, on=CELL, suffixes=("", "_mars"))
    for name in ("mean_s", "p90_s", "p95_s", "p99_s"):
        joined[f"{name}_ratio"] = joined[name] / joined[f"{name}_mars"]
    joined["goodput_ratio"] = joined["goodput_mars"] / joined["goodput"].replace(0, np.nan)
    joined["throughput_share"] = joined["throughput_mars"] / joined["throughput"]
    return joined[joined["system"] != "mars"]


def geomean(values: pd.Series) -> float:
    """Geometric mean."""
    return float(np.exp(np.log(values.dropna()).mean()))


def table(frame: pd.DataFrame) -> str:
    """A Markdown table."""
    head = "| " + " | ".join(frame.columns) + " |\n|" + "---|" * len(frame.columns)
    lines = [
        "| " + " | ".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row) + " |"
        for row in frame.itertuples(index=False)
    ]
    return "\n".join([head, *lines])


def claims(rows: pd.DataFrame) -> str:
    """The claims, in Markdown."""
    online = rows[~rows["system"].isin(CLAIRVOYANT | HINDSIGHT)]
    by_system = (
        rows.groupby("system")
        .agg(
            mean_latency=("mean_s_ratio", geomean),
            lowest=("mean_s_ratio", "min"),
            highest=("mean_s_ratio", "max"),
            p95=("p95_s_ratio", geomean),
            p99=("p99_s_ratio", geomean),
            goodput=("goodput_ratio", geomean),
            cells=("mean_s_ratio", "size"),
        )
        .reset_index()
        .sort_values("mean_latency", ascending=False)
    )
    best = online.loc[online.groupby(CELL)["mean_s"].idxmin()]
    wins = (best["mean_s_ratio"] >= 1).mean()
    worst = best["mean_s_ratio"].min()
    heavy = best[best["load"] >= 0.8]
    stock = rows[(rows["system"] == "vllm-tuned") & rows["load"].between(0.5, 1.2)]
    static = rows[(rows["system"] == "static-best") & (rows["load"] >= 0.7)]
    oracle = rows[(rows["system"] == "oracle") & (rows["load"] <= 0.9)]
    lines = [
        "## MARS against each system: how many times lower its latency is (1 = equal)",
        "",
        table(by_system),
        "",
        "## Claims",
        "",
        (
            f"- best mean latency of all online systems in {wins:.0%} of {len(best)} cells; "
            f"at worst {worst:.3f} of the best other's"
        ),
        (
            f"- against the best other online system of each cell at load >= 0.8: geometric mean "
            f"{geomean(heavy['mean_s_ratio']):.2f}x"
        ),
        f"- throughput: at least {online['throughput_share'].min():.1%} of any online system's",
    ]
    if len(stock):
        lines.append(
            f"- mean latency against vllm-tuned, loads 0.5-1.2: geometric mean "
            f"{geomean(stock['mean_s_ratio']):.2f}x, highest {stock['mean_s_ratio'].max():.2f}x"
        )
    if len(static):
        better = (static["mean_s_ratio"] >= 1).mean()
        lines.append(
            f"- against the best static window chosen with hindsight, load >= 0.7: better in "
            f"{better:.0%} of {len(static)} cells, geometric mean {geomean(static['mean_s_ratio']):.2f}x"
        )
    if len(oracle):
        gap = 1 / oracle["mean_s_ratio"]
        lines.append(
            f"- mean latency over the oracle's, load <= 0.9: geometric mean {geomean(gap):.2f}, "
            f"highest {gap.max():.2f}; the oracle itself is "
            f"{geomean(best.merge(rows[rows['system'] == 'oracle'], on=CELL).eval('mean_s_x / mean_s_y')):.2f}x "
            f"better than the best other online system (geometric mean, all loads)"
        )
    cells = rows.pivot_table(index=CELL, columns="system", values="mean_s_ratio").reset_index()
    lines += ["", "## Mean latency over MARS's, cell by cell", "", table(cells), ""]
    return "\n".join(lines)


def main() -> int:
    """Read runs, write and print the claims."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, help="folder for cells.csv and claims.md")
    args = parser.parse_args()
    missing = [run for run in args.runs if not (run / "summary.json").exists()]
    if missing:
        print(f"{missing[0]}: no summary.json; give finished run folders", file=sys.stderr)
        return 2
    rows = ratios(read(args.runs))
    if rows.empty:
        print("no cell has both mars and another system", file=sys.stderr)
        return 2
    text = claims(rows)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        rows.round(6).to_csv(args.out / "cells.csv", index=False)
        (args.out / "claims.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
