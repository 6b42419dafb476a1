"""The search for the highest rung of a ladder of loads that a system sustains.

The ladder has fixed rungs, shared by all systems and seeds, so that their cells stay paired. The
search climbs by large strides until it fails, narrows the last stride to neighbours, and looks once
beyond: real curves need not be monotone. What counts as sustained is the lowest unbroken run of
rungs that pass; rungs that pass above a failure are reported and not counted.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Generator, Sequence
from dataclasses import dataclass

STRIDE = 1.5
"""Factor of the large strides."""


@dataclass(frozen=True, slots=True)
class Summit:
    """What a search found, in positions on its ladder."""

    tried: dict[int, bool]
    """Rung -> whether it passed, of all that were asked."""

    @property
    def best(self) -> int | None:
        """The highest rung of the lowest unbroken run of passes; None if no rung passed."""
        passed = [rung for rung, ok in self.tried.items() if ok]
        if not passed:
            return None
        top = self.first_failure
        return max(rung for rung in passed if top is None or rung < top)

    @property
    def first_failure(self) -> int | None:
        """The lowest rung that failed above the lowest that passed; None if the ladder ended first."""
        passed = [rung for rung, ok in self.tried.items() if ok]
        failed = [rung for rung, ok in self.tried.items() if not ok]
        return (
            min((rung for rung in failed if rung > min(passed)), default=None) if passed else None
        )

    @property
    def islands(self) -> list[int]:
        """Rungs that passed above the first failure."""
        top = self.first_failure
        return sorted(r for r, ok in self.tried.items() if ok and top is not None and r > top)


def rate_ladder(unit: float, least: float, most: float, precision: float) -> list[float]:
    """Return rates from ``least`` to ``most``, each ``precision`` above the one below, through
    ``unit``.
    """
    step = math.log1p(precision)
    first = math.ceil(math.log(least / unit) / step - 1e-9)
    last = math.floor(math.log(most / unit) / step + 1e-9)
    return [unit * math.exp(step * k) for k in range(first, last + 1)]


def agent_ladder(least: int, most: int, precision: float) -> list[int]:
    """Return numbers of agents from ``least`` to ``most``: all of them, then steps of
    ``precision``.
    """
    found = [least]
    while found[-1] < most:
        found.append(min(max(found[-1] + 1, round(found[-1] * (1 + precision))), most))
    return found


def climb(ladder: Sequence[float], start: float) -> Generator[int, bool, Summit]:
    """Yield rungs to try, take whether each passed, return what was found.

    ``ladder`` holds ascending positive loads; the first one tried is the one nearest above
    ``start``. No rung is asked for twice, and no more than the strides that the ladder has and the
    rungs of one stride's logarithm are asked for.
    """
    tried: dict[int, bool] = {}
    rung = min(bisect_left(ladder, start), len(ladder) - 1)
    tried[rung] = yield rung
    first = rung
    while not tried[rung] and rung > 0:  # down to one that passes
        rung = _below(ladder, rung)
        tried[rung] = yield rung
    if not tried[rung]:  # a bound from below, such as goodput, fails where little arrives
        rung = first
        while not tried[rung] and rung < len(ladder) - 1:
            rung = _above(ladder, rung)
            tried[rung] = yield rung
        if not tried[rung]:
            return Summit(tried)
    found = Summit(tried)
    while found.first_failure is None and rung < len(ladder) - 1:  # up to one that fails
        rung = _above(ladder, rung)
        tried[rung] = yield rung
    beyond = found.first_failure
    while (best := found.best) is not None and (top := found.first_failure) is not None:
        if top - best < 2:
            break
        between = (best + top) // 2
        tried[between] = yield between
    if beyond is not None and (further := _above(ladder, beyond)) not in tried:
        tried[further] = yield further
    return found


def _above(ladder: Sequence[float], rung: int) -> int:
    return min(max(bisect_left(ladder, ladder[rung] * STRIDE), rung + 1), len(ladder) - 1)


def _below(ladder: Sequence[float], rung: int) -> int:
    return max(min(bisect_left(ladder, ladder[rung] / STRIDE), rung - 1), 0)
