"""The part of ``marsbench validate`` for live engines: agreement in sessions, totals and order."""

from __future__ import annotations

import dataclasses
import json
import math
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from marsbench.cli.validate import Cell
    from marsbench.experiment.agreement import Played
    from marsbench.experiment.wiring import RunCell, Setup
    from marsbench.records import EventLog

Pairs = Mapping[str, "tuple[Played, Played]"]
"""System -> what each of two engines did."""


def compare(
    cells: Mapping[str, Sequence[Cell]],
    engines: tuple[str, str],
    *,
    figure: Path | None,
    as_json: bool,
) -> None:
    """Play each system's cells, one a seed, on both engines; print how far they agree."""
    from marsbench.experiment.agreement import compare_systems

    pairs = compare_systems(
        list(cells), engines, lambda engine, system: _play(cells[system], engine, system)
    )
    if figure is not None:
        draw(pairs, engines).savefig(figure)
    if as_json:
        print(json.dumps(_as_json(pairs, engines), indent=1))
    else:
        _print(pairs, engines)


def _play(cells: Sequence[Cell], engine: str, system: str) -> dict[int, EventLog]:
    """The log of each seed."""
    from marsbench.engine.live.engine import LiveEngine
    from marsbench.engine.live.options import split_options
    from marsbench.experiment.wiring import in_virtual_time, is_live

    _note(f"{system} on {engine}")
    options, flags = split_options(cells[0].setup.engine_flags)
    setup = dataclasses.replace(cells[0].setup, engine=engine)
    if not is_live(engine):
        virtual = dataclasses.replace(in_virtual_time(setup), engine=engine, engine_flags=flags)
        return {cell.seed: _log(virtual, cell, system) for cell in cells}
    with LiveEngine(engine, options, salt=secrets.token_hex(4), note=_note) as live:
        return {cell.seed: _log(setup, cell, system, live.run_cell) for cell in cells}


def _log(setup: Setup, cell: Cell, system: str, run_cell: RunCell | None = None) -> EventLog:
    from marsbench.experiment.wiring import simulate

    return simulate(
        setup, cell.system, {}, cell.sessions, cell.arrivals,
        seed=cell.seed, run_cell=run_cell, named=system,
    ).log  # fmt: skip


def draw(pairs: Pairs, engines: tuple[str, str]) -> Figure:
    """Each session's latency on one engine against the other's, and each system's mean on both."""
    import pandas as pd
    import seaborn as sns

    from marsbench.report.style import in_order, legend, log_axis, looks, panels, theme

    left, right = engines
    systems = in_order(pairs)
    styles = looks(systems)
    points = pd.DataFrame(
        [
            {"system": system, left: latency_s, right: second.latency_s.get(session, math.nan)}
            for system in systems
            for first, second in [pairs[system]]
            for session, latency_s in first.latency_s.items()
        ]
    )
    means = pd.DataFrame(
        [
            {"system": system, "engine": engine, "mean": played.totals["mean_latency_s"]}
            for system in systems
            for engine, played in zip(engines, pairs[system], strict=True)
        ]
    )
    with theme():
        figure, (scatter, bars) = panels(1, 2)
        sns.scatterplot(
            points, x=left, y=right, hue="system", ax=scatter, s=22,
            palette={system: styles[system].color for system in systems},
        )  # fmt: skip
        low, high = points[[left, right]].min().min(), points[[left, right]].max().max()
        if low > 0:
            scatter.plot([low, high], [low, high], color="#777777", linewidth=1, zorder=0)
            log_axis(scatter, "x")
            log_axis(scatter, "y")
        scatter.legend(title="", loc="upper left")
        scatter.set(xlabel=f"session latency on {left}, s", ylabel=f"on {right}, s")
        sns.barplot(
            means, x="system", y="mean", hue="engine", ax=bars, palette=("#9ecae1", "#08519c")
        )
        bars.set(xlabel="", ylabel="mean session latency, s")
        bars.tick_params(axis="x", rotation=30)
        if (inner := bars.get_legend()) is not None:
            inner.remove()
        legend(figure, bars)
    return figure


def _as_json(pairs: Pairs, engines: tuple[str, str]) -> dict[str, Any]:
    from marsbench.experiment.agreement import session_errors

    systems = {}
    for system, (first, second) in pairs.items():
        errors = session_errors(first, second)
        systems[system] = {
            "sessions": {
                "both_completed": len(errors.errors),
                "p50": _number(errors.percentile(50)),
                "p95": _number(errors.percentile(95)),
                "rank_correlation": _number(errors.rank_correlation),
                "errors": dict(errors.errors),
            },
            "mean_latency_s": {
                str(seed): {engines[0]: mean_s, engines[1]: second.mean_latency_s[seed]}
                for seed, mean_s in first.mean_latency_s.items()
            },
            "totals": {
                name: {
                    engines[0]: _number(value),
                    engines[1]: _number(second.totals[name]),
                    "error": _number(_relative(value, second.totals[name])),
                }
                for name, value in first.totals.items()
            },
        }
    order = _order(pairs)
    agreed = {"same": order.same, "pairs": order.pairs, "flipped": [list(p) for p in order.flipped]}
    return {"engines": list(engines), "systems": systems, "order": agreed}


def _order(pairs: Pairs) -> Any:
    from marsbench.experiment.agreement import order_agreement

    means = [{s: both[k].totals["mean_latency_s"] for s, both in pairs.items()} for k in (0, 1)]
    return order_agreement(*means)


def _print(pairs: Pairs, engines: tuple[str, str]) -> None:
    from marsbench.experiment.agreement import session_errors

    left, right = engines
    for system, (first, second) in pairs.items():
        errors = session_errors(first, second)
        print(f"{system}:")
        print(f"  {'':<20}{left:>14}{right:>14}{'difference':>12}")
        for name, value in first.totals.items():
            other = second.totals[name]
            gap = _relative(value, other)
            shown = "" if math.isnan(gap) else f"{gap:+.1%}"
            print(f"  {name:<20}{value:>14,.4g}{other:>14,.4g}{shown:>12}")
        for seed, mean_s in first.mean_latency_s.items() if len(first.mean_latency_s) > 1 else ():
            other = second.mean_latency_s[seed]
            shown = f"{_relative(mean_s, other):+.1%}"
            print(f"  {f'mean, seed {seed}':<20}{mean_s:>14,.4g}{other:>14,.4g}{shown:>12}")
        print(
            f"  {len(errors.errors)} sessions on both: latency differs by "
            f"{errors.percentile(50):.1%} (median), {errors.percentile(95):.1%} (95th percentile); "
            f"rank correlation {errors.rank_correlation:.2f}"
        )
    order = _order(pairs)
    if order.pairs:
        flipped = ", ".join(f"{a} and {b}" for a, b in order.flipped)
        print(
            f"order of systems by mean latency: {order.same} of {order.pairs} pairs the same"
            + (f"; not: {flipped}" if flipped else "")
        )


def _relative(first: float, second: float) -> float:
    return second / first - 1.0 if first else math.nan


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _note(text: str) -> None:
    print(f"... {text}", file=sys.stderr)
