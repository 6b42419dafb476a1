"""The claims, one by one: what is asked for, what was measured, and which cells decide it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from marsbench.experiment.study import load_study
from marsbench.report.factors import CELL, SCARCE, Factors, best_other, geomean

ORACLE = "oracle-best"
"""The best of some clairvoyant plans: what a scheduler that knew the future would reach at least."""
HEAVY = 0.8
"""Load from which systems are under pressure."""
TIE = 0.0005
"""Ratios are compared to three decimals."""
STUDY = load_study("mars")
"""What MARS's paper reports, with its sources."""
PARTS = {
    "mars-no-coordinator": "priority coordinator",
    "mars-no-control-plane": "control plane",
    "mars-no-retention": "adaptive retention",
}
"""Ablations by the part that they take away."""


@dataclass(frozen=True)
class Check:
    """One claim."""

    claim: str
    target: str
    measured: str
    verdict: str
    """"pass", "fail" or "in part"."""
    cells: int
    sessions: str
    """A cell's, and how many of them are distinct."""
    decided_by: str
    """The cell that is worst for the claim (best, where one cell is enough)."""


def place(row: pd.Series) -> str:
    """A cell in a few words."""
    profile = str(row["profile"]).split("/")
    gpu, model = profile[0].split("-")[0], profile[-1].split("-")[0]
    return f"{row['workload']} {gpu}/{model} {row['tool_cores']}c {row['load']:g}"


def at(row: pd.Series, column: str = "mean_s_ratio", *, system: bool = True) -> str:
    """A cell and its number."""
    who = f" ({row['system']})" if system else ""
    return f"{place(row)}: {row[column]:.3f}{who}"


def lowest(part: pd.DataFrame, column: str = "mean_s_ratio") -> pd.Series:
    """The row where a column is lowest; infinities do not count."""
    return part.iloc[int(part[column].replace(np.inf, np.nan).reset_index(drop=True).idxmin())]


def highest(part: pd.DataFrame, column: str = "mean_s_ratio") -> pd.Series:
    """The row where a column is highest; infinities do not count."""
    return part.iloc[int(part[column].replace(np.inf, np.nan).reset_index(drop=True).idxmax())]


def published(rows: pd.DataFrame) -> pd.Series:
    """With its authors' parameters: not tuned by us."""
    return ~rows["system"].str.endswith("-tuned")


def told(pairs: Factors, part: pd.DataFrame) -> str:
    """Geometric mean of the ratio of mean latencies, with its interval over seeds."""
    found = pairs.interval(part)
    interval = f" [{found[0]:.2f}, {found[1]:.2f}]" if found else ""
    shaky = int((part["unstable"] > 0.5).sum())
    note = f" (the other is unstable in {shaky} of {len(part)})" if shaky else ""
    return f"{geomean(part['mean_s_ratio']):.2f}x{interval}{note}"


def bound(pairs: Factors, part: pd.DataFrame) -> str:
    """What the oracle makes of the same ratios, in brackets; nothing where it did not run."""
    oracles = pairs.rows[pairs.rows["system"] == ORACLE]
    both = part.merge(oracles, on=CELL)
    if not len(both):
        return ""
    return f" (the oracle {geomean(both['mean_s_ratio_x'] / both['mean_s_ratio_y']):.2f}x)"


def extent(part: pd.DataFrame) -> tuple[int, str]:
    """How many cells decide a claim, and of how many sessions, fewest distinct ones said."""
    least, most = int(part["sessions"].min()), int(part["sessions"].max())
    sessions = f"{least}" if least == most else f"{least}-{most}"
    known = part["distinct"].notna().all()
    distinct = f"{int(part['distinct'].min())} distinct" if known else "distinct not recorded"
    return len(part), f"{sessions}, {distinct}"


def verdict(holds: bool) -> str:
    """In a word."""
    return "pass" if holds else "fail"


def checks(pairs: Factors) -> list[Check]:
    """Every claim that these runs can decide."""
    return [
        *stock(pairs),
        *static(pairs),
        *others(pairs),
        *oracle(pairs),
        *scarce(pairs),
        *paper(pairs),
        *ablations(pairs),
    ]


def stock(pairs: Factors) -> Iterator[Check]:
    """Against the best stock vLLM."""
    part = pairs.rows[(pairs.rows["system"] == "vllm-tuned") & pairs.rows["load"].between(0.5, 1.2)]
    if not len(part):
        return
    top = highest(part)
    low = lowest(part)
    yield Check(
        "mean latency below vllm-tuned, loads 0.5-1.2, geometric mean", ">= 5.94x",
        told(pairs, part), verdict(geomean(part["mean_s_ratio"]) >= 5.94), *extent(part),
        f"lowest {at(low, system=False)}",
    )  # fmt: skip
    pooled = geomean(part["mean_s"] / part["mean_s_subject"])
    yield Check(
        "the same, latencies averaged over seeds before the ratio", ">= 5.94x",
        f"{pooled:.2f}x", verdict(pooled >= 5.94), *extent(part), "",
    )  # fmt: skip
    yield Check(
        "mean latency below vllm-tuned at some load", ">= 10x", f"{top['mean_s_ratio']:.2f}x",
        verdict(top["mean_s_ratio"] >= 10), *extent(part), f"highest {at(top, system=False)}",
    )  # fmt: skip


def static(pairs: Factors) -> Iterator[Check]:
    """Against the best fixed window of each cell, known with hindsight."""
    part = pairs.rows[(pairs.rows["system"] == "static-best") & (pairs.rows["load"] >= 0.7)]
    if not len(part):
        return
    ratio = part["mean_s_ratio"]
    better, worse = (ratio > 1 + TIE).sum(), (ratio < 1 - TIE).sum()
    yield Check(
        "better than the best static window chosen with hindsight, load >= 0.7", "every cell",
        f"better in {better}, equal in {len(part) - better - worse}, worse in {worse}; "
        f"{told(pairs, part)}",
        verdict(better == len(part)) if worse else "pass" if better == len(part) else "in part",
        *extent(part), f"worst {at(lowest(part), system=False)}",
    )  # fmt: skip


def others(pairs: Factors) -> Iterator[Check]:
    """Against the best other online system of each cell."""
    best = best_other(pairs.rows)
    if not len(best):
        return
    untuned = best_other(pairs.rows[published(pairs.rows)])
    among = [
        ("tuned variants counted", best),
        *([("as published", untuned)] if len(untuned) else []),
    ]
    for words, part in among:
        ratio = part["mean_s_ratio"]
        worst = f"worst {at(lowest(part))}"
        first = (ratio >= 1 - TIE).mean()
        yield Check(
            f"best mean latency of all online systems, {words} (ties count)", ">= 90 % of cells",
            f"{first:.0%}; alone in {(ratio > 1 + TIE).mean():.0%}", verdict(first >= 0.9),
            *extent(part), worst,
        )  # fmt: skip
        yield Check(
            f"never more than 2 % worse than the best other, {words}", "every cell",
            f"{(ratio >= 0.98).sum()} of {len(part)}", verdict(ratio.min() >= 0.98), *extent(part),
            worst,
        )  # fmt: skip
    for words, part in among:
        heavy = part[part["load"] >= HEAVY]
        if len(heavy):
            yield Check(
                f"mean latency below the best other, {words}, load >= {HEAVY}, geometric mean",
                ">= 1.25x", f"{told(pairs, heavy)}{bound(pairs, heavy)}",
                verdict(geomean(heavy["mean_s_ratio"]) >= 1.25), *extent(heavy),
                f"worst {at(lowest(heavy))}",
            )  # fmt: skip
    yield from tails(best, pairs.rows[pairs.rows["online"]])


def tails(best: pd.DataFrame, online: pd.DataFrame) -> Iterator[Check]:
    """P99 and throughput."""
    least = online.loc[online.groupby(["workload", "profile", "tool_cores", "sessions", "load"])
                        ["p99_s_ratio"].idxmin()]  # fmt: skip
    for words, part in (("the best other's", best), ("the lowest of any online system", least)):
        ratio = part["p99_s_ratio"]
        holds = ratio >= 1 - TIE
        yield Check(
            f"P99 no worse than {words}", "every cell",
            f"{holds.mean():.0%} of cells; {geomean(ratio):.2f}x", verdict(bool(holds.all())),
            *extent(part), f"worst {at(lowest(part, 'p99_s_ratio'), 'p99_s_ratio')}",
        )  # fmt: skip
    low = lowest(online, "throughput_share")
    yield Check(
        "throughput of the best online system's", ">= 97 %", f"{low['throughput_share']:.1%}",
        verdict(low["throughput_share"] >= 0.97), *extent(best),
        f"lowest {at(low, 'throughput_share')}",
    )  # fmt: skip


def oracle(pairs: Factors) -> Iterator[Check]:
    """How far from a system that knows the future."""
    everywhere = pairs.rows[pairs.rows["system"] == ORACLE]
    part = everywhere[everywhere["load"] <= 0.9]
    if not len(part):
        return
    gap = 1 / part["mean_s_ratio"]
    row = lowest(part)
    yield Check(
        "mean latency within 20 % of the oracle, load <= 0.9", "every cell",
        f"{(gap <= 1.2).sum()} of {len(part)}; mean latency {geomean(gap):.2f} of the oracle's",
        verdict(gap.max() <= 1.2), *extent(part), f"worst {place(row)}: {gap.max():.2f}",
    )  # fmt: skip


def scarce(pairs: Factors) -> Iterator[Check]:
    """Where tools wait for cores."""
    rows = pairs.rows[pairs.rows["demand"] >= SCARCE]
    best = best_other(rows)
    if not len(best):
        return
    low = lowest(best)
    share = f"{best['demand'].min():.2f}-{best['demand'].max():.2f}"
    yield Check(
        f"mean latency below the best system blind to the CPU, tools needing {share} of their cores "
        "at load 1.0", ">= 1.5x", f"{told(pairs, best)}{bound(pairs, best)}",
        verdict(geomean(best["mean_s_ratio"]) >= 1.5), *extent(best), f"worst {at(low)}",
    )  # fmt: skip


def paper(pairs: Factors) -> Iterator[Check]:
    """The paper's factors, over every baseline as published, in every cell."""
    rows = pairs.rows[pairs.rows["online"] & published(pairs.rows)]
    for claim in (one for one in STUDY.published if one.part == "main"):
        assert claim.low is not None
        column, low, high = f"{claim.measure}_ratio", claim.low, claim.high
        words = claim.claim.removesuffix(" over each baseline")
        part = rows[rows[column].notna()]
        if not np.isfinite(part[column]).any():
            continue
        reached = part[column] >= low
        systems = part.groupby("system")[column].max() >= low
        top = highest(part, column)
        state = "pass" if reached.all() else "in part" if reached.any() else "fail"
        yield Check(
            f"paper: {words} over each baseline as published", f"{low}-{high}x",
            f"geometric mean {geomean(part[column]):.2f}x; >= {low}x in {reached.mean():.0%} of "
            f"cells x systems, somewhere for {systems.sum()} of {len(systems)} systems",
            state, *extent(part), f"highest {at(top, column)}",
        )  # fmt: skip


def ablations(pairs: Factors) -> Iterator[Check]:
    """What the parts give."""
    ranges = {one.over: one for one in STUDY.published if one.part == "ablations"}
    for system, words in PARTS.items():
        claim = ranges[(system,)]
        assert claim.low is not None
        low, high = claim.low, claim.high
        part = pairs.rows[pairs.rows["system"] == system]
        if not len(part):
            continue
        found = geomean(part["mean_s_ratio"])
        top = highest(part)
        state = "pass" if found >= low else "in part" if top["mean_s_ratio"] >= low else "fail"
        yield Check(
            f"paper: what the {words} gives", f"{low}-{high}x", told(pairs, part), state, *extent(part),
            f"highest {at(top, system=False)}",
        )  # fmt: skip
