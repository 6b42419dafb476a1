"""How many times better one system, the subject, is than every other, cell by cell, from summaries.

A cell is one workload, profile, tool pool and load; systems are compared seed by seed, on the same
sessions and arrivals. A ratio says how many times better the subject is (1 = equal): the geometric
mean over seeds of the other's latency over the subject's. Goodput, which can be 0 in a seed, is
averaged first. Published claims are held against these numbers (``marsbench.report.published``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from marsbench.errors import ResultsError
from marsbench.report.intervals import MIN_SEEDS, over_seeds
from marsbench.runfolder import read_summary

CELL = ["workload", "profile", "tool_cores", "sessions", "load"]
LATENCIES = ("mean_s", "p90_s", "p95_s", "p99_s")
SCARCE = 0.7
"""Share of the tool cores that load 1.0 keeps busy, from which on tools wait for cores."""


@dataclass(frozen=True)
class Factors:
    """What was read. ``rows``: one a cell and system other than the subject, with ratios; ``logs``:
    the logarithm of each seed's ratio by measure, a row a cell and system, a column a seed.
    """

    subject: str
    rows: pd.DataFrame
    logs: dict[str, pd.DataFrame]
    systems: pd.DataFrame
    """One row a cell and system, the subject too: means over seeds of its own metrics."""
    inputs: dict[str, str]
    """SHA-256 of recorded traces by name."""
    commits: set[str]

    def interval(self, part: pd.DataFrame, measure: str = "mean_s") -> tuple[float, float] | None:
        """95 % interval, Student's t over seeds, of the geometric mean over these rows; None below
        three seeds. A seed counts by how far its cells are from their means, so that one that some
        cells lack is not taken for a fast or slow one.
        """
        keys = pd.MultiIndex.from_frame(part[[*CELL, "system"]])
        logs = self.logs[measure].reindex(keys).to_numpy(dtype=float)
        if not logs.size:
            return None
        known = np.ma.masked_invalid(logs)
        cells = known.mean(axis=1)
        apart = (known - cells[:, None])[:, np.isfinite(logs).any(axis=0)].mean(axis=0)
        found = over_seeds(np.asarray(apart + cells.mean() - apart.mean()))
        fewest = np.isfinite(logs).sum(axis=1).min()
        return (found.low, found.high) if found and fewest >= MIN_SEEDS else None


def read_factors(runs: Sequence[Path], subject: str) -> Factors:
    """The subject's factors over all cells of these run folders.

    Raises ResultsError where runs disagree on a cell, and where no cell has the subject and another.
    """
    frames: list[pd.DataFrame] = []
    inputs: dict[str, str] = {}
    commits: set[str] = set()
    for run in runs:
        frames.append(pd.DataFrame([row(cell) for cell in read_summary(run)["cells"]]))
        file = run / "environment.json"
        about = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        commits.add(str((about.get("git") or {}).get("sha", "unknown"))[:10])
        inputs |= {
            Path(name).name.split(".")[0]: sha
            for name, sha in about.get("input_sha256", {}).items()
            if not name.startswith("profile ")
        }
    rows = without_repeats(pd.concat(frames, ignore_index=True))
    return pairs(rows, inputs, commits, subject)


def row(cell: dict[str, Any]) -> dict[str, Any]:
    """One cell, system and seed, flat."""
    metrics, latency = cell["metrics"], cell["metrics"]["session_latency_s"]
    arrived, cores = cell["sessions"]["arrived"], cell["tool_cores"]
    share = metrics.get("tool_utilisation")
    busy_core_s = None if share is None else share * cores * metrics["makespan_s"]
    host = cell.get("host_kv_gib") or 0.0
    capacity = (cell.get("rate_per_s") or 0.0) / (cell["load"] or np.nan)
    return {
        **{name: cell[name] for name in ("workload", "profile", "tool_cores", "load")},
        "profile": f"{cell['profile']} with {host:g} GiB of host memory"
        if host
        else cell["profile"],
        "workload": Path(str(cell["workload"])).name,
        "sessions": arrived,
        "distinct": cell["sessions"].get("distinct", np.nan),
        "unstable": np.nan if metrics.get("unstable") is None else metrics["unstable"],
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
        raise ResultsError(
            f"runs disagree on {where}: mean latency {apart['min'].iloc[0]:.3f} s and "
            f"{apart['max'].iloc[0]:.3f} s; give runs of one version of the code"
        )
    return rows.drop_duplicates(key)


def pairs(rows: pd.DataFrame, inputs: dict[str, str], commits: set[str], subject: str) -> Factors:
    """Every system beside the subject."""
    mine = rows[rows["system"] == subject]
    others = rows[rows["system"] != subject]
    both = others.merge(mine, on=[*CELL, "seed"], suffixes=("", "_subject"))
    if both.empty:
        raise ResultsError(f"no cell has both {subject} and another system; run them together")
    if both["load"].isna().any():
        raise ResultsError(
            "factors are by load, and some cells were run at a rate; run them with --load"
        )
    logs = {name: np.log(both[name] / both[f"{name}_subject"]) for name in LATENCIES}
    logs["throughput"] = np.log(both["throughput_subject"] / both["throughput"])
    named = pd.concat([both[[*CELL, "system", "seed"]], pd.DataFrame(logs)], axis=1)
    group = [*CELL, "system"]
    ratios = named.drop(columns="seed").groupby(group).mean().apply(np.exp).add_suffix("_ratio")
    means = both.groupby(group).agg(
        **{name: (name, "mean") for name in (*LATENCIES, "goodput", "throughput")},
        mean_s_subject=("mean_s_subject", "mean"),
        goodput_subject=("goodput_subject", "mean"),
        seeds=("seed", "nunique"),
        failed=("failed", "sum"),
        distinct=("distinct", "min"),
        unstable=("unstable", "mean"),
        hindsight=("hindsight", "first"),
        clairvoyant=("clairvoyant", "first"),
        demand=("demand_subject", "mean"),
    )
    frame = means.join(ratios)
    with np.errstate(divide="ignore", invalid="ignore"):
        frame["goodput_ratio"] = frame["goodput_subject"] / frame["goodput"]
    frame = frame.rename(columns={"throughput_ratio": "throughput_share"}).reset_index()
    frame["demand"] = whole_pool(frame)
    frame["online"] = ~frame["hindsight"] & ~frame["clairvoyant"] & ~variants(frame, subject)
    own = ["mean_s", "p99_s", "goodput", "throughput", "hit_rate", "jain", "slowdown_p99"]
    systems = rows.groupby(group)[[*own, "max_wait_s"]].mean().reset_index()
    by_seed = {
        name: named.pivot_table(index=group, columns="seed", values=name) for name in LATENCIES
    }
    return Factors(subject, frame, by_seed, systems, inputs, commits)


def whole_pool(frame: pd.DataFrame) -> pd.Series[float]:
    """The tools' share of their cores at load 1.0 belongs to a pool, whatever the load."""
    pool = ["workload", "profile", "tool_cores", "sessions"]
    return frame.groupby(pool)["demand"].transform("mean")


def variants(rows: pd.DataFrame, subject: str) -> pd.Series[bool]:
    """The subject with something taken away, tuned, or in another version."""
    return rows["system"].str.startswith(subject)


def best_other(rows: pd.DataFrame) -> pd.DataFrame:
    """The other online system with the lowest mean latency in each cell, tuned variants counted."""
    online = rows[rows["online"]]
    return online.loc[online.groupby(CELL)["mean_s_ratio"].idxmin()]


def geomean(values: pd.Series[float]) -> float:
    """Geometric mean of what is finite."""
    known = values[np.isfinite(values) & (values > 0)]
    return float(np.exp(np.log(known).mean())) if len(known) else float("nan")
