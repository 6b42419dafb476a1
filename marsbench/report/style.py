"""One look for all figures: theme, and colour, marker and order of every system."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter


@dataclass(frozen=True, slots=True)
class Look:
    """How one system is drawn, everywhere."""

    color: str
    marker: str
    dash: str = "-"
    width: float = 1.4


SYSTEM_LOOKS: dict[str, Look] = {
    "mars": Look("#d55e00", "o", width=2.4),
    "mars-preview": Look("#e69f00", "D", "--"),
    "vllm": Look("#0173b2", "s"),
    "vllm-tuned": Look("#56b4e9", "s", "--"),
    "vllm-priority": Look("#0173b2", "d", "-."),
    "sglang": Look("#949494", "P"),
    "session-fcfs": Look("#5f9ea0", "h"),
    "fixed-ttl": Look("#d98880", "H"),
    "static": Look("#5d6d7e", "8"),
    "autellix": Look("#029e73", "^"),
    "infercept": Look("#cc78bc", "v"),
    "continuum": Look("#8f6b4a", "<"),
    "continuum-dynamic": Look("#8f6b4a", ">", "--"),
    "thunderagent": Look("#7a5195", "X"),
    "concur": Look("#b3a100", "p"),
    "oracle": Look("#222222", "*", ":"),
}
"""In the order of every figure and table: MARS first, then stock, then published systems."""

VARIANT_DASHES = {"-tuned": "--", "-best": ":"}
"""NAME-tuned and NAME-best look like NAME with another line."""

_SPARE_COLORS = ("#e377c2", "#5d8aa8", "#7fb069", "#a67fb5", "#c9a227", "#b22222")
_SPARE_MARKERS = ("$\\diamond$", "d", "$+$", "1")

COMPONENT_COLORS: dict[str, str] = {
    "backlog": "#8c2d04",
    "queue": "#d94801",
    "prefill": "#2171b5",
    "recompute": "#cb181d",
    "decode": "#6baed6",
    "tool_queue": "#807dba",
    "tool": "#74c476",
    "other": "#bdbdbd",
}
"""Waiting in browns, engine work in blues, work done twice in red, tools in violet and green."""

PANEL = (4.2, 3.0)
"""Inches of one panel."""


def in_order(systems: Iterable[str]) -> list[str]:
    """MARS and its variants first, then the order of SYSTEM_LOOKS, then by name."""
    known = list(SYSTEM_LOOKS)

    def position(system: str) -> tuple[int, str]:
        base = system.split(" @ ", maxsplit=1)[0]
        base = base if base in known else _variant_of(base)[0]
        if base in known:
            return known.index(base), system
        if base.startswith("mars"):
            return known.index("mars-preview"), system
        return len(known), system

    return sorted(set(systems), key=position)


def looks(systems: Iterable[str]) -> dict[str, Look]:
    """A look for each system; those not in SYSTEM_LOOKS take the next spare one by name."""
    ordered = in_order(systems)
    found: dict[str, Look] = {}
    spare = 0
    for system in sorted(ordered):
        base, dash = _variant_of(system)
        if system in SYSTEM_LOOKS:
            found[system] = SYSTEM_LOOKS[system]
        elif base in SYSTEM_LOOKS:
            found[system] = replace(SYSTEM_LOOKS[base], dash=dash)
        else:
            color = _SPARE_COLORS[spare % len(_SPARE_COLORS)]
            marker = _SPARE_MARKERS[spare % len(_SPARE_MARKERS)]
            found[system] = Look(color, marker, ("-", "--", ":")[spare // 12 % 3])
            spare += 1
    return {system: found[system] for system in ordered}


def _variant_of(system: str) -> tuple[str, str]:
    """The system this one is a variant of, and the line of that variant."""
    for suffix, dash in VARIANT_DASHES.items():
        if system.endswith(suffix):
            return system.removesuffix(suffix), dash
    return system, "-"


@contextmanager
def theme() -> Iterator[None]:
    """The seaborn theme of all figures, for the duration of a ``with`` block."""
    rc: Any = {
        **sns.axes_style("whitegrid"),
        **sns.plotting_context("paper"),
        "grid.color": "#e6e6e6",
        "grid.linewidth": 0.7,
        "axes.edgecolor": "#777777",
        "axes.titlesize": "medium",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "lines.markersize": 5.0,
        "savefig.dpi": 160,
        "pdf.fonttype": 42,
    }
    with mpl.rc_context(rc):
        yield


def panels(
    rows: int, columns: int, *, share: bool = False, scale: float = 1.0
) -> tuple[Figure, list[Axes]]:
    """A figure with rows x columns panels, row by row, in (``scale`` of) the size all have."""
    width, height = PANEL[0] * scale, PANEL[1] * scale
    figure = Figure(figsize=(columns * width + 1.3, rows * height + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share)
    return figure, [axes for row in grid for axes in row]


def legend(figure: Figure, axes: Axes, **options: Any) -> None:
    """The legend of ``axes`` beside all panels, where it cannot cover data."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, **{"loc": "outside right upper", **options})


def scale_to(axes: Axes, values: Sequence[float], *, axis: str = "y") -> None:
    """Logarithmic if positive values span more than a decade, else from zero."""
    positive = [value for value in values if value > 0]
    if positive and max(positive) > 10 * min(positive):
        # A symmetric interval can reach below zero: the values, not the bars, set the lower end.
        axes.set(**{f"{axis}scale": "log", f"{axis}lim": (min(positive) / 1.5, None)})
        log_axis(axes, axis)
        return
    axes.set(**{f"{axis}lim": (0, None)})
    short_numbers(axes, axis)


def log_axis(axes: Axes, axis: str) -> None:
    """A logarithmic axis, for data already drawn, whose ticks are plain numbers: 1, 2, 5, 10, ...
    or fewer of them over a long span.
    """
    axes.set(**{f"{axis}scale": "log"})
    ticks = getattr(axes, f"{axis}axis")
    low, high = ticks.get_view_interval()
    decades = math.log10(high / low)
    subs = (1.0, 2.0, 5.0) if decades < 2 else (1.0, 3.0) if decades < 3.5 else (1.0,)
    ticks.set_major_locator(LogLocator(subs=subs))
    ticks.set_minor_formatter(NullFormatter())
    short_numbers(axes, axis)


def short_numbers(axes: Axes, axis: str) -> None:
    """Tick labels as 0.5, 200, 20k, 3M instead of powers or long rows of zeros."""
    getattr(axes, f"{axis}axis").set_major_formatter(FuncFormatter(_short))


def _short(value: float, _position: int | None) -> str:
    for least, unit, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / unit:g}{letter}"
    return f"{value:g}"
