"""How much faster is one system than another, and is that more than chance?

Cells of one (workload, profile, engine, tool cores, load, seed) share sessions and arrivals, so
systems are compared on pairs of the same session: in each seed the ratio of the two systems'
numbers, over seeds the geometric mean, with the interval of ``marsbench.report.intervals``. Of runs
that keep no session tables (reference runs), each seed's numbers come from the summary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from marsbench.errors import ConfigError
from marsbench.registry import unknown
from marsbench.report.data import SCENARIO, ReportData
from marsbench.report.intervals import MIN_SEEDS, Ints, Measure, Pairs, Ratio, over_seeds, paired
from marsbench.report.table import number
from marsbench.trace.workload import original_session

SLO_ALPHA = 3.0
HEADLINE = "session_latency_s.mean"
"""The statistic that is also said in words."""
TUNED = "-tuned"


@dataclass(frozen=True, slots=True)
class Statistic:
    """One number of a sample of sessions that two systems are compared by."""

    name: str
    """As in ``summary.json``."""
    words: str
    column: str
    """Of the sessions."""
    measure: Measure
    lower_is_better: bool = True


STATISTICS = (
    Statistic("session_latency_s.mean", "mean session latency", "latency_s", Measure()),
    Statistic("session_latency_s.p50", "median session latency", "latency_s", Measure(50)),
    Statistic("session_latency_s.p95", "p95 session latency", "latency_s", Measure(95)),
    Statistic("session_latency_s.p99", "p99 session latency", "latency_s", Measure(99)),
    Statistic("session_slowdown.mean", "mean session slowdown", "slowdown", Measure()),
    Statistic(
        "slo_attainment.3", "sessions within 3x ideal", "met", Measure(), lower_is_better=False
    ),
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
    """How many times better the system is (above 1 = better), geometric mean over seeds; None if a
    seed has nothing to divide."""
    low: float | None
    high: float | None
    """95 % interval of the ratio."""
    pairs: int | None
    """Sessions that both systems ran; None if only summaries are there."""
    distinct: int | None
    """Different recorded or generated sessions among them, over all seeds; None if unknown."""
    seeds: int
    unpaired: int
    """Sessions left out of the latency pairs because one of the two systems failed them."""
    unstable: tuple[str, ...] = ()
    """Which of the two are past their stability point here: a ratio grows with the run's length."""
    active: float | None = None
    """Agents at once in a closed loop; None elsewhere, and where the run does not say."""

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
        if self.active is not None:
            return f"with {self.active:.0f} agents"
        if self.rate_per_s is None:
            return "in closed loop"
        return f"at {number(3600 * self.rate_per_s)} sessions/hour"

    def sentence(self) -> str:
        """The result in words."""
        if self.ratio is None or self.low is None or self.high is None:
            return (
                f"{self.system} and {self.baseline} cannot be compared in {self.words} {self.where}: "
                f"{self.system_value:.3g} against {self.baseline_value:.3g}"
            )
        if self.unstable:
            names = " and ".join(self.unstable)
            return (
                f"{names} unstable {self.where}: later sessions wait ever longer, so a ratio of "
                f"{self.system} to {self.baseline} would grow with the length of the run"
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
    """Every system of the data against the baseline (default: the run's first system, as tuned if
    the run has that), at every load.
    """
    systems = data.systems
    if len(systems) < 2:
        raise ConfigError(
            f"only one system ({systems[0]}) in {_names(data)}: run at least two, or give two runs"
        )
    if baseline is None:
        baseline = default_baseline(systems)
    if baseline not in systems:
        raise unknown("baseline", baseline, systems)
    pairs = [(system, baseline) for system in systems if system != baseline]
    return _compare(data, pairs, seed)


def default_baseline(systems: Sequence[str]) -> str:
    """The first system the user named, in its tuned variant if that was run too."""
    first, _, run = systems[0].partition(" @ ")
    tuned = f"{first}{TUNED}" + (f" @ {run}" if run else "")
    return tuned if tuned in systems else systems[0]


def compare_runs(data: ReportData, *, seed: int = 0) -> list[Comparison]:
    """Each system of the second run against the same system of the first; if the runs have one
    system each, those two. ``data`` holds exactly two runs.
    """
    first, second = (data.cells.loc[data.cells["run"] == run, "system"].unique() for run in (0, 1))
    before = {str(name).partition(" @ ")[0]: str(name) for name in first}
    after = {str(name).partition(" @ ")[0]: str(name) for name in second}
    pairs = [(after[name], before[name]) for name in after if name in before]
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
    sessions = _sessions(data) if data.has_sessions else None
    for place, cells in _places(data.cells):
        here = None
        if sessions is not None:
            here = sessions.merge(cells[["run", "cell"]], on=["run", "cell"])
        shaky = data.unstable(cells)
        for system, baseline in pairs:
            sides = (system, baseline)
            where = {**place, "unstable": tuple(name for name in sides if name in shaky)}
            if here is None:
                found += _of_summaries(where, sides, cells)
            else:
                found += _of_sessions(where, sides, here, seed)
    if not found:
        raise ConfigError(
            f"no session ran under both sides of {_names(data)}: "
            "compare runs with the same workload, profile, load and seeds"
        )
    return found


def _sessions(data: ReportData) -> pd.DataFrame:
    """Sessions with what statistics are made of, and the original that each one replays."""
    sessions = data.sessions()
    met = sessions["latency_s"] <= SLO_ALPHA * sessions["ideal_s"]
    sessions["met"] = met.astype(float).where(sessions["ideal_s"].notna())
    sessions["original"] = sessions["session_id"].map(original_session)
    return sessions


def _places(cells: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Cells by everything but system and seed. Arrival rates of one load differ in nothing."""
    by = [*SCENARIO, "load" if cells["load"].notna().all() else "rate_per_s", "active"]
    for _, frame in cells.groupby(by, sort=True, dropna=False):
        first = frame.iloc[0]
        place = {name: first[name] for name in SCENARIO}
        place["tool_cores"] = int(place["tool_cores"])
        for name in ("load", "rate_per_s", "active"):
            place[name] = None if np.isnan(first[name]) else float(first[name])
        yield place, frame


def pair_sessions(frame: pd.DataFrame, system: str, baseline: str) -> pd.DataFrame:
    """Rows of sessions both systems ran; ``_a`` = system, ``_b`` = baseline."""
    sides = []
    for name in (system, baseline):
        side = frame.loc[frame["system"] == name].copy()
        # one session may be drawn more than once for a cell: pair them in order of arrival
        side = side.sort_values(["seed", "session_id", "arrival_s"], kind="stable")
        side["copy"] = side.groupby(["seed", "session_id"]).cumcount()
        sides.append(side[["seed", "session_id", "copy", "original", *_COLUMNS]])
    by = ["seed", "session_id", "copy", "original"]
    return sides[0].merge(sides[1], on=by, suffixes=("_a", "_b"))


_COLUMNS = tuple(dict.fromkeys(statistic.column for statistic in STATISTICS))


def _of_sessions(
    where: Mapping[str, Any], sides: tuple[str, str], frame: pd.DataFrame, seed: int
) -> Iterator[Comparison]:
    rows = pair_sessions(frame, *sides)
    originals: Ints = pd.factorize(rows["original"])[0].astype(np.int64)
    by_seed = [np.flatnonzero(rows["seed"] == seed) for seed in rows["seed"].unique()]
    for statistic in STATISTICS:
        ours, theirs = (rows[f"{statistic.column}_{side}"].to_numpy(float) for side in "ab")
        known = ~np.isnan(ours) & ~np.isnan(theirs)
        if not known.any():
            continue
        better, worse = (theirs, ours) if statistic.lower_is_better else (ours, theirs)
        parts = [part[known[part]] for part in by_seed if known[part].any()]
        of = statistic.measure.of
        yield _comparison(
            where,
            sides,
            statistic,
            paired(
                [Pairs(better[part], worse[part], originals[part]) for part in parts],
                statistic.measure,
                np.random.default_rng(seed),
            ),
            values=tuple(float(np.mean([of(side[p]) for p in parts])) for side in (ours, theirs)),
            seeds=len(parts),
            pairs=int(known.sum()),
            distinct=len(np.unique(originals[known])),
            unpaired=len(rows) - int(known.sum()),
        )


def _of_summaries(
    where: Mapping[str, Any], sides: tuple[str, str], cells: pd.DataFrame
) -> Iterator[Comparison]:
    """From each seed's numbers alone; sessions that failed under one side only are not left out."""
    frames = [cells[cells["system"] == name].set_index("seed") for name in sides]
    common = frames[0].index.intersection(frames[1].index)
    for statistic in STATISTICS:
        ours, theirs = (
            pd.to_numeric(frame.loc[common, statistic.name]).to_numpy(float) for frame in frames
        )
        if not len(common) or np.isnan([ours, theirs]).any():
            continue
        better, worse = (theirs, ours) if statistic.lower_is_better else (ours, theirs)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = over_seeds(np.log(better) - np.log(worse))
        means = (float(ours.mean()), float(theirs.mean()))
        yield _comparison(where, sides, statistic, ratio, values=means, seeds=len(common))


def _comparison(
    where: Mapping[str, Any],
    sides: tuple[str, str],
    statistic: Statistic,
    ratio: Ratio | None,
    *,
    values: tuple[float, ...],
    seeds: int,
    pairs: int | None = None,
    distinct: int | None = None,
    unpaired: int = 0,
) -> Comparison:
    return Comparison(
        **where,
        system=sides[0],
        baseline=sides[1],
        statistic=statistic.name,
        words=statistic.words,
        system_value=values[0],
        baseline_value=values[1],
        ratio=None if ratio is None else ratio.value,
        low=None if ratio is None else ratio.low,
        high=None if ratio is None else ratio.high,
        pairs=pairs,
        distinct=distinct,
        seeds=seeds,
        unpaired=unpaired,
    )


def warnings_of(found: Sequence[Comparison]) -> list[str]:
    """What a reader must know before quoting the comparison."""
    notes: list[str] = []
    seeds = min(entry.seeds for entry in found)
    if seeds < MIN_SEEDS:
        notes.append(
            f"{seeds} seed{'s' if seeds > 1 else ''} only: the intervals do not cover variation "
            f"between arrivals; run with --seeds {MIN_SEEDS} or more"
        )
    repeated = [e for e in found if e.distinct is not None and e.distinct < (e.pairs or 0)]
    if repeated:
        least = min(repeated, key=lambda entry: entry.distinct or 0)
        notes.append(
            f"{least.pairs} pairs replay {least.distinct} distinct sessions: the intervals count "
            "those, not the pairs"
        )
    shaky = {(name, entry.where): None for entry in found for name in entry.unstable}
    if shaky:
        places = ", ".join(f"{name} {where}" for name, where in shaky)
        notes.append(
            f"unstable: {places}; ratios there grow with the number of sessions and are not to be quoted"
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
    header += ["value", "baseline", "ratio", "95 %", "pairs", "distinct", "seeds", "note"]
    rows = []
    for entry in found:
        load = f"{entry.load:g}" if entry.load is not None else "closed"
        if entry.load is None and entry.rate_per_s is not None:
            load = f"{number(3600 * entry.rate_per_s)}/h"
        elif entry.active is not None:
            load = f"{entry.active:.0f} agents"
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
                "-" if entry.pairs is None else str(entry.pairs),
                "-" if entry.distinct is None else str(entry.distinct),
                str(entry.seeds),
                "unstable" if entry.unstable else "",
            ]
        )
    return header, rows


NUM_TEXT = 5
