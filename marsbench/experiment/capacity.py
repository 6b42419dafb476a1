"""The unit of load: the highest session rate of stock vLLM over static numbers of active sessions.

A closed loop keeps N sessions active; the engine is saturated from the first start to the last.
In that window the rate is counted in sessions' worth of turns (a session of 40 turns that did 10
of them counts a quarter), so sessions cut by the window's end are neither lost nor counted whole.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from marsbench.core import Session, to_s
from marsbench.events import Kind, Status
from marsbench.records import EventLog

MOST_ACTIVE = 1024
"""The search stops here; vLLM's default batch holds 256 turns."""
SESSIONS_PER_ACTIVE = 3
"""A window of N active sessions is measured over at least this many times N sessions."""
FINE_ENOUGH = 1.13
"""Neighbours of the best N closer than this ratio are not refined: the curve is flat there."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What ``load`` 1.0 means for one workload, profile and tool pool."""

    sessions_per_s: float
    active: int
    """The number of active sessions that gives it."""
    curve: tuple[tuple[int, float], ...]
    """(active sessions, sessions per second), by active sessions."""


def search(
    measure: Callable[[Sequence[int]], Sequence[float]], *, first: int, most: int = MOST_ACTIVE
) -> Capacity:
    """Highest rate over numbers of active sessions, which rises to one peak and falls.

    ``measure`` returns the rates of the numbers it is given. Doubles or halves from ``first``
    until the best is flanked by worse, then narrows the gap on both sides of it.
    """
    rates: dict[int, float] = {}

    def ask(numbers: Sequence[int]) -> None:
        new = sorted({n for n in numbers if 1 <= n <= most and n not in rates})
        rates.update(zip(new, measure(new), strict=True))

    start = min(max(first, 1), most)
    ask([start // 2, start, start * 2])
    while True:
        best = _best(rates)
        known = len(rates)
        if best == max(rates):
            ask([best * 2, most if best * 2 > most else best])
        elif best == min(rates):
            ask([best // 2])
        if len(rates) == known:
            break
    while True:
        numbers = sorted(rates)
        place = numbers.index(_best(rates))
        gaps = list(itertools.pairwise(numbers))[max(place - 1, 0) : place + 1]
        wide = [(low, high) for low, high in gaps if high > low + 1 and high / low > FINE_ENOUGH]
        if not wide:
            break
        ask([max(low + 1, min(high - 1, round(math.sqrt(low * high)))) for low, high in wide])
    best = _best(rates)
    return Capacity(rates[best], best, tuple(sorted(rates.items())))


def _best(rates: dict[int, float]) -> int:
    """The number with the highest rate; the smaller one of equals."""
    return min(rates, key=lambda number: (-rates[number], number))


def enough_sessions(sessions: Sequence[Session], active: int) -> list[Session]:
    """Return the sessions, repeated under new names until a window of ``active`` is saturated."""
    repeats = -(-SESSIONS_PER_ACTIVE * active // len(sessions))
    more = [_renamed(session, copy) for copy in range(2, repeats + 1) for session in sessions]
    return [*sessions, *more]


def _renamed(session: Session, copy: int) -> Session:
    turns = tuple(
        replace(turn, children=tuple(_renamed(child, copy) for child in turn.children))
        if turn.children
        else turn
        for turn in session.turns
    )
    return replace(session, session_id=f"{session.session_id}~{copy}", turns=turns)


def saturated_rate(log: EventLog, sessions: Sequence[Session]) -> float:
    """Return the sessions per second between the first start and the last of a closed loop.

    A session that is rejected counts whole when it arrives: arrivals at this rate include it.
    """
    rows = log.to_numpy()
    top = {session.session_id: len(session.turns) for session in sessions}
    turns = np.array([top.get(name, 0) for name in log.session_ids], dtype=np.int64)
    top_rows = rows[(rows[:, 2] >= 0) & (turns[rows[:, 2]] > 0)]
    starts = top_rows[top_rows[:, 1] == Kind.SESSION_ARRIVE, 0]
    window_ps = int(starts.max() - starts.min())
    inside = top_rows[top_rows[:, 0] <= starts.max()]
    ended = inside[inside[:, 1] == Kind.GPU_END, 2]
    rejected = inside[(inside[:, 1] == Kind.SESSION_END) & (inside[:, 5] == Status.TOO_LARGE), 2]
    done = float((1.0 / turns[ended]).sum()) + len(rejected)
    return done / to_s(window_ps) if window_ps else 0.0
