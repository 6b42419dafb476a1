"""How far generated workloads are from a recorded trace, and fits to make them closer.

    python scripts/fit_workloads.py compare TRACE swe-bench swe-bench-slow [--write]
    python scripts/fit_workloads.py suggest TRACE

Sessions of the trace at even places of the sorted ids are the tuning half: ``suggest`` fits
lognormal mixtures to it. ``compare`` reports Kolmogorov-Smirnov distances to the other half, and
between the two halves: no generator can be expected below that. ``--write`` puts the table
between the markers in workloads/generated/README.md.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from marsbench.core import Session
from marsbench.trace.source import open_trace, open_workload
from marsbench.trace.stats import TraceStats, collect_stats, compare_stats

README = Path(__file__).parents[1] / "workloads" / "generated" / "README.md"
BEGIN, END = "<!-- fit:begin -->", "<!-- fit:end -->"
NUM_GENERATED = 400
MIN_VALUES = 100
"""Quantities with fewer recorded values are left out."""
SESSION_QUANTITIES = (
    "turns", "first_prompt_tokens", "final_prompt_tokens", "total_prompt_tokens",
    "total_output_tokens", "session_tool_s",
)  # fmt: skip
Floats = npt.NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    compare = commands.add_parser("compare", help="distances per quantity")
    compare.add_argument("trace", type=Path)
    compare.add_argument("workloads", nargs="+")
    compare.add_argument("--write", action="store_true", help=f"put the table into {README.name}")
    suggest = commands.add_parser("suggest", help="lognormal mixtures of the tuning half")
    suggest.add_argument("trace", type=Path)
    for command in (compare, suggest):
        command.add_argument("--format", help="format of the trace (default: found by content)")
    arguments = parser.parse_args()
    tuning, held_out = halves(arguments.trace, arguments.format)
    if arguments.command == "suggest":
        print("\n".join(fits(tuning)))
        return
    table = comparison(arguments.workloads, tuning, held_out)
    print(table)
    if arguments.write:
        write(table)


def halves(path: Path, format_name: str | None) -> tuple[list[Session], list[Session]]:
    """Tuning and held-out sessions of a trace."""
    _, found = open_trace(path, format_name)
    sessions = sorted(found, key=lambda session: session.session_id)
    return sessions[0::2], sessions[1::2]


def comparison(
    workloads: Sequence[str], tuning: Sequence[Session], held_out: Sequence[Session]
) -> str:
    """A Markdown table: a row per quantity, a column per workload."""
    real, other = stats_of(held_out), stats_of(tuning)
    floor = {row.quantity: row for row in compare_stats(other, real)}
    columns = []
    for name in workloads:
        generated = open_workload(name).sessions(NUM_GENERATED, 0)
        columns.append({row.quantity: row for row in compare_stats(stats_of(generated), real)})
    head = ["quantity", "n recorded", "p50 recorded"]
    head += [title for name in workloads for title in (f"p50 {name}", f"KS {name}")]
    lines = [" | ".join([*head, "KS tuning half"]), " | ".join(["---"] * (len(head) + 1))]
    for quantity, row in floor.items():
        if row.num_against < MIN_VALUES and quantity not in SESSION_QUANTITIES:
            continue
        cells = [f"`{quantity}`", f"{row.num_against}", number(row.p50_against)]
        for column in columns:
            found = column.get(quantity)
            cells += [number(found.p50), f"{found.ks:.3f}"] if found else ["-", "-"]
        lines.append(" | ".join([*cells, f"{row.ks:.3f}"]))
    return "\n".join(f"| {line} |" for line in lines)


def fits(sessions: Sequence[Session]) -> Iterator[str]:
    """YAML lines: mixtures of output, result tokens and duration by tool class."""
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
    """Components [weight, mu, sigma] of the normal mixture with the lowest BIC."""
    counts = [k for k in range(1, most + 1) if k == 1 or len(values) >= k * least_per_component]
    _, best = min((expectation_maximisation(values, k) for k in counts), key=lambda fit: fit[0])
    return [[round(float(value), 3) for value in component] for component in best.T]


def expectation_maximisation(values: Floats, num: int) -> tuple[float, Floats]:
    """(BIC, rows weight, mu, sigma) of a normal mixture; sigma is kept above 0.05."""
    mus = np.quantile(values, (np.arange(num) + 0.5) / num)
    sigmas = np.full(num, max(float(values.std()) / num, 0.05))
    weights = np.full(num, 1 / num)
    log_likelihood = 0.0
    for _ in range(400):
        log_density = np.log(weights / sigmas) - 0.5 * ((values[:, None] - mus) / sigmas) ** 2
        peak = log_density.max(axis=1, keepdims=True)
        density = np.exp(log_density - peak)
        log_likelihood = float((np.log(density.sum(axis=1)) + peak[:, 0]).sum())
        member = density / density.sum(axis=1, keepdims=True)
        mass = member.sum(axis=0) + 1e-9
        weights = mass / mass.sum()
        mus = (member * values[:, None]).sum(axis=0) / mass
        spread = (member * (values[:, None] - mus) ** 2).sum(axis=0) / mass
        sigmas = np.maximum(np.sqrt(spread), 0.05)
    bic = -2 * log_likelihood + (3 * num - 1) * np.log(len(values))
    return bic, np.array([weights, mus, sigmas])


def write(table: str) -> None:
    """Replaces what stands between the markers."""
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def stats_of(sessions: Sequence[Session]) -> TraceStats:
    return collect_stats(sessions, {})


if __name__ == "__main__":
    main()
