"""What is to happen outside the engine and its tools, and when: arrivals, ends of thought, ticks,
and turns that reach the engine.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from marsbench.arrival.base import ArrivalPlan
    from marsbench.engine.replay import Script

FOREVER = 1 << 62

Planned = Callable[[int], int | None]
"""Something that an experiment does at a time: told it, answers when it has to be told again."""
Timer = tuple[int, int, int, "Script | None", "Planned | None"]
"""(time_ps, sequence, what, whose, what is planned)."""
ARRIVE, RESUME, TICK, DELIVER, PLANNED = 0, 1, 2, 3, 4


class Agenda:
    """Timers in order of time; ties in the order they were set."""

    def __init__(self, top: Sequence[Script], arrivals: ArrivalPlan) -> None:
        """``top`` are the sessions that arrive by themselves, in order."""
        self.timers: list[Timer] = []
        """A heap."""
        self._order = 0
        self._top = top
        self._next_closed = 0
        self._closed = arrivals.closed_loop is not None
        if arrivals.closed_loop is not None:
            for _ in range(min(arrivals.closed_loop, len(top))):
                self._arrive_next(0)
            return
        assert arrivals.times_ps is not None
        assert len(arrivals.times_ps) == len(top), "one arrival time per session"
        for state, at_ps in zip(top, arrivals.times_ps, strict=True):
            self.add(at_ps, ARRIVE, state)

    def add(self, at_ps: int, what: int, state: Script | None) -> None:
        """Set a timer."""
        heapq.heappush(self.timers, (at_ps, self._order, what, state, None))
        self._order += 1

    def plan(self, at_ps: int, planned: Planned) -> None:
        """Set a timer of the experiment's own."""
        heapq.heappush(self.timers, (at_ps, self._order, PLANNED, None, planned))
        self._order += 1

    def drop_planned(self) -> None:
        """Forget what the experiment has planned for later, because no session is left."""
        if any(timer[2] == PLANNED for timer in self.timers):
            self.timers[:] = [timer for timer in self.timers if timer[2] != PLANNED]
            heapq.heapify(self.timers)

    def tick_at(self, at_ps: int) -> None:
        """Set a timer of the admission policy."""
        self.add(at_ps, TICK, None)

    def session_over(self, at_ps: int) -> None:
        """Note that a place is free: in a closed loop the next session arrives."""
        if self._closed:
            self._arrive_next(at_ps)

    def _arrive_next(self, at_ps: int) -> None:
        if self._next_closed < len(self._top):
            self.add(at_ps, ARRIVE, self._top[self._next_closed])
            self._next_closed += 1
