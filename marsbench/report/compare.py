"""How much faster is one system than another, and is that more than chance?

Cells of one (workload, profile, engine, tool cores, load, seed) share sessions and arrivals, so
systems are compared on pairs of the same session. Intervals are 95 % percentile bootstrap over
pairs: sessions are drawn with replacement within each seed and, with three seeds or more, seeds
are drawn first (a hierarchical bootstrap), since sessions of one run are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from marsbench.errors import ConfigError
from marsbench.registry import unknown
from marsbench.report.data import MIN_SEEDS, SCENARIO, ReportData
from marsbench.report.style import in_order
from marsbench.report.table import number

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

RESAMPLES = 2000
MAX_DRAWN = 2_000_000
"""Pairs drawn at a time: bounds memory."""
CONFIDENCE = 0.95
SLO_ALPHA = 3.0
HEADLINE = "session_latency_s.mean"
"""The statistic that is also said in words."""
BASELINES = ("vllm-tuned", "vllm")
"""Preferred baselines when none is named: the strongest stock system in the run."""


@dataclass(frozen=True, slots=True)
class Statistic:
    """One number of a sample of sessions that two systems are compared by."""

    name: str
    words: str
    column: str
    compute: Callable[[Floats], Floats]
    """Over the last axis."""
    lower_is_better: bool = True


def _mean(values: Floats) -> Floats:
    result: Floats = np.mean(values, axis=-1)
    return result


def _percentile(percent: float) -> Callable[[Floats], Floats]:
    def compute(values: Floats) -> Floats:
        result: Floats = np.percentile(values, percent, axis=-1)
        return result

    return compute


STATISTICS = (
    Statistic("session_latency_s.mean", "mean session latency", "latency_s", _mean),
    Statistic("session_latency_s.p50", "median session latency", "latency_s", _percentile(50)),
    Statistic("session_latency_s.p95", "p95 session latency", "latency_s", _percentile(95)),
    Statistic("session_latency_s.p99", "p99 session latency", "latency_s", _percentile(99)),
    Statistic("session_slowdown.mean", "mean session slowdown", "slowdown", _mean),
    Statistic("slo_attainment.3", "sessions within 3x ideal", "met", _mean, lower_is_better=False),
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One statistic of one system against the baseline at one load."""

    workload: str
    profile: str
    engine: str
    tool_cores: int
    load: float | None
    rate_per_s: float | None
    system: str
    baseline: str
    statistic: str
    words: str
    system_value: float
    baseline_value: float
    ratio: float | None
    """How many times better the system is (above 1 = better); None if the denominator is 0."""
    low: float | None
    high: float | None
    """95 % interval of the ratio."""
    pairs: int
    seeds: int
    unpaired: int
    """Sessions left out of the latency pairs because one of the two systems failed them."""

    @property
    def significant(self) -> bool:
        """The interval does not include 1."""
        return self.low is not None and self.high is not None and (self.low > 1 or self.high < 1)

    @property
    def scenario(self) -> str:
        """What was run, in words."""
        cores = self.tool_cores or "unlimited"
        return f"{self.workload} on {self.profile} ({self.engine}, {cores} tool cores)"

    @property
    def where(self) -> str:
        """The load in words."""
        if self.load is not None:
            return f"at load {self.load:g}"
        return "in closed loop" if self.rate_per_s is None else f"at {self.rate_per_s:g} sessions/s"

    def sentence(self) -> str:
        """The result in words."""
        if self.ratio is None or self.low is None or self.high is None:
            return (
                f"{self.system} and {self.baseline} cannot be compared in {self.words} {self.where}: "
                f"{self.system_value:.3g} against {self.baseline_value:.3g}"
            )
        better, worse = ("faster", "slower") if "latency" in self.words else ("better", "worse")
        if not self.significant:
            return (
                f"no difference shown between {self.system} and {self.baseline} in {self.words} "
                f"{self.where}: {_times(self.ratio, self.low, self.high)} includes 1"
            )
        if self.ratio >= 1:
            text, word = _times(self.ratio, self.low, self.high), better
        else:
            text, word = _times(1 / self.ratio, 1 / self.high, 1 / self.low), worse
        return f"{self.system} is {text} {word} in {self.words} than {self.baseline} {self.where}"

    def to_json(self) -> dict[str, Any]:
        """All fields, ``significant`` and ``sentence``."""
        return {**asdict(self), "significant": self.significant, "sentence": self.sentence()}


def _times(ratio: float, low: float, high: float) -> str:
    digits = 2 if ratio < 1.995 else 1
    return f"{ratio:.{digits}f}x ({low:.{digits}f}–{high:.{digits}f})"


def compare_systems(
    data: ReportData, baseline: str | None = None, *, seed: int = 0
) -> list[Comparison]:
    """Every system of the data against the baseline, at every load."""
    systems = in_order(data.systems)
    if len(systems) < 2:
        raise ConfigError(
            f"only one system ({systems[0]}) in {_names(data)}: run at least two, or give two runs"
        )
    if baseline is None:
        baseline = next((name for name in BASELINES if name in systems), systems[-1])
    if baseline not in systems:
        raise unknown("baseline", baseline, systems)
    pairs = [(system, baseline) for system in systems if system != baseline]
    return _compare(data, pairs, seed)


def compare_runs(data: ReportData, *, seed: int = 0) -> list[Comparison]:
    """Each system of the second run against the same system of the first; if the runs have one
    system each, those two. ``data`` holds exactly two runs.
    """
    first, second = (data.cells.loc[data.cells["run"] == run, "system"].unique() for run in (0, 1))
    before = {str(name).partition(" @ ")[0]: str(name) for name in first}
    after = {str(name).partition(" @ ")[0]: str(name) for name in second}
    shared = in_order(set(before) & set(after))
    pairs = [(after[name], before[name]) for name in shared]
    if not pairs and len(before) == len(after) == 1:
        pairs = [(next(iter(after.values())), next(iter(before.values())))]
    if not pairs:
        raise ConfigError(
            f"the two runs share no system ({', '.join(before)} against {', '.join(after)}): "
            "compare runs of the same systems, or with one system each"
        )
    return _compare(data, pairs, seed)


def _names(data: ReportData) -> str:
    return ", ".join(str(path) for path in data.paths)


def _compare(data: ReportData, pairs: Sequence[tuple[str, str]], seed: int) -> list[Comparison]:
    found: list[Comparison] = []
    sessions = data.sessions()
    slo = sessions["latency_s"] <= SLO_ALPHA * sessions["ideal_s"]
    sessions["met"] = slo.astype(float).where(sessions["ideal_s"].notna())
    for place, frame in _places(sessions):
        for system, baseline in pairs:
            paired = _pair(frame, system, baseline)
            if len(paired):
                found += _statistics(place, system, baseline, paired, seed)
    if not found:
        raise ConfigError(
            f"no session ran under both sides of {_names(data)}: "
            "compare runs with the same workload, profile, load and seeds"
        )
    return found


def _places(sessions: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Sessions by everything but system and seed. Arrival rates of one load differ in nothing."""
    by = [*SCENARIO, "load" if sessions["load"].notna().all() else "rate_per_s"]
    for _, frame in sessions.groupby(by, sort=True, dropna=False):
        first = frame.iloc[0]
        place = {name: first[name] for name in SCENARIO}
        place["tool_cores"] = int(place["tool_cores"])
        for name in ("load", "rate_per_s"):
            place[name] = None if np.isnan(first[name]) else float(first[name])
        yield place, frame


def _pair(frame: pd.DataFrame, system: str, baseline: str) -> pd.DataFrame:
    """Rows of sessions both systems ran; ``_a`` = system, ``_b`` = baseline."""
    sides = []
    for name in (system, baseline):
        side = frame.loc[frame["system"] == name].copy()
        # one session may be drawn more than once for a cell: pair them in order of arrival
        side = side.sort_values(["seed", "session_id", "arrival_s"], kind="stable")
        side["copy"] = side.groupby(["seed", "session_id"]).cumcount()
        sides.append(side[["seed", "session_id", "copy", "latency_s", "slowdown", "met"]])
    return sides[0].merge(sides[1], on=["seed", "session_id", "copy"], suffixes=("_a", "_b"))


def _statistics(
    place: dict[str, Any], system: str, baseline: str, paired: pd.DataFrame, seed: int
) -> Iterator[Comparison]:
    for column in dict.fromkeys(statistic.column for statistic in STATISTICS):
        sides = [f"{column}_a", f"{column}_b"]
        known = paired.dropna(subset=sides).sort_values("seed", kind="stable")
        if not len(known):
            continue
        sizes: Ints = np.unique(known["seed"].to_numpy(), return_counts=True)[1].astype(np.int64)
        values = known[sides].to_numpy().T
        chosen = [statistic for statistic in STATISTICS if statistic.column == column]
        draws = _bootstrap(values, sizes, chosen, np.random.default_rng(seed))
        for statistic, (ours, theirs) in zip(chosen, draws, strict=True):
            a, b = statistic.compute(values)
            low, high = _interval(_ratio(statistic, ours, theirs))
            ratio = float(_ratio(statistic, a, b))
            defined = bool(np.isfinite([ratio, low, high]).all())
            yield Comparison(
                **place,
                system=system,
                baseline=baseline,
                statistic=statistic.name,
                words=statistic.words,
                system_value=float(a),
                baseline_value=float(b),
                ratio=ratio if defined else None,
                low=low if defined else None,
                high=high if defined else None,
                pairs=len(known),
                seeds=len(sizes),
                unpaired=len(paired) - len(known),
            )


def _ratio(statistic: Statistic, ours: Floats, theirs: Floats) -> Floats:
    top, bottom = (theirs, ours) if statistic.lower_is_better else (ours, theirs)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(top, bottom)


def _bootstrap(
    values: Floats, sizes: Ints, statistics: Sequence[Statistic], rng: np.random.Generator
) -> list[Floats]:
    """(2, RESAMPLES) values per statistic. ``values`` = (2, pairs), sorted by seed."""
    chunks: list[list[Floats]] = [[] for _ in statistics]
    step = max(1, min(RESAMPLES, MAX_DRAWN // values.shape[1]))
    for start in range(0, RESAMPLES, step):
        picks = _picks(sizes, min(step, RESAMPLES - start), rng)
        sample = values[:, picks]
        for chunk, statistic in zip(chunks, statistics, strict=True):
            chunk.append(statistic.compute(sample))
    return [np.concatenate(chunk, axis=1) for chunk in chunks]


def _picks(sizes: Ints, rows: int, rng: np.random.Generator) -> Ints:
    """Rows of indices of pairs. From MIN_SEEDS seeds on, each row draws seeds first and then the
    mean number of pairs from each of them; below, every seed keeps its own pairs.
    """
    starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    if len(sizes) < MIN_SEEDS:
        within = [rng.integers(size, size=(rows, size)) for size in sizes]
        return np.concatenate([s + w for s, w in zip(starts, within, strict=True)], axis=1)
    seeds = rng.integers(len(sizes), size=(rows, len(sizes), 1))
    share = rng.random((rows, len(sizes), max(1, round(float(sizes.mean())))))
    picks: Ints = starts[seeds] + (share * sizes[seeds]).astype(np.int64)
    return picks.reshape(rows, -1)


def _interval(draws: Floats) -> tuple[float, float]:
    """Percentile interval; NaN if any draw is undefined (a side without a single success)."""
    if not np.isfinite(draws).all():
        return float("nan"), float("nan")
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)


def warnings_of(found: Sequence[Comparison]) -> list[str]:
    """What a reader must know before quoting the comparison."""
    notes: list[str] = []
    seeds = min(entry.seeds for entry in found)
    if seeds < MIN_SEEDS:
        notes.append(
            f"{seeds} seed{'s' if seeds > 1 else ''} only: the intervals do not cover variation "
            f"between arrivals; run with --seeds {MIN_SEEDS} or more"
        )
    unsure = [entry for entry in found if not entry.significant]
    if unsure:
        notes.append(
            f"{len(unsure)} of {len(found)} intervals include 1: no difference is shown there"
        )
    failed = max(entry.unpaired for entry in found)
    if failed:
        notes.append(
            f"up to {failed} sessions a comparison failed under one side and are in no latency pair; "
            "they count as misses in the SLO rows"
        )
    return notes


def comparison_rows(found: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """Heading and rows of the printed table; the first NUM_TEXT columns are text."""
    header = ["workload", "load", "system", "against", "statistic"]
    header += ["value", "baseline", "ratio", "95 %", "pairs"]
    rows = []
    for entry in found:
        load = f"{entry.load:g}" if entry.load is not None else "closed"
        if entry.load is None and entry.rate_per_s is not None:
            load = f"{entry.rate_per_s:g}/s"
        known = entry.ratio is not None
        rows.append(
            [
                entry.workload,
                load,
                entry.system,
                entry.baseline,
                entry.statistic,
                number(entry.system_value),
                number(entry.baseline_value),
                f"{entry.ratio:.2f}x" if known else "-",
                f"{entry.low:.2f}–{entry.high:.2f}" if known else "-",
                str(entry.pairs),
            ]
        )
    return header, rows


NUM_TEXT = 5
