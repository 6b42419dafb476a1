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
HEAVY = 0.8
"""Load from which systems are under pressure."""
SCARCE = 4
"""Tool cores up to which the tools are what sessions wait for."""


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
    by_system = (
        rows.groupby("system")
        .agg(
            mean_latency=("mean_s_ratio", geomean),
            lowest=("mean_s_ratio", "min"),
            highest=("mean_s_ratio", "max"),
            p90=("p90_s_ratio", geomean),
            p95=("p95_s_ratio", geomean),
            p99=("p99_s_ratio", geomean),
            goodput=("goodput_ratio", geomean),
            jain=("jain", "mean"),
            cells=("mean_s_ratio", "size"),
        )
        .reset_index()
        .sort_values("mean_latency", ascending=False)
    )
    online = rows[~rows["system"].isin(CLAIRVOYANT | HINDSIGHT) & ~is_ablation(rows)]
    lines = [
        "## MARS against each system: how many times lower its latency is (1 = equal)",
        "",
        table(by_system),
        "",
        f"(jain: mean of the system's own Jain index of slowdowns; MARS has {rows['jain_mars'].mean():.2f})",
        "",
        "## Claims",
        "",
        *against_online(online, rows),
        *against_named(rows),
    ]
    cells = rows.pivot_table(index=CELL, columns="system", values="mean_s_ratio").reset_index()
    lines += ["", "## Mean latency over MARS's, cell by cell", "", table(cells), ""]
    return "\n".join(lines)


def is_ablation(rows: pd.DataFrame) -> pd.Series:
    """MARS with something taken away is no system of somebody else's; the preview is."""
    return rows["system"].str.startswith("mars-") & ~rows["system"].str.startswith("mars-preview")


def against_online(online: pd.DataFrame, rows: pd.DataFrame) -> list[str]:
    """MARS and the best other system that does not know the future, of each cell."""
    best = online.loc[online.groupby(CELL)["mean_s"].idxmin()]
    p99 = online.groupby(CELL)["p99_s_ratio"].min()
    ratio, heavy = best["mean_s_ratio"], best[best["load"] >= HEAVY]["mean_s_ratio"]
    lines = [
        (
            f"- best mean latency of all online systems in {(ratio >= 1).mean():.0%} of {len(best)} "
            f"cells, within 2 % of the best in {(ratio >= 0.98).mean():.0%}; at worst {ratio.min():.3f} "
            "of the best other's"
        ),
        (
            f"- against the best other online system of each cell at load >= {HEAVY}: geometric mean "
            f"{geomean(heavy):.2f}x"
        ),
        f"- P99 no worse than the lowest of any online system in {(p99 >= 1).mean():.0%} of cells",
        f"- throughput: at least {online['throughput_share'].min():.1%} of any online system's",
    ]
    oracle = rows[rows["system"] == "oracle"]
    both = best.merge(oracle, on=CELL)
    for name, part in (("tool cores in plenty", both["tool_cores"] > SCARCE),
                       ("scarce tool cores", both["tool_cores"] <= SCARCE)):  # fmt: skip
        cells = both[part & (both["load"] >= HEAVY)]
        if len(cells):
            lines.append(
                f"- {name}, load >= {HEAVY}: MARS {geomean(cells['mean_s_ratio_x']):.2f}x below the "
                f"best other online system (all of them blind to the CPU), the oracle "
                f"{geomean(cells['mean_s_x'] / cells['mean_s_y']):.2f}x"
            )
    return lines


def against_named(rows: pd.DataFrame) -> list[str]:
    """MARS and the systems that a claim names."""
    stock = rows[(rows["system"] == "vllm-tuned") & rows["load"].between(0.5, 1.2)]
    static = rows[(rows["system"] == "static-best") & (rows["load"] >= 0.7)]
    oracle = rows[(rows["system"] == "oracle") & (rows["load"] <= 0.9)]
    lines = []
    if len(stock):
        lines.append(
            f"- mean latency against vllm-tuned, loads 0.5-1.2: geometric mean "
            f"{geomean(stock['mean_s_ratio']):.2f}x, highest {stock['mean_s_ratio'].max():.2f}x"
        )
    if len(static):
        lines.append(
            f"- against the best static window chosen with hindsight, load >= 0.7: better in "
            f"{(static['mean_s_ratio'] >= 1).mean():.0%} of {len(static)} cells, geometric mean "
            f"{geomean(static['mean_s_ratio']):.2f}x"
        )
    if len(oracle):
        gap = 1 / oracle["mean_s_ratio"]
        lines.append(
            f"- mean latency over the oracle's, load <= 0.9: geometric mean {geomean(gap):.2f}, "
            f"highest {gap.max():.2f}"
        )
    return lines


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
