"""Has a change made agents slower? A run against a reference, metric by metric, cell by cell.

A row is one metric of one system at one load. Seeds that both sides ran with the same number of
sessions are pairs; where there are none, the two sides are independent samples (Welch). A virtual
engine repeats to the byte, so there a change is real whatever its interval, and the interval says
what it would be on other arrivals. On a live engine a change counts if it is more than chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from marsbench.errors import ConfigError
from marsbench.metrics import catalogue
from marsbench.registry import unknown
from marsbench.report.intervals import Floats, Ratio, over_seeds, unpaired
from marsbench.runfolder import read_summary

DEFAULT_TOLERANCE = 0.05
WATCHED = (
    "session_latency_s.mean", "session_latency_s.p95", "session_slowdown.mean",
    "session_goodput_per_s.3", "slo_attainment.3", "sessions_per_s", "ttft_s.mean",
    "prefix_cache_hit_rate", "failed",
)  # fmt: skip
"""Metrics that are compared unless others are asked for."""
KEY = (
    "workload",
    "profile",
    "engine",
    "tool_cores",
    "host_kv_gib",
    "replicas",
    "load",
    "rate_per_s",
    "active",
    "system",
)
"""What makes two cells the same, but for the seed; a load is the same whatever rate it was."""
ROUNDING = 1e-9


class CheckOutcome(StrEnum):
    """How a row went."""

    SAME = "same"
    BETTER = "better"
    WORSE = "WORSE"
    CHANGED = "CHANGED"
    """By less than the tolerance or for the better, where nothing may change."""
    UNSURE = "unsure"
    """Worse by more than the tolerance, but no more than chance would make it on a live engine."""
    MISSING = "MISSING"
    """The reference has it and the run does not."""

    @property
    def fails(self) -> bool:
        """Whether the check fails by it."""
        return self in {CheckOutcome.WORSE, CheckOutcome.CHANGED, CheckOutcome.MISSING}


@dataclass(frozen=True, slots=True)
class CheckedMetric:
    """One metric of one cell, over its seeds."""

    cell: str
    system: str
    metric: str
    outcome: CheckOutcome
    reference: float | None
    value: float | None
    change: float | None
    """How much worse (above 0) or better, as a share of the reference; None: it was 0 or missing."""
    low: float | None
    high: float | None
    """95 % interval of the change."""
    detectable: float | None
    """The smallest change that 80 of 100 such comparisons on other arrivals would show."""
    tolerance: float
    seeds: int
    paired: bool

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def check(
    run: Path, reference: Path, tolerances: Mapping[str, float], *, exact: bool = False
) -> list[CheckedMetric]:
    """Every watched metric of every cell of the reference, worst change first.

    ``tolerances``: of each metric. ``exact``: any difference fails, better or worse, since a result
    of a virtual engine changes only if somebody changed it.
    """
    before, after = _grouped(reference), _grouped(run)
    if not set(before) & set(after):
        raise ConfigError(
            f"{run} and {reference} have no cell in common: check runs of one experiment "
            "(workload, profile, engine, tool cores, load, system)"
        )
    rows = [
        _row(key, metric, tolerance, cells, after.get(key, {}), exact=exact)
        for key, cells in before.items()
        for metric, tolerance in tolerances.items()
        if _known(cells, metric)
    ]
    severity = list(CheckOutcome)[::-1]
    return sorted(rows, key=lambda row: (severity.index(row.outcome), -(row.change or 0.0)))


def tolerances_of(given: Sequence[str]) -> dict[str, float]:
    """Metric -> tolerance, from texts such as ``5%`` (of all), ``ttft_s.mean=10%`` or ``ttft_s=0.1``."""
    found = dict.fromkeys(WATCHED, DEFAULT_TOLERANCE)
    for text in given:
        name, equals, amount = text.rpartition("=")
        share = _share(amount, text)
        if not equals:
            found = dict.fromkeys(found, share)
            continue
        parts = [metric for metric in found if metric == name or metric.startswith(f"{name}.")]
        if not parts:
            _check_name(name)
        found |= dict.fromkeys(parts or [name], share)
    return found


def _share(amount: str, text: str) -> float:
    try:
        share = float(amount.removesuffix("%")) / (100 if amount.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < np.inf:
        raise ConfigError(
            f"--tolerance {text}: expected METRIC=5% or 5%, a share that is not negative"
        )
    return share


def _check_name(name: str) -> None:
    names = {metric.name for metric in catalogue()} | {"failed"}
    if name.partition(".")[0] not in names:
        raise unknown("metric", name, names)
    if _direction(name) == "neither":
        raise ConfigError(f"--tolerance {name}: this metric is neither better high nor low")


def _direction(metric: str) -> str:
    found = {m.name: str(m.better) for m in catalogue()} | {"failed": "lower"}
    return found[metric.partition(".")[0]]


Cells = Mapping[int, Mapping[str, Any]]
"""Seed -> entry of ``summary.json``."""


def _grouped(path: Path) -> dict[tuple[Any, ...], Cells]:
    """Cells of a run that differ in their seed only."""
    found: dict[tuple[Any, ...], dict[int, Mapping[str, Any]]] = {}
    for cell in read_summary(path)["cells"]:
        same = {**cell, "rate_per_s": None} if cell["load"] is not None else cell
        found.setdefault(tuple(same.get(name) for name in KEY), {})[cell["seed"]] = cell
    return dict(found)


def _value(cell: Mapping[str, Any], metric: str) -> float | None:
    name, _, part = metric.partition(".")
    held = cell["sessions"].get(name) if name == "failed" else cell["metrics"].get(name)
    value = held.get(part) if isinstance(held, Mapping) else held if not part else None
    return None if value is None else float(value)


def _known(cells: Cells, metric: str) -> bool:
    return all(_value(cell, metric) is not None for cell in cells.values())


def _row(
    key: tuple[Any, ...],
    metric: str,
    tolerance: float,
    before: Cells,
    after: Cells,
    *,
    exact: bool,
) -> CheckedMetric:
    common = [seed for seed in before if _same_sessions(before[seed], after.get(seed))]
    used = common or list(before)
    old = np.array([_value(before[seed], metric) for seed in used], dtype=float)
    seeds = common or list(after)
    new = np.array([_value(after[seed], metric) for seed in seeds], dtype=float)
    lower = _direction(metric) == "lower"
    missing = (
        not len(new) or bool(np.isnan(new).any()) or (len(common) < len(before) and bool(common))
    )
    change, ratio = None, None
    if len(new) and not np.isnan(new).any():
        change, ratio = _change(old, new, lower=lower, paired=bool(common))
    sure = not any("live" in cell for cell in after.values()) or bool(ratio and ratio.low > 1)
    ends = (ratio.low, ratio.high, ratio.smallest) if ratio else None
    low, high, detectable = [_worse(end, lower=lower) for end in ends] if ends else [None] * 3
    return CheckedMetric(
        _place(key), str(key[-1]), metric,
        CheckOutcome.MISSING if missing else _judged(change, old, new, tolerance, exact=exact, sure=sure),
        float(old.mean()), float(new.mean()) if len(new) else None, change,
        low, high, detectable, tolerance, len(used), bool(common),
    )  # fmt: skip


def _same_sessions(old: Mapping[str, Any], new: Mapping[str, Any] | None) -> bool:
    return new is not None and old["sessions"]["arrived"] == new["sessions"]["arrived"]


def _change(
    old: Floats, new: Floats, *, lower: bool, paired: bool
) -> tuple[float | None, Ratio | None]:
    """How much worse, and the ratio (above 1 = worse) it comes from where every seed has one."""
    top, bottom = (new, old) if lower else (old, new)
    if (top > 0).all() and (bottom > 0).all():
        logs = np.log(top), np.log(bottom)
        ratio = over_seeds(logs[0] - logs[1]) if paired else unpaired(*logs)
        mean = float(np.exp(logs[0].mean() - logs[1].mean()))
        return _worse(mean, lower=lower), ratio
    if old.mean() == new.mean():
        return 0.0, None
    worse = (new.mean() - old.mean()) * (1 if lower else -1)
    return (float(worse / old.mean()) if old.mean() else None), None


def _worse(ratio: float, *, lower: bool) -> float:
    """A ratio above 1 = worse as a share of the reference's number."""
    return ratio - 1 if lower else 1 - 1 / ratio


def _judged(
    change: float | None, old: Floats, new: Floats, tolerance: float, *, exact: bool, sure: bool
) -> CheckOutcome:
    if change is None:  # from 0 to something, which for a metric that is better low is worse
        return CheckOutcome.WORSE if new.mean() > 0 and sure else CheckOutcome.UNSURE
    moved = len(old) != len(new) or not np.allclose(old, new, rtol=ROUNDING, atol=0.0)
    if change >= tolerance - ROUNDING and moved and change > 0:
        return CheckOutcome.WORSE if sure else CheckOutcome.UNSURE
    if exact and moved:
        return CheckOutcome.CHANGED
    return CheckOutcome.BETTER if change <= ROUNDING - tolerance and moved else CheckOutcome.SAME


def _place(key: tuple[Any, ...]) -> str:
    named = dict(zip(KEY, key, strict=True))
    pressure = f"load {named['load']:g}" if named["load"] is not None else "closed loop"
    if named["load"] is None and named["rate_per_s"] is not None:
        pressure = f"{named['rate_per_s']:g} sessions/s"
    if named["active"] is not None:
        pressure = f"{named['active']} agents"
    cores = f"{named['tool_cores'] or 'unlimited'} tool cores"
    return f"{named['workload']} on {named['profile']} ({named['engine']}, {cores}), {pressure}"


def self_check(reference: Path, tolerances: Mapping[str, float]) -> None:
    """The reference against itself: a check that finds a difference there could not be believed."""
    loud = [row for row in check(reference, reference, tolerances, exact=True) if row.outcome.fails]
    assert not loud, f"the reference differs from itself in {loud[0].metric} of {loud[0].cell}"


def told(row: CheckedMetric) -> list[str]:
    """The cells of a printed row."""
    return [
        row.outcome.value, row.system, row.cell, row.metric, _number(row.reference),
        _number(row.value), _percent(row.change), _interval(row), _percent(row.detectable, sign=False),
        f"{row.tolerance:.3g}" if row.tolerance > 1 else f"{row.tolerance:.1%}", str(row.seeds),
    ]  # fmt: skip


HEADINGS = (
    "outcome", "system", "cell", "metric", "reference", "run", "worse by", "95 %", "detectable",
    "tolerance", "seeds",
)  # fmt: skip


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _percent(value: float | None, *, sign: bool = True) -> str:
    return "-" if value is None else f"{value:+.1%}" if sign else f"{value:.1%}"


def _interval(row: CheckedMetric) -> str:
    if row.low is None or row.high is None:
        return "-"
    return f"{row.low:+.1%} to {row.high:+.1%}"


def loud_rows(rows: Sequence[CheckedMetric]) -> Iterator[CheckedMetric]:
    """What a reader has to see: everything but what stayed the same."""
    return (row for row in rows if row.outcome is not CheckOutcome.SAME)
