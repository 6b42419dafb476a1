"""What a paper reports, held against what was measured: ranges of factors, with their sources."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from marsbench.report.factors import Factors, geomean

Measured = Literal["mean_s", "p90_s", "p95_s", "p99_s", "goodput"]
HEADER = (
    "claim", "source", "published", "measured", "95 %", "lowest", "highest", "in range", "cells",
    "verdict",
)  # fmt: skip
NUM_TEXT = 2


class PublishedRange(BaseModel):
    """How many times better the subject is than others, as a paper says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: str
    """The part of the study that measures it."""
    claim: str
    measure: Measured
    over: Annotated[tuple[str, ...], Field(min_length=1)]
    """The systems that the factor is over, each for itself."""
    from_load: float = 0.0
    """Loads below are not meant."""
    low: float | None = None
    """None where the paper says "up to" only."""
    high: float
    source: str
    """Section of the paper."""

    @model_validator(mode="after")
    def _ordered(self) -> PublishedRange:
        if self.low is not None and self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self

    @property
    def text(self) -> str:
        """The range in words."""
        return f"up to {self.high:g}x" if self.low is None else f"{self.low:g}-{self.high:g}x"


@dataclass(frozen=True, slots=True)
class Held:
    """A published range beside what was measured."""

    published: PublishedRange
    factor: float
    """Geometric mean over cells and systems of what is finite."""
    low: float | None
    high: float | None
    """Its 95 % interval over seeds; None below three seeds, and for goodput, which may be 0."""
    lowest: float
    highest: float
    """Of a cell and system."""
    inside: int
    """Cells and systems whose factor is in the published range."""
    reached: int
    """Those whose factor reaches its low end (or 1, if there is none)."""
    cells: int
    unstable: int
    """Those where the other system is past its stability point: their factor grows with the run."""

    @property
    def verdict(self) -> str:
        """In a word or two."""
        least = self.published.low or 1.0
        if self.factor > self.published.high:
            return "above"
        if self.factor >= least:
            return "within"
        return "in part" if self.reached else "not reached"

    def cells_of_table(self) -> list[str]:
        """The row of ``HEADER``."""
        interval = (
            "-" if self.low is None or self.high is None else f"{self.low:.2f}–{self.high:.2f}"
        )
        shaky = f" ({self.unstable} unstable)" if self.unstable else ""
        return [
            self.published.claim, self.published.source, self.published.text, f"{self.factor:.2f}x", interval,
            f"{self.lowest:.2f}x", f"{self.highest:.2f}x", str(self.inside), f"{self.cells}{shaky}",
            self.verdict,
        ]  # fmt: skip


def hold(published: Iterable[PublishedRange], factors: Factors) -> list[Held]:
    """Each range that these runs have cells for."""
    found = [_held(one, factors) for one in published]
    return [one for one in found if one is not None]


def _held(published: PublishedRange, factors: Factors) -> Held | None:
    rows, column = factors.rows, f"{published.measure}_ratio"
    meant = rows["system"].isin(published.over) & (rows["load"] >= published.from_load)
    part = rows[meant & np.isfinite(rows[column])]
    if not len(part):
        return None
    ratio = part[column]
    interval = factors.interval(part, published.measure) if published.measure != "goodput" else None
    least = published.low or 1.0
    return Held(
        published=published,
        factor=geomean(ratio),
        low=interval[0] if interval else None,
        high=interval[1] if interval else None,
        lowest=float(ratio.min()),
        highest=float(ratio.max()),
        inside=int(((ratio >= least) & (ratio <= published.high)).sum()),
        reached=int((ratio >= least).sum()),
        cells=len(part),
        unstable=int((part["unstable"] > 0.5).sum()),
    )


def held_table(held: Sequence[Held]) -> tuple[list[str], list[list[str]]]:
    """Heading and rows as text."""
    return list(HEADER), [one.cells_of_table() for one in held]
