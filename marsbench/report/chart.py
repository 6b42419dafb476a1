"""What a figure shows, apart from how it is drawn: panels of marks, as plain numbers.

A figure file describes a ``Chart`` once; ``plot`` draws it for files (PNG, PDF) and ``interactive``
for the page, where the reader can point at every mark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from marsbench.report.style import Look

Numbers = Sequence[float]


@dataclass(frozen=True, slots=True)
class Line:
    """Points in order, joined unless ``joined`` is false; ``low`` and ``high`` are drawn as bars."""

    name: str
    x: Numbers
    y: Numbers
    look: Look
    low: Numbers | None = None
    high: Numbers | None = None
    step: bool = False
    """Constant between points, as in a distribution."""
    joined: bool = True
    marked: Sequence[int] | None = None
    """Positions that carry a marker; None = all."""
    shift: float = 0.0
    """Moved by so much to the right, so that bars of neighbours do not hide each other."""


@dataclass(frozen=True, slots=True)
class Dots:
    """A value with an interval on each of some rows of a panel."""

    name: str
    rows: Sequence[str]
    x: Numbers
    look: Look
    low: Numbers | None = None
    high: Numbers | None = None


@dataclass(frozen=True, slots=True)
class Bars:
    """Horizontal bars on rows of a panel, each from its start; no two marks overlap."""

    name: str
    rows: Sequence[str]
    starts: Numbers
    lengths: Numbers
    look: Look


@dataclass(frozen=True, slots=True)
class Layers:
    """Areas on top of each other."""

    x: Numbers
    layers: dict[str, tuple[Numbers, Look]]


@dataclass(frozen=True, slots=True)
class Heat:
    """Coloured cells with their numbers; ``middle`` is the neutral one of a diverging scale."""

    columns: Sequence[str]
    rows: Sequence[str]
    values: Sequence[Sequence[float]]
    texts: Sequence[Sequence[str]]
    middle: float = 1.0


@dataclass(frozen=True, slots=True)
class Rule:
    """A straight dotted line across a panel."""

    name: str
    at: float
    axis: str = "y"


Mark = Line | Dots | Bars | Layers | Heat | Rule


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes."""

    marks: list[Mark]
    x_label: str = ""
    y_label: str = ""
    title: str = ""
    x_log: bool = False
    y_log: bool = False
    x_range: tuple[float | None, float | None] = (None, None)
    y_range: tuple[float | None, float | None] = (None, None)
    x_ticks: Sequence[float] | None = None
    rows: Sequence[str] = ()
    """Names of the rows from the top, where the vertical axis is no number."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure: panels in rows of ``columns``."""

    panels: list[Panel]
    columns: int = 3
    title: str = ""
    scale: float = 1.0
    """Size of a panel in all figures' common one."""
    row_height: float | None = None
    """Inches of a row of ``Panel.rows`` where there are many; the panels are as high as they need."""


def log_if_wide(values: Numbers) -> bool:
    """Whether positive values span more than a decade, so that a logarithmic axis shows them all."""
    positive = [value for value in values if value > 0]
    return bool(positive) and max(positive) > 10 * min(positive)
