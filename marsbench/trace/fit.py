"""Measures how far workloads are from a trace and fits mixtures of lognormals to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from marsbench.core import Session
from marsbench.errors import TraceError
from marsbench.trace.stats import Distance, TraceStats, collect_stats, compare_stats

BLOCK = "fit"
"""The block of a document that holds a comparison."""
NUM_GENERATED = 400
"""Sessions of each workload that are compared with the trace."""
FEWEST_VALUES = 100
"""Quantities with fewer recorded values are left out of a comparison."""
SESSION_QUANTITIES = (
    "turns", "first_prompt_tokens", "final_prompt_tokens", "total_prompt_tokens",
    "total_output_tokens", "session_tool_s",
)  # fmt: skip
"""Quantities with one value a session, which are compared however few there are."""
NARROWEST_SIGMA = 0.05
"""Least width of a component: without it one would settle on a single repeated value."""
_ROUNDS = 400

Floats = npt.NDArray[np.float64]


class Halves(NamedTuple):
    """Holds the two halves of a trace: every other session in the order of their ids."""

    tuning: list[Session]
    """Mixtures are fitted to these."""
    held_out: list[Session]
    """Distances are measured to these."""


def halves(sessions: Iterable[Session], path: Path) -> Halves:
    """Split a trace into two halves; TraceError names ``path`` if it has fewer than two sessions."""
    found = sorted(sessions, key=lambda session: session.session_id)
    if len(found) < 2:
        problem = f"has {len(found)} sessions; a fit needs two at least, one for each half"
        raise TraceError(problem, path=str(path))
    return Halves(found[0::2], found[1::2])


def comparison(workloads: Mapping[str, Sequence[Session]], recorded: Halves) -> str:
    """Return a Markdown table with a row for each quantity and two columns for each workload.

    The numbers are medians and Kolmogorov-Smirnov distances to the held-out half. The last column
    is the distance between the two halves: no generator can be expected to come closer.
    """
    real = _stats(recorded.held_out)
    floor = compare_stats(_stats(recorded.tuning), real)
    columns = [
        {row.quantity: row for row in compare_stats(_stats(sessions), real)}
        for sessions in workloads.values()
    ]
    head = ["quantity", "n recorded", "p50 recorded"]
    head += [title for name in workloads for title in (f"p50 {name}", f"KS {name}")]
    head.append("KS tuning half")
    lines = [head, ["---"] * len(head)]
    lines += [
        _cells(row, [column.get(row.quantity) for column in columns])
        for row in floor
        if row.num_against >= FEWEST_VALUES or row.quantity in SESSION_QUANTITIES
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: Distance, found: Sequence[Distance | None]) -> list[str]:
    cells = [f"`{row.quantity}`", f"{row.num_against}", _number(row.p50_against)]
    for distance in found:
        cells += [_number(distance.p50), f"{distance.ks:.3f}"] if distance else ["-", "-"]
    return [*cells, f"{row.ks:.3f}"]


def mixtures(sessions: Sequence[Session]) -> Iterator[str]:
    """Yield YAML lines for a profile: mixtures of outputs, result tokens and durations by tool class."""
    output: dict[str, list[float]] = defaultdict(list)
    results: dict[str, list[float]] = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    for session in sessions:
        for turn in session.turns:
            first = turn.tools[0].tool_class if turn.tools else "end"
            output[first].append(turn.output_tokens)
            for call in turn.tools:
                results[call.tool_class].append(call.result_tokens or 0)
                seconds[call.tool_class].append(call.wall_s)
    for title, table in (("output", output), ("results", results), ("seconds", seconds)):
        yield f"{title}:"
        for name, values in table.items():
            floor = 1.0 if title == "results" else 0.0
            some = np.array([value for value in values if value > floor])
            empty = 1 - len(some) / len(values)
            mixture = best_mixture(np.log(some)) if len(some) else []
            yield f"  {name}: {{mixture: {mixture}, p_empty: {empty:.3f}}}  # n={len(values)}"


def best_mixture(values: Floats, most: int = 3, least_per_component: int = 25) -> list[list[float]]:
    """Return the components [weight, mu, sigma] of the normal mixture with the lowest BIC."""
    counts = [k for k in range(1, most + 1) if k == 1 or len(values) >= k * least_per_component]
    _, best = min((_expectation_maximisation(values, k) for k in counts), key=lambda fit: fit[0])
    return [[round(float(value), 3) for value in component] for component in best.T]


def _expectation_maximisation(values: Floats, num: int) -> tuple[float, Floats]:
    """Return the BIC of a normal mixture of ``num`` components and its rows weight, mu and sigma."""
    mus = np.quantile(values, (np.arange(num) + 0.5) / num)
    sigmas = np.full(num, max(float(values.std()) / num, NARROWEST_SIGMA))
    weights = np.full(num, 1 / num)
    log_likelihood = 0.0
    for _ in range(_ROUNDS):
        log_density = np.log(weights / sigmas) - 0.5 * ((values[:, None] - mus) / sigmas) ** 2
        peak = log_density.max(axis=1, keepdims=True)
        density = np.exp(log_density - peak)
        log_likelihood = float((np.log(density.sum(axis=1)) + peak[:, 0]).sum())
        member = density / density.sum(axis=1, keepdims=True)
        mass = member.sum(axis=0) + 1e-9
        weights = mass / mass.sum()
        mus = (member * values[:, None]).sum(axis=0) / mass
        spread = (member * (values[:, None] - mus) ** 2).sum(axis=0) / mass
        sigmas = np.maximum(np.sqrt(spread), NARROWEST_SIGMA)
    bic = -2 * log_likelihood + (3 * num - 1) * np.log(len(values))
    return bic, np.array([weights, mus, sigmas])


def _stats(sessions: Sequence[Session]) -> TraceStats:
    return collect_stats(sessions, {})


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
