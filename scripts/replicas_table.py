"""Tables of runs with several replicas: job completion time, reuse, moves, fairness, and the slice of
sessions with long tool gaps; MARS against the best combination of scheduler and router.

  python scripts/replicas_table.py RUN... > results/reference/replicas/tables.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from marsbench.runfolder import read_summary, read_table

LONG_GAP_S = 60.0
"""A tool gap beyond this is long: 4 % of the calls, but 85 % of tool time in recorded sessions."""
COLUMNS = (
    "system", "mean JCT s", "p99 JCT s", "KV hits", "migrations / turn", "busy min-max",
    "Jain replicas", "Jain slowdown", "long-gap mean JCT s", "hits after a long gap",
)  # fmt: skip


def cell_row(entry: dict, turns: pd.DataFrame, sessions: pd.DataFrame) -> dict[str, object]:
    """One cell's numbers; ``turns`` and ``sessions`` are its tables."""
    metrics = entry["metrics"]
    after = turns.sort_values(["session", "turn_index"])
    gap_before = after.groupby("session")["tool_wait_s"].shift(1)
    late = after[(gap_before > LONG_GAP_S) & after["sched_first_s"].notna()]
    slow = set(after.loc[after["tool_wait_s"] > LONG_GAP_S, "session"])
    done = sessions[(sessions["parent"] < 0) & sessions["session"].isin(slow)]
    prompt = late["prompt_tokens"].sum()
    busy = metrics["replica_gpu_utilisation"]
    return {
        "workload": entry["workload"],
        "load": entry["load"],
        "rate": entry["rate_per_s"],
        "seed": entry["seed"],
        "system": entry["system"],
        "failed": entry["sessions"]["failed"],
        "mean": metrics["session_latency_s"]["mean"],
        "p99": metrics["session_latency_s"]["p99"],
        "hits": metrics["prefix_cache_hit_rate"],
        "moves": metrics["migrated_turns_share"],
        "low": busy["min"],
        "high": busy["max"],
        "jain_replicas": metrics["jain_replicas"],
        "jain": metrics["jain_slowdown"],
        "long": done["latency_s"].mean(),
        "long_share": len(done) / max((sessions["parent"] < 0).sum(), 1),
        "long_hits": late["cached_tokens"].sum() / prompt if prompt else np.nan,
    }


def rows_of(runs: list[Path]) -> pd.DataFrame:
    """All cells of all runs."""
    rows = []
    for run in runs:
        columns = ["cell", "session", "turn_index", "tool_wait_s", "sched_first_s", "prompt_tokens",
                   "cached_tokens"]  # fmt: skip
        turns = read_table(run, "turns", columns=columns)
        sessions = read_table(run, "sessions", columns=["cell", "session", "parent", "latency_s"])
        for entry in read_summary(run)["cells"]:
            cell = entry["cell"]
            rows.append(
                cell_row(entry, turns[turns["cell"] == cell], sessions[sessions["cell"] == cell])
            )
    return pd.DataFrame(rows)


def table(found: pd.DataFrame) -> list[str]:
    """One table: the means over seeds of each system, best mean first."""
    means = found.groupby("system").mean(numeric_only=True).sort_values("mean")
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|" + "--:|" * (len(COLUMNS) - 1)]
    for name, row in means.iterrows():
        shown = f"**{name}**" if name == "mars" else name
        lines.append(
            f"| {shown} | {row['mean']:,.0f} | {row['p99']:,.0f} | {row['hits']:.1%} | "
            f"{row['moves']:.1%} | {row['low']:.2f}-{row['high']:.2f} | "
            f"{row['jain_replicas']:.3f} | {row['jain']:.2f} | {row['long']:,.0f} | "
            f"{row['long_hits']:.1%} |"
        )
    return lines


def verdict(found: pd.DataFrame) -> str:
    """MARS against the best combination of a published scheduler and a router, seed by seed."""
    mine = found[found["system"] == "mars"].set_index("seed")["mean"]
    others = found[~found["system"].str.startswith("mars")]
    means = others.groupby("system")["mean"].mean()
    best = str(means.idxmin())
    theirs = others[others["system"] == best].set_index("seed")["mean"]
    ratios = (theirs / mine).sort_index()
    each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    mixed = found[found["system"].str.startswith("mars@")].groupby("system")["mean"].mean()
    text = f"Best published combination: `{best}`. Its mean is {means.min() / mine.mean():.2f} times MARS's"
    text += f" (seeds: {each})."
    if len(mixed):
        ratio = mixed.min() / mine.mean()
        text += f" MARS behind another router: best `{mixed.idxmin()}`, {ratio:.2f} times."
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    found = rows_of(parser.parse_args().runs)
    found["place"] = found["load"].fillna(found["rate"])
    for (workload, place), part in found.groupby(["workload", "place"], sort=False):
        what = f"load {place:g}" if part["load"].notna().all() else f"{place:g} sessions/s"
        seeds = part["seed"].nunique()
        share = part["long_share"].mean()
        print(f"## {workload}, {what}\n")
        print(f"{verdict(part)} {seeds} seeds; {share:.0%} of the sessions have a gap beyond "
              f"{LONG_GAP_S:g} s; {int(part['failed'].sum())} sessions failed.\n")  # fmt: skip
        print("\n".join(table(part)) + "\n")


if __name__ == "__main__":
    main()
