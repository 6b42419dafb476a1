"""How far two engines agree on the same cells: sessions one by one, totals, and the order of systems.

For engines between which steps cannot be compared: a simulator and a server on the wall clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from scipy.stats import spearmanr

from marsbench.records import EventLog
from marsbench.tables import build_tables

Totals = dict[str, float]

TOLERANCE = 0.25
"""Most relative difference of two engines' mean session latencies that counts as agreement."""


@dataclass(frozen=True, slots=True)
class Played:
    """What one engine did with one system."""

    latency_s: Mapping[str, float]
    """Session id (of several seeds: SEED/id) -> arrival to end; NaN if it failed."""
    totals: Totals
    """Of several seeds their means."""
    mean_latency_s: Mapping[int, float] = field(default_factory=dict)
    """By seed."""


@dataclass(frozen=True, slots=True)
class SessionErrors:
    """Relative differences of session latencies, second engine over first."""

    errors: Mapping[str, float]
    """Session id -> second / first - 1, for sessions that both completed."""
    rank_correlation: float
    """Spearman's, over sessions; NaN for fewer than three."""

    def percentile(self, percent: float) -> float:
        """Return a percentile of the absolute errors; NaN if no session was completed by both."""
        found = [abs(error) for error in self.errors.values()]
        return float(np.percentile(found, percent)) if found else math.nan


@dataclass(frozen=True, slots=True)
class OrderAgreement:
    """Whether two engines put systems into the same order."""

    same: int
    pairs: int
    flipped: tuple[tuple[str, str], ...]
    """Pairs of systems that the engines order differently."""


def played(log: EventLog) -> Played:
    """Return the latencies and totals of a run."""
    tables = build_tables(log)
    sessions, turns = tables.sessions, tables.turns
    latency = dict(zip(sessions["session_id"], sessions["latency_s"].astype(float), strict=True))
    done = sessions["latency_s"].dropna()
    prompt = float(turns["prompt_tokens"].sum())
    totals = {
        "sessions_completed": float(len(done)),
        "mean_latency_s": float(done.mean()),
        "p50_latency_s": float(done.quantile(0.5)),
        "p95_latency_s": float(done.quantile(0.95)),
        "mean_ttft_s": float((turns["first_token_s"] - turns["ready_s"]).mean()),
        "kv_hit_rate": float(turns["cached_tokens"].sum()) / prompt if prompt else math.nan,
        "recomputed_tokens": float(turns["recomputed_tokens"].sum()),
        "makespan_s": float(sessions["end_s"].max()),
        "steps": math.nan if tables.totals.steps is None else float(tables.totals.steps),
        "engine_busy_s": tables.totals.gpu_busy_s,
    }
    return Played(latency, totals)


def played_all(logs: Mapping[int, EventLog]) -> Played:
    """Return the latencies and totals of several seeds together."""
    single = {seed: played(log) for seed, log in logs.items()}
    means = {seed: one.totals["mean_latency_s"] for seed, one in single.items()}
    if len(single) == 1:
        (only,) = single.values()
        return Played(only.latency_s, only.totals, means)
    latency = {
        f"{seed}/{name}": s for seed, one in single.items() for name, s in one.latency_s.items()
    }
    names = next(iter(single.values())).totals
    totals = {name: float(np.mean([one.totals[name] for one in single.values()])) for name in names}
    return Played(latency, totals, means)


def session_errors(first: Played, second: Played) -> SessionErrors:
    """Compare session by session."""
    both = [
        session_id
        for session_id, latency_s in first.latency_s.items()
        if latency_s > 0 and second.latency_s.get(session_id, math.nan) > 0
    ]
    left = [first.latency_s[session_id] for session_id in both]
    right = [second.latency_s[session_id] for session_id in both]
    errors = {session_id: b / a - 1.0 for session_id, a, b in zip(both, left, right, strict=True)}
    varied = len(set(left)) > 1 and len(set(right)) > 1
    rank = float(spearmanr(left, right).statistic) if len(both) > 2 and varied else math.nan
    return SessionErrors(errors, rank)


def disagreement(
    pairs: Mapping[str, tuple[Played, Played]], engines: tuple[str, str], tolerance: float
) -> str | None:
    """Say in one line if the mean session latency of any system differs by more than the tolerance,
    or is known on one engine only. It names the worst; None if there is none.
    """
    left, right = engines
    gaps: dict[str, float] = {}
    for system, both in pairs.items():
        first, second = (played.totals["mean_latency_s"] for played in both)
        if math.isnan(first) or math.isnan(second):
            return f"{system}: no session completed on {left if math.isnan(first) else right}"
        gaps[system] = second / first - 1.0
    beyond = [system for system, gap in gaps.items() if abs(gap) > tolerance]
    if not beyond:
        return None
    worst = max(beyond, key=lambda system: abs(gaps[system]))
    return (
        f"{left} and {right} do not agree on {len(beyond)} of {len(gaps)} systems: the mean session "
        f"latency of {worst} on {right} is {gaps[worst]:+.0%} of that on {left}, beyond --tolerance "
        f"{tolerance:g}; calibrate the profile, or repeat it on an idle machine"
    )


def quicker_than_ideal(slowdowns: Sequence[float]) -> str | None:
    """Say in one line if sessions on a server were faster than alone in the simulation (a slowdown
    below 1).
    """
    known = [value for value in slowdowns if not math.isnan(value)]
    below = [value for value in known if value < 1.0]
    if not below:
        return None
    return (
        f"{len(below)} of {len(known)} sessions took less time than their simulated ideal (slowdown "
        f"down to {min(below):.2f}): the profile's step times are not this server's, so slowdowns mean "
        "little; `marsbench calibrate` fits them"
    )


def order_agreement(first: Mapping[str, float], second: Mapping[str, float]) -> OrderAgreement:
    """Compare the order of systems by a number of each, such as mean latency."""
    pairs = list(combinations(first, 2))
    flipped = tuple(
        (a, b) for a, b in pairs if _sign(first[a] - first[b]) != _sign(second[a] - second[b])
    )
    return OrderAgreement(len(pairs) - len(flipped), len(pairs), flipped)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def compare_systems(
    systems: Sequence[str],
    engines: Sequence[str],
    play: Callable[[str, str], Mapping[int, EventLog]],
) -> dict[str, tuple[Played, Played]]:
    """Play each system on both engines: ``play(engine, system)`` gives the log of each seed."""
    left, right = engines
    return {
        system: (played_all(play(left, system)), played_all(play(right, system)))
        for system in systems
    }
