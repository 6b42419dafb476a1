"""Run folders as the numbers that claims are about: pairs of a system and MARS on the same cell.

A cell is one workload, profile, tool pool and load; systems are compared seed by seed, on the same
sessions and arrivals. A ratio says how many times better MARS is (1 = equal): the geometric mean
over seeds of the other's latency over MARS's. Goodput, which can be 0 in a seed, is averaged first.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

CELL = ["workload", "profile", "tool_cores", "sessions", "load"]
LATENCIES = ("mean_s", "p90_s", "p95_s", "p99_s")
SCARCE = 0.7
"""Share of the tool cores that load 1.0 keeps busy, from which on tools wait for cores."""
ORACLE = "oracle-best"
"""The best of some clairvoyant plans: what a scheduler that knew the future would reach at least."""
RESAMPLES = 2000
MIN_SEEDS = 3
"""Fewer give no interval."""


class ClaimsError(Exception):
    """Runs that cannot be held against claims, in one line."""


@dataclass(frozen=True)
class Pairs:
    """What was read. ``rows``: one a cell and system other than MARS, with ratios; ``logs``: the
    logarithm of each seed's ratio of mean latencies, a row a cell and system, a column a seed.
    """

    rows: pd.DataFrame
    logs: pd.DataFrame
    systems: pd.DataFrame
    """One row a cell and system, MARS too: means over seeds of its own metrics."""
    inputs: dict[str, str]
    """SHA-256 of recorded traces by name."""
    commits: set[str]

    def interval(self, part: pd.DataFrame) -> tuple[float, float] | None:
        """95 % bootstrap over seeds of the geometric mean over these rows."""
        keys = pd.MultiIndex.from_frame(part[[*CELL, "system"]])
        logs = self.logs.reindex(keys).to_numpy(dtype=float)
        if not logs.size or np.isfinite(logs).sum(axis=1).min() < MIN_SEEDS:
            return None
        logs = logs[:, np.isfinite(logs).any(axis=0)]
        rng = np.random.default_rng(0)
        drawn = rng.integers(0, logs.shape[1], (RESAMPLES, logs.shape[1]))
        if np.isfinite(logs).all():
            means = logs.mean(axis=0)[drawn].mean(axis=1)
        else:  # seeds missing in some cells: average what a draw has of each
            known = np.ma.masked_invalid(logs)
            means = np.array([float(known[:, d].mean(axis=1).mean()) for d in drawn])
        low, high = np.exp(np.percentile(means, [2.5, 97.5]))
        return float(low), float(high)


def read(runs: list[Path]) -> Pairs:
    """Everything the claims need from these folders."""
    frames: list[pd.DataFrame] = []
    inputs: dict[str, str] = {}
    commits: set[str] = set()
    for run in runs:
        summary = json.loads((run / "summary.json").read_text())
        frames.append(pd.DataFrame([row(cell) for cell in summary["cells"]]))
        file = run / "environment.json"
        about = json.loads(file.read_text()) if file.exists() else {}
        commits.add(str((about.get("git") or {}).get("sha", "unknown"))[:10])
        inputs |= {
            Path(name).name.split(".")[0]: sha
            for name, sha in about.get("input_sha256", {}).items()
            if not name.startswith("profile ")
        }
    rows = without_repeats(pd.concat(frames, ignore_index=True))
    return pairs(rows, inputs, commits)


def row(cell: dict[str, Any]) -> dict[str, Any]:
    """One cell, system and seed, flat."""
    metrics, latency = cell["metrics"], cell["metrics"]["session_latency_s"]
    arrived, cores = cell["sessions"]["arrived"], cell["tool_cores"]
    share = metrics.get("tool_utilisation")
    busy_core_s = None if share is None else share * cores * metrics["makespan_s"]
    capacity = (cell.get("rate_per_s") or 0.0) / (cell["load"] or np.nan)
    return {
        **{name: cell[name] for name in ("workload", "profile", "tool_cores", "load")},
        "workload": Path(str(cell["workload"])).name,
        "sessions": arrived,
        "system": cell["system"],
        "seed": cell["seed"],
        "hindsight": bool(cell.get("hindsight")),
        "clairvoyant": bool(cell.get("oracle")),
        **{name: latency[name.removesuffix("_s")] for name in LATENCIES},
        "goodput": metrics["session_goodput_per_s"]["3"],
        "throughput": metrics["sessions_per_s"],
        "hit_rate": metrics["prefix_cache_hit_rate"],
        "jain": metrics["jain_slowdown"],
        "slowdown_p99": metrics["session_slowdown"]["p99"],
        "max_wait_s": metrics["max_wait_s"],
        "failed": cell["sessions"]["failed"],
        "demand": np.nan if busy_core_s is None else busy_core_s / arrived * capacity / cores,
    }


def without_repeats(rows: pd.DataFrame) -> pd.DataFrame:
    """A cell, system and seed that several runs have counts once; their numbers must agree."""
    key = [*CELL, "system", "seed"]
    spread = rows.groupby(key)["mean_s"].agg(["min", "max"])
    apart = spread[spread["max"] > spread["min"] * (1 + 1e-9)]
    if len(apart):
        where = dict(zip(key, apart.index[0], strict=True))
        raise ClaimsError(
            f"runs disagree on {where}: mean latency {apart['min'].iloc[0]:.3f} s and "
            f"{apart['max'].iloc[0]:.3f} s; give runs of one version of the code"
        )
    return rows.drop_duplicates(key)


def pairs(rows: pd.DataFrame, inputs: dict[str, str], commits: set[str]) -> Pairs:
    """Every system beside MARS."""
    mars = rows[rows["system"] == "mars"]
    others = rows[rows["system"] != "mars"]
    both = others.merge(mars, on=[*CELL, "seed"], suffixes=("", "_mars"))
    if both.empty:
        raise ClaimsError("no cell has both mars and another system")
    logs = {name: np.log(both[name] / both[f"{name}_mars"]) for name in LATENCIES}
    logs["throughput"] = np.log(both["throughput_mars"] / both["throughput"])
    named = pd.concat([both[[*CELL, "system", "seed"]], pd.DataFrame(logs)], axis=1)
    group = [*CELL, "system"]
    ratios = named.drop(columns="seed").groupby(group).mean().apply(np.exp).add_suffix("_ratio")
    means = both.groupby(group).agg(
        **{name: (name, "mean") for name in (*LATENCIES, "goodput", "throughput")},
        mean_s_mars=("mean_s_mars", "mean"),
        goodput_mars=("goodput_mars", "mean"),
        seeds=("seed", "nunique"),
        failed=("failed", "sum"),
        hindsight=("hindsight", "first"),
        clairvoyant=("clairvoyant", "first"),
        demand=("demand_mars", "mean"),
    )
    frame = means.join(ratios)
    with np.errstate(divide="ignore", invalid="ignore"):
        frame["goodput_ratio"] = frame["goodput_mars"] / frame["goodput"]
    frame = frame.rename(columns={"throughput_ratio": "throughput_share"}).reset_index()
    frame["demand"] = whole_pool(frame)
    frame["online"] = ~frame["hindsight"] & ~frame["clairvoyant"] & ~is_mars(frame)
    own = ["mean_s", "p99_s", "goodput", "throughput", "hit_rate", "jain", "slowdown_p99"]
    systems = rows.groupby(group)[[*own, "max_wait_s"]].mean().reset_index()
    return Pairs(frame, named.pivot_table(index=group, columns="seed", values="mean_s"),
                 systems, inputs, commits)  # fmt: skip


def whole_pool(frame: pd.DataFrame) -> pd.Series:
    """The tools' share of their cores at load 1.0 belongs to a pool, whatever the load."""
    pool = ["workload", "profile", "tool_cores", "sessions"]
    return frame.groupby(pool)["demand"].transform("mean")


def is_mars(rows: pd.DataFrame) -> pd.Series:
    """MARS with something taken away, tuned, or as in its authors' preview."""
    return rows["system"].str.startswith("mars")


def best_other(rows: pd.DataFrame) -> pd.DataFrame:
    """The other online system with the lowest mean latency in each cell, tuned variants counted."""
    online = rows[rows["online"]]
    return online.loc[online.groupby(CELL)["mean_s_ratio"].idxmin()]


def geomean(values: pd.Series) -> float:
    """Geometric mean of what is finite."""
    known = values[np.isfinite(values) & (values > 0)]
    return float(np.exp(np.log(known).mean())) if len(known) else float("nan")
