#!/usr/bin/env python3
"""The policy court's page: scripts/court_table.py RUN... --out DIR, from finished runs of scripts/court.sh.

Writes DIR/court.csv (a row a cell, system and seed), DIR/ratios.csv (a row a cell and system: the system's
number over MARS's, paired by session, with intervals) and DIR/README.md, which is made of these two
files alone: scripts/court_table.py --out DIR makes it again from them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from claims_table import table

from marsbench.report.compare import pair_sessions
from marsbench.report.intervals import MIN_SEEDS, Measure, Pairs, paired
from marsbench.trace.workload import original_session

PLACE = ["workload", "host_kv_gib", "load"]
ALPHAS = ("2", "3", "5")
REFERENCE = "mars"
MEASURES = {"mean": Measure(), "p99": Measure(99.0)}
ORACLE = "oracle"
CHOICES = ("mars-no-slo", "mars-preview")
STATIC, STOCK = "static-tuned", "vllm"


def cells(run: Path) -> pd.DataFrame:
    """A row a cell, system and seed of a run folder."""
    found = json.loads((run / "summary.json").read_text())["cells"]
    return pd.DataFrame([row(cell) for cell in found])


def row(cell: dict[str, Any]) -> dict[str, Any]:
    """One of them; goodput in sessions per 1000 s, ``in_time`` a share of all sessions."""
    metrics, latency = cell["metrics"], cell["metrics"]["session_latency_s"]
    goodput = metrics["session_goodput_per_s"]
    return {
        "workload": Path(str(cell["workload"])).name.split(".")[0],
        "host_kv_gib": float(cell.get("host_kv_gib") or 0.0),
        "load": cell["load"],
        "system": cell["system"],
        "seed": cell["seed"],
        "rate_per_ks": 1000 * cell["rate_per_s"],
        "sessions": cell["sessions"]["arrived"],
        "distinct": cell["sessions"]["distinct"],
        "failed": cell["sessions"]["failed"],
        "mean_s": latency["mean"],
        "p99_s": latency["p99"],
        **{f"goodput_{alpha}": 1000 * goodput[alpha] for alpha in ALPHAS},
        "in_time": metrics["slo_attainment"]["3"],
        "unstable": float(bool(metrics["unstable"])),
    }


def sessions(run: Path) -> pd.DataFrame:
    """Sessions of a run folder as pair_sessions wants them."""
    frame = pd.read_parquet(run / "sessions.parquet")
    frame = frame[frame["parent"] < 0].copy()
    frame["workload"] = frame["workload"].map(lambda name: Path(str(name)).name.split(".")[0])
    if "host_kv_gib" not in frame:
        frame["host_kv_gib"] = 0.0
    frame["host_kv_gib"] = frame["host_kv_gib"].fillna(0.0)
    frame["met"] = (frame["latency_s"] <= 3 * frame["ideal_s"]).astype(float)
    frame["original"] = frame["session_id"].map(original_session)
    return frame


def ratios(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a cell and system: its mean and P99 over those of REFERENCE on the seeds that both have."""
    rows = []
    for place, part in frame.groupby(PLACE):
        for system in part["system"].unique():
            both = pair_sessions(part, REFERENCE, system)
            both = both[both["latency_s_a"].notna() & both["latency_s_b"].notna()]
            if system == REFERENCE or both.empty:
                continue
            originals = pd.factorize(both["original"])[0].astype(np.int64)
            seeds = [np.flatnonzero(both["seed"] == seed) for seed in both["seed"].unique()]
            found: dict[str, Any] = dict(zip(PLACE, place, strict=True))
            found |= {"system": system, "seeds": len(seeds)}
            ours, theirs = (both[f"latency_s_{side}"].to_numpy(float) for side in "ab")
            pairs = [Pairs(theirs[at], ours[at], originals[at]) for at in seeds]
            for name, measure in MEASURES.items():
                ratio = paired(pairs, measure, np.random.default_rng(0))
                if ratio is not None:
                    found |= {
                        name: ratio.value,
                        f"{name}_low": ratio.low,
                        f"{name}_high": ratio.high,
                    }
            rows.append(found)
    return pd.DataFrame(rows)


def collect(runs: Sequence[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables; a cell, system and seed that several runs have counts once."""
    key = [*PLACE, "system", "seed"]
    rows = pd.concat([cells(run) for run in runs], ignore_index=True)
    apart = rows.groupby(key)["mean_s"].agg(["min", "max"])
    if (apart["max"] > apart["min"] * (1 + 1e-9)).any():
        raise SystemExit(f"runs disagree on {apart.index[apart['max'] > apart['min']][0]}")
    frame = pd.concat(
        [sessions(run).assign(run=number) for number, run in enumerate(runs)], ignore_index=True
    )
    first = frame.groupby(key)["run"].transform("min")
    rows = rows.drop_duplicates(key).sort_values(key)
    return rows, ratios(frame[frame["run"] == first])


# --- the page --------------------------------------------------------------------------------------


def means(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a cell and system: means over the seeds that all systems of the cell have, so that rows can be
    held against each other; unstable if most of these are. ``seeds`` counts all that there are.
    """
    key = [*PLACE, "seed"]
    ran = rows.groupby(key)["system"].transform("nunique")
    most = rows.groupby(PLACE)["system"].transform("nunique")
    seeds = rows.groupby([*PLACE, "system"])["seed"].nunique()
    rows = rows[ran == most]
    numbers = ["mean_s", "p99_s", *(f"goodput_{alpha}" for alpha in ALPHAS), "in_time", "unstable"]
    found = rows.groupby([*PLACE, "system"])[numbers].mean()
    found["seeds"] = seeds
    return found.reset_index()


def online(frame: pd.DataFrame) -> pd.DataFrame:
    """Systems but MARS, its ablations and what knows the future."""
    names = frame["system"]
    return frame[~names.str.startswith("mars") & ~names.str.startswith(ORACLE)]


def hidden(names: pd.Series) -> pd.Series:
    """Ablations of MARS, which have a table of their own; the one without its objective is an operator's
    choice like any other.
    """
    return names.str.startswith("mars-") & ~names.isin(CHOICES)


def told(ratio: pd.Series, name: str) -> str:
    """A ratio with its interval, if there are seeds enough for one."""
    value = ratio.get(name, np.nan)
    if pd.isna(value):
        return ""
    if ratio["seeds"] < MIN_SEEDS:
        return f"{value:.2f}"
    return f"{value:.2f} ({ratio[f'{name}_low']:.2f}-{ratio[f'{name}_high']:.2f})"


def place_name(place: Sequence[Any]) -> str:
    workload, host, load = place
    return f"{workload}, {host:g} GiB, load {load:g}"


def headline(rows: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """Where MARS stands against the best other, an operator's limit, stock and the oracle."""
    lines = []
    found = means(rows)
    for place, part in found.groupby(PLACE):
        own = part[part["system"] == REFERENCE]
        if own.empty or online(part).empty:
            continue
        others, own = online(part), own.iloc[0]
        best = others.loc[others["mean_s"].idxmin()]
        goodput = others.loc[others["goodput_3"].idxmax()]
        tail = others.loc[others["p99_s"].idxmin()]
        ratio = pairs[(pairs[PLACE] == list(place)).all(axis=1)].set_index("system")
        line: dict[str, Any] = {
            "cell": place_name(place),
            "mars, s": mark(own),
            "best other": best["system"],
            "its mean / mars": told(ratio.loc[best["system"]], "mean"),
            "mars goodput": round(own["goodput_3"], 1),
            "best other's": f"{goodput['goodput_3']:.1f} {goodput['system']}",
            "mars P99": round(own["p99_s"]),
            "lowest other's": f"{tail['p99_s']:,.0f} {tail['system']}",
        }
        for system in (STATIC, "vllm-priority-tuned", STOCK, ORACLE):
            line[system] = told(ratio.loc[system], "mean") if system in ratio.index else ""
        lines.append(line)
    return table(pd.DataFrame(lines))


def mark(one: pd.Series) -> str:
    """Mean latency; ° where the backlog grew as long as sessions arrived."""
    return f"{one['mean_s']:,.0f}" + ("°" if one["unstable"] > 0.5 else "")


def worth(rows: pd.DataFrame, column: str, decimals: int, *, most: bool = False) -> str:
    """Every system by cell, the best of the last cell first (the least, or with ``most`` the greatest)."""
    found = means(rows)
    found = found[~hidden(found["system"])]
    wide = found.pivot_table(
        index="system", columns=["workload", "host_kv_gib", "load"], values=column
    )
    wide = wide.sort_values(list(wide.columns)[-1], ascending=not most)
    flat = wide.reset_index()
    flat.columns = ["system", *(f"{w[:12]} {h:g}G {x:g}" for w, h, x in wide.columns)]
    return table(flat, decimals)


def cell_tables(rows: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """Every cell in full."""
    parts = []
    for place, part in means(rows).groupby(PLACE):
        ratio = pairs[(pairs[PLACE] == list(place)).all(axis=1)].set_index("system")
        lines = [
            {
                "system": one["system"],
                "seeds": int(one["seeds"]),
                "mean, s": mark(one),
                "mean / mars": told(ratio.loc[one["system"]], "mean")
                if one["system"] in ratio.index
                else "",
                "P99, s": round(one["p99_s"]),
                "P99 / mars": told(ratio.loc[one["system"]], "p99")
                if one["system"] in ratio.index
                else "",
                **{f"goodput {alpha}x": round(one[f"goodput_{alpha}"], 1) for alpha in ALPHAS},
                "in time": f"{one['in_time']:.0%}",
            }
            for _, one in part.sort_values("mean_s").iterrows()
            if not hidden(pd.Series([one["system"]])).all()
        ]
        some = rows[(rows[PLACE] == list(place)).all(axis=1)]
        about = (
            f"{some['rate_per_ks'].mean():.1f} sessions per 1000 s; {int(some['sessions'].max())} sessions a "
            f"seed, {int(some['distinct'].max())} distinct."
        )
        parts.append(f"### {place_name(place)}\n\n{about}\n\n{table(pd.DataFrame(lines))}")
    return "\n\n".join(parts)


def ablations(pairs: pd.DataFrame) -> str:
    """What each part of MARS is worth: mean without it over mean with it."""
    part = pairs[pairs["system"].str.startswith("mars-no-")].copy()
    if part.empty:
        return ""
    part["cell"] = [f"{w[:12]} {h:g}G {x:g}" for w, h, x in part[PLACE].itertuples(index=False)]
    part["shown"] = [told(one, "mean") for _, one in part.iterrows()]
    wide = part.pivot_table(index="system", columns="cell", values="shown", aggfunc="first")
    worth_all = part.groupby("system")["mean"].agg(lambda x: float(np.exp(np.log(x).mean())))
    wide.insert(0, "all cells", worth_all.map("{:.3f}".format))
    return table(wide.fillna("").sort_values("all cells", ascending=False).reset_index())


def page(rows: pd.DataFrame, pairs: pd.DataFrame, front: str) -> str:
    """All of it; ``front`` is DIR/front.md, the words before the tables."""
    sections = {
        "Where MARS stands": headline(rows, pairs),
        "Mean session latency, s": worth(rows, "mean_s", 0),
        "Sessions that end within three times their ideal, share": worth(
            rows, "in_time", 2, most=True
        ),
        "P99 of session latency, s": worth(rows, "p99_s", 0),
        "What each part of MARS is worth": ablations(pairs),
        "Every cell": cell_tables(rows, pairs),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text)
    return f"{front.rstrip()}\n\n{body}\n"


def main() -> int:
    """Read runs or the stored tables, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, required=True, help="folder of the page and its tables")
    args = parser.parse_args()
    missing = [run for run in args.runs if not (run / "summary.json").exists()]
    if missing:
        print(f"{missing[0]}: no summary.json; give finished run folders", file=sys.stderr)
        return 2
    names = [args.out / name for name in ("court.csv", "ratios.csv")]
    if args.runs:
        args.out.mkdir(parents=True, exist_ok=True)
        for path, frame in zip(names, collect(args.runs), strict=True):
            frame.to_csv(path, index=False, float_format="%.5g")
    elif not all(path.exists() for path in names):
        print(f"{args.out}: no tables yet; give run folders", file=sys.stderr)
        return 2
    rows, pairs = (pd.read_csv(path) for path in names)
    front = args.out / "front.md"
    text = page(rows, pairs, front.read_text() if front.exists() else "# The policy court")
    (args.out / "README.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
