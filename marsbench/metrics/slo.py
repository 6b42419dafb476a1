"""A service-level objective in words, such as ``p95 slowdown <= 3``, and whether a cell meets it.

    SLO      = CLAUSE {("and" | ",") CLAUSE}
    CLAUSE   = [STATISTIC] QUANTITY ["@" ALPHA] ("<" | "<=" | ">=" | ">") NUMBER [UNIT]

Session latency and slowdown are held against all sessions that can run at all: one that failed is
infinitely slow, so that a system cannot meet an objective by turning sessions away. Sessions that
do not even run alone on the empty system are left out.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from marsbench.errors import ConfigError
from marsbench.metrics.base import ALPHAS, PERCENTILES
from marsbench.registry import unknown

Shape = Literal["sessions", "distribution", "alphas", "single", "failed"]


@dataclass(frozen=True, slots=True)
class Quantity:
    """What an objective can be about."""

    metric: str
    """Its name in ``summary.json``; for ``sessions`` also the column of sessions.parquet."""
    shape: Shape
    unit: str
    """``s``, ``1/s``, ``x`` (times the ideal), ``share`` or ``1``."""
    higher_is_better: bool = False


QUANTITIES: Mapping[str, Quantity] = {
    "latency": Quantity("session_latency_s", "sessions", "s"),
    "slowdown": Quantity("session_slowdown", "sessions", "x"),
    "ttft": Quantity("ttft_s", "distribution", "s"),
    "tpot": Quantity("tpot_s", "distribution", "s"),
    "queueing": Quantity("queueing_s", "distribution", "s"),
    "tool queue": Quantity("tool_queue_s", "distribution", "s"),
    "attainment": Quantity("slo_attainment", "alphas", "share", higher_is_better=True),
    "goodput": Quantity("session_goodput_per_s", "alphas", "1/s", higher_is_better=True),
    "throughput": Quantity("sessions_per_s", "single", "1/s", higher_is_better=True),
    "hit rate": Quantity("prefix_cache_hit_rate", "single", "share", higher_is_better=True),
    "fairness": Quantity("jain_slowdown", "single", "share", higher_is_better=True),
    "failed": Quantity("failed", "failed", "share"),
}
"""Words of an objective; ``session`` before latency and slowdown may be said."""

UNITS: Mapping[str, Mapping[str, float]] = {
    "s": {"": 1.0, "s": 1.0, "ms": 1e-3, "min": 60.0, "h": 3600.0},
    "1/s": {"": 1.0, "/s": 1.0, "/min": 1 / 60, "/h": 1 / 3600},
    "x": {"": 1.0, "x": 1.0},
    "share": {"": 1.0, "%": 0.01},
}
COMPARED: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt,
}  # fmt: skip
STATISTICS = {"mean": "mean", "median": "p50", **{f"p{p}": f"p{p}" for p in PERCENTILES}}

_CLAUSE = re.compile(
    r"(?P<words>[a-z0-9 ]+?)\s*(?:@\s*(?P<alpha>[0-9.]+)\s*)?(?P<sign><=|>=|<|>)\s*"
    r"(?P<number>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*(?P<unit>[a-z/%]*)"
)


@dataclass(frozen=True, slots=True)
class Clause:
    """One bound."""

    text: str
    """As said, in one form."""
    quantity: Quantity
    part: str
    """Statistic or α; empty for a single number."""
    sign: str
    bound: float
    """In the unit of the quantity."""

    @property
    def column(self) -> str:
        """The number that is bounded, as ``name`` or ``name.part`` of ``summary.json``."""
        return f"{self.quantity.metric}.{self.part}" if self.part else self.quantity.metric

    def value(self, entry: Mapping[str, Any], sessions: Callable[[], pd.DataFrame]) -> float | None:
        """The number of a cell that is bounded; None if the cell has nothing to measure.

        ``entry`` is the cell's in ``summary.json``; ``sessions`` gives its rows of
        sessions.parquet, asked for only where some failed.
        """
        counts, shape = entry["sessions"], self.quantity.shape
        if shape == "failed":
            return float(counts["failed"] / counts["arrived"]) if counts["arrived"] else None
        if shape == "sessions" and counts["failed"]:
            return _with_failures(sessions(), self.quantity.metric, self.part, entry["window"])
        found = entry["metrics"][self.quantity.metric]
        number = found[self.part] if self.part else found
        return None if number is None else float(number)

    def holds(self, value: float | None) -> bool:
        """Whether a number meets the bound; one that cannot be measured does not."""
        return value is not None and COMPARED[self.sign](value, self.bound)


@dataclass(frozen=True, slots=True)
class Slo:
    """Bounds that hold together."""

    clauses: tuple[Clause, ...]

    @property
    def text(self) -> str:
        """The objective in one form, whatever blanks and units it was said with."""
        return " and ".join(clause.text for clause in self.clauses)


def parse_slo(text: str) -> Slo:
    """Read an objective. Raises ConfigError, in one line, for anything that is not one."""
    parts = re.split(r"\s*,\s*|\s+and(?:\s+|$)", text.strip().lower())
    if not all(parts):
        raise ConfigError(
            f"--slo {text!r}: a bound is missing; say for example 'p95 slowdown <= 3'"
        )
    clauses = tuple(_clause(text, part) for part in parts)
    names = [(clause.column, clause.sign[0]) for clause in clauses]
    for clause, name in zip(clauses, names, strict=True):
        if names.count(name) > 1:
            raise ConfigError(f"--slo {text!r}: {clause.text!r} is bounded twice; keep one bound")
    return Slo(clauses)


def _clause(whole: str, text: str) -> Clause:
    where = f"--slo {whole!r}"
    match = _CLAUSE.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"{where}: {text!r} is no bound; expected [mean|median|p95|...] QUANTITY[@ALPHA] "
            "<= or >= NUMBER, for example 'p95 slowdown <= 3' or 'attainment@3 >= 0.9'"
        )
    words = [word for word in match["words"].split() if word != "session"]
    statistic = words[0] if words and re.fullmatch(r"mean|median|p[0-9.]+", words[0]) else ""
    name = " ".join(words[1:] if statistic else words)
    if name not in QUANTITIES:
        raise ConfigError(f"{where}: {unknown('quantity', name, QUANTITIES)}")
    quantity = QUANTITIES[name]
    part = _part(where, name, quantity, statistic, match["alpha"])
    sign = match["sign"]
    if (sign[0] == ">") != quantity.higher_is_better:
        right = ">=" if quantity.higher_is_better else "<="
        better = "higher" if quantity.higher_is_better else "lower"
        raise ConfigError(f"{where}: {better} {name} is better, so bound it with {right}")
    units = UNITS[quantity.unit]
    if match["unit"] not in units:
        known = ", ".join(unit for unit in units if unit)
        raise ConfigError(f"{where}: {name} has no unit {match['unit']!r}; give one of {known}")
    bound = float(match["number"]) * units[match["unit"]]
    if quantity.unit == "share" and bound > 1:
        raise ConfigError(f"{where}: {name} is a share and never above 1; say 0.9 or 90%")
    if quantity.unit == "x" and bound < 1:
        raise ConfigError(f"{where}: {name} is never below 1, so no system meets it")
    said = f"{name}@{part}" if match["alpha"] else f"{statistic} {name}".strip()
    return Clause(f"{said} {sign} {_bound_text(quantity, bound)}", quantity, part, sign, bound)


def _part(where: str, name: str, quantity: Quantity, statistic: str, alpha: str | None) -> str:
    """The statistic or α that a quantity needs; ConfigError for one too few or too many."""
    if quantity.shape == "alphas":
        known = {float(choice): choice for choice in ALPHAS}
        if statistic or alpha is None or alpha.count(".") > 1 or float(alpha) not in known:
            raise ConfigError(
                f"{where}: {name} counts sessions within a multiple of their ideal: say {name}@3 "
                f"(of {', '.join(ALPHAS)})"
            )
        return known[float(alpha)]
    if alpha is not None:
        raise ConfigError(f"{where}: only attainment and goodput have an @ALPHA, not {name}")
    if quantity.shape in ("sessions", "distribution"):
        if statistic not in STATISTICS:
            raise ConfigError(
                f"{where}: say which {name}: one of "
                f"{', '.join(f'{choice} {name}' for choice in STATISTICS)}"
            )
        return STATISTICS[statistic]
    if statistic:
        raise ConfigError(f"{where}: {name} is one number a cell: leave out {statistic!r}")
    return ""


def _bound_text(quantity: Quantity, bound: float) -> str:
    unit = {"s": " s", "1/s": "/h", "share": "", "x": ""}[quantity.unit]
    return f"{bound * 3600 if quantity.unit == '1/s' else bound:g}{unit}"


def _with_failures(
    sessions: pd.DataFrame, metric: str, part: str, window: Mapping[str, float]
) -> float | None:
    """A statistic over all sessions of the measured window that can run at all, failed ones
    infinitely slow; None if there are none.
    """
    top = sessions[sessions["parent"] < 0]
    at = top["arrival_s"] - top["arrival_s"].min()
    last = math.inf if not window["cooldown_s"] else float(at.max()) - window["cooldown_s"]
    top = top[(at >= window["warmup_s"]) & (at <= last)]
    if top["ideal_s"].notna().any():
        top = top[top["ideal_s"].notna()]
    column = "latency_s" if metric == "session_latency_s" else "slowdown"
    values = top[column].where(top["status"] == "ok", math.inf).dropna().to_numpy(np.float64)
    if not len(values):
        return None
    if part == "mean":
        return float(values.mean())
    with np.errstate(invalid="ignore"):  # between two infinite values
        found = float(np.percentile(values, float(part[1:])))
    return math.inf if math.isnan(found) else found
