"""The part of ``marsbench validate`` for live engines: agreement in sessions, totals and order."""

from __future__ import annotations

import json
import math
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marsbench.cli import RunFailed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from marsbench.cli.validate import PlayedCell
    from marsbench.experiment.agreement import Played
    from marsbench.records import EventLog

Pairs = Mapping[str, "tuple[Played, Played]"]
"""System -> what each of two engines did."""


def compare(
    cells: Mapping[str, Sequence[PlayedCell]],
    engines: tuple[str, str],
    *,
    tolerance: float | None,
    figure: Path | None,
    as_json: bool,
) -> None:
    """Play each system's cells, one a seed, on both engines; print how far they agree.

    Raises RunFailed if any system's mean latencies differ by more than ``tolerance``.
    """
    from marsbench.experiment.agreement import TOLERANCE, compare_systems, disagreement
    from marsbench.experiment.wiring import check_start, for_engine

    for first, *_ in cells.values():
        for engine in engines:
            check_start(for_engine(first.setup, engine, engines), first.system, {})
    pairs = compare_systems(
        list(cells), engines, lambda engine, system: _play(cells[system], engines, engine, system)
    )
    if figure is not None:
        draw(pairs, engines).savefig(figure)
    if as_json:
        print(json.dumps(_as_json(pairs, engines), indent=1))
    else:
        _print(pairs, engines)
    limit = TOLERANCE if tolerance is None else tolerance
    if (found := disagreement(pairs, engines, limit)) is not None:
        raise RunFailed(found)


def _play(
    cells: Sequence[PlayedCell], engines: tuple[str, str], engine: str, system: str
) -> dict[int, EventLog]:
    """The log of each seed."""
    from marsbench.engine import engine_kind
    from marsbench.engine.kind import Opening
    from marsbench.experiment.wiring import for_engine, simulate

    _note(f"{system} on {engine}")
    setup = for_engine(cells[0].setup, engine, engines)
    opening = Opening(run_id=secrets.token_hex(4), note=_note)
    with engine_kind(engine).open(setup.engine_flags, opening) as opened:
        logs = {}
        for cell in cells:
            outcome = simulate(
                setup, cell.system, {}, cell.sessions, cell.arrivals,
                seed=cell.seed, engine=opened, named=system,
            )  # fmt: skip
            for warning in outcome.ran.warnings:
                _note(f"warning: {system} on {engine}, seed {cell.seed}: {warning}")
            logs[cell.seed] = outcome.log
        return logs


def draw(pairs: Pairs, engines: tuple[str, str]) -> Figure:
    """Each session's latency on one engine against the other's, and each system's mean on both."""
    from marsbench.report.chart import Chart, Dots, Line, Panel, log_if_wide
    from marsbench.report.plot import plot
    from marsbench.report.style import Look, looks, theme

    left, right = engines
    styles = looks(pairs)
    clouds = []
    for system, (first, second) in pairs.items():
        both = [name for name in first.latency_s if second.latency_s.get(name, math.nan) > 0]
        x, y = [first.latency_s[n] for n in both], [second.latency_s[n] for n in both]
        clouds.append(Line(system, x, y, styles[system], joined=False))
    values = [value for cloud in clouds for value in (*cloud.x, *cloud.y) if value > 0]
    ends = [min(values, default=0.0), max(values, default=1.0)]
    equal = Line("equal", ends, ends, Look("#777777", ""))
    wide = log_if_wide(values)
    sessions = Panel(
        [*clouds, equal], f"session latency on {left}, s", f"on {right}, s", x_log=wide, y_log=wide
    )
    looks_of = (Look("#6aaed6", "o"), Look("#08519c", "s"))
    means = [
        Dots(
            engine,
            list(pairs),
            [played[k].totals["mean_latency_s"] for played in pairs.values()],
            look,
        )
        for k, (engine, look) in enumerate(zip(engines, looks_of, strict=True))
    ]
    with theme():
        panels = [sessions, Panel([*means], "mean session latency, s", rows=tuple(pairs))]
        return plot(Chart(panels, columns=2), f"Do {left} and {right} agree?")


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
