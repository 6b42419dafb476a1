"""One look for all figures and the page: colour and marker of every system, colours of what time and
memory go to, and the seaborn theme.

A system's look follows from its place in the registry, so it is the same in every report, and no
system is drawn stronger than another. Colours can be told apart with the common kinds of colour
blindness where they meet; markers, dashes and hatches carry the rest, on paper without colour too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from marsbench.registry import table


@dataclass(frozen=True, slots=True)
class Look:
    """How one thing is drawn, everywhere."""

    color: str
    marker: str = "o"
    dash: str = "-"
    hatch: str = ""


COLORS = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c7ae6", "#a5a51f",
    "#7f7f7f", "#b5484d",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "*", ">", "h")
"""One more than there are colours, so that the same pair does not come back soon."""
DASHES = ("-", "--", "-.")

VARIANTS = {"-tuned": "--", "-best": ":"}
"""NAME-tuned and NAME-best look like NAME with another line."""

COMPONENT_LOOKS: dict[str, Look] = {
    "backlog": Look("#7a3b00", hatch=""),
    "queue": Look("#f2a65a", hatch="///"),
    "prefill": Look("#084c8d", hatch=""),
    "recompute": Look("#e8434b", hatch="xxx"),
    "decode": Look("#a6cee3", hatch=""),
    "tool_queue": Look("#54278f", hatch="\\\\\\"),
    "tool": Look("#b2df8a", hatch=""),
    "other": Look("#666666", hatch="..."),
}
"""Where latency goes, in the order of the attribution: neighbours differ in lightness, so that they
are told apart without colour, and what is lost is hatched."""
LOAD_LOOK = Look("#3f8f5f", hatch="++")
"""Waiting for KV from host memory, between queue and prefill, where there is some."""


def component_looks(names: Iterable[str]) -> dict[str, Look]:
    """The looks of these components, in their order."""
    return {name: {**COMPONENT_LOOKS, "load": LOAD_LOOK}[name] for name in names}


KV_LAYERS: dict[str, Look] = {
    "running turns": Look("#084c8d"),
    "retained for returning sessions": Look("#b35900", hatch="///"),
    "reusable, evictable": Look("#a6cee3"),
    "free": Look("#f4f4f4", hatch="..."),
}

PANEL = (4.2, 3.0)
"""Inches of one panel."""


def looks(systems: Iterable[str]) -> dict[str, Look]:
    """A look for each system, in the order given; one that is not registered takes a place after all
    that are, by name.
    """
    given = list(dict.fromkeys(systems))
    places = {name: place for place, name in enumerate(table("SYSTEMS"))}
    bases = {name: _variant_of(name.partition(" @ ")[0], places) for name in given}
    for base in sorted({base for base, _ in bases.values()} - set(places)):
        places[base] = len(places)
    runs = sorted({name.partition(" @ ")[2] for name in given})
    found = {}
    for name, (base, dash) in bases.items():
        place = places[base]
        # every third round of colours begins one later, so that its first is not as the first of all
        color = COLORS[(place + place // (3 * len(COLORS))) % len(COLORS)]
        look = Look(color, MARKERS[place % len(MARKERS)], dash)
        if len(runs) > 1:  # the same system in two runs: another line for each
            look = replace(look, dash=DASHES[runs.index(name.partition(" @ ")[2]) % len(DASHES)])
        found[name] = look
    return found


def _variant_of(system: str, known: Iterable[str]) -> tuple[str, str]:
    """The system this one is a variant of, and the line of that variant."""
    for suffix, dash in VARIANTS.items():
        if system.endswith(suffix) and system not in known:
            return system.removesuffix(suffix), dash
    return system, "-"


@contextmanager
def theme() -> Iterator[None]:
    """The seaborn theme of all figures, for the duration of a ``with`` block."""
    import matplotlib as mpl
    import seaborn as sns

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
        "hatch.linewidth": 0.5,
        "savefig.dpi": 160,
        "pdf.fonttype": 42,
    }
    with mpl.rc_context(rc):
        yield


def short(value: float, _position: int | None = None) -> str:
    """A number on an axis: 0.5, 200, 20k, 3M instead of powers or long rows of zeros."""
    for least, unit, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / unit:g}{letter}"
    return f"{value:g}"


def log_ticks(low: float, high: float) -> list[float]:
    """Plain numbers to label on a logarithmic axis: 1, 2, 5, 10, ... or fewer over a long span."""
    decades = math.log10(high / low)
    steps: tuple[float, ...] = (
        (1.0, 2.0, 5.0) if decades < 2 else (1.0, 3.0) if decades < 3.5 else (1.0,)
    )
    if decades < 0.5:
        steps = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    return [float(f"{tick:g}") for tick in ticks if low <= tick * 1.0001 and tick <= high * 1.0001]
