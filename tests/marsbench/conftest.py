"""A builder of event logs, so that a test reads as the timeline of a few sessions."""

from __future__ import annotations

import pytest

from marsbench.core import to_ps
from marsbench.events import Kind, Status
from marsbench.records import EventLog


class Timeline:
    """Collects events in any order; ``log()`` sorts them by time (stable)."""

    def __init__(self) -> None:
        self._log = EventLog()
        self._rows: list[tuple] = []

    def add(self, time_s: float, kind: Kind, session: int = -1, turn=-1, call=-1, *payload) -> None:
        self._rows.append((to_ps(time_s), int(kind), session, turn, call, *payload))

    def session(self, session_id: str, arrival_s: float, *, prompt=100, parent=-1, parent_turn=-1):
        index = len(self._log.session_ids)
        self._log.session_ids.append(session_id)
        self.add(arrival_s, Kind.SESSION_ARRIVE, index, -1, -1, prompt, parent, parent_turn)
        return index

    def turn(
        self, session, turn, *, ready, sched, first, end, submit=None, prompt=100, cached=0,
        prefilled=None, recomputed=0, output=11, num_tools=0, is_last=0,
    ):  # fmt: skip
        submit = ready if submit is None else submit
        prefilled = prompt - cached if prefilled is None else prefilled
        self.add(ready, Kind.TURN_READY, session, turn, -1, prompt)
        if turn == 0:
            self.add(submit, Kind.SESSION_ADMIT, session, turn)
        self.add(submit, Kind.GPU_SUBMIT, session, turn, -1, prompt)
        self.add(sched, Kind.GPU_SCHED_FIRST, session, turn, -1, cached, prompt - cached)
        self.add(first, Kind.GPU_FIRST_TOKEN, session, turn)
        counts = (output, cached, prefilled, recomputed, num_tools, is_last)
        self.add(end, Kind.GPU_END, session, turn, -1, *counts)

    def preempted(self, session, turn, start, stop, *, uncached=50):
        self.add(start, Kind.GPU_PREEMPT, session, turn, -1, uncached, 4)
        self.add(stop, Kind.GPU_RESUME, session, turn, -1, 0, uncached)

    def tool(self, session, turn, call, enqueued, started, ended, *, name="bash", cpu_s=0.0):
        codes = self._log.intern(name), self._log.intern(f"{name}-class")
        self.add(enqueued, Kind.TOOL_ENQUEUED, session, turn, call, *codes)
        self.add(started, Kind.TOOL_START, session, turn, call, *codes)
        self.add(ended, Kind.TOOL_END, session, turn, call, *codes, 0, to_ps(cpu_s))

    def end(self, session, time_s, status=Status.OK):
        self.add(time_s, Kind.SESSION_END, session, -1, -1, int(status))

    def run_end(
        self, time_s, *, steps=1, evicted=0, preemptions=0, busy_s=0.0, blocks=100, cores=0
    ):
        counts = (steps, evicted, preemptions, to_ps(busy_s), blocks, cores)
        self.add(time_s, Kind.RUN_END, -1, -1, -1, *counts)

    def log(self) -> EventLog:
        for row in sorted(self._rows, key=lambda row: row[0]):
            self._log.append(*row)
        self._rows = []
        return self._log


@pytest.fixture
def timeline() -> Timeline:
    """An empty timeline."""
    return Timeline()


@pytest.fixture
def two_turns() -> Timeline:
    """One session: 10 s of latency in two turns, every component of the attribution present.

    arrival 1 | submit 2 | sched 2.5 | first 3.5 | end 4.5 | tool queued 4.5, runs 5..6 |
    think until 6.5 | submit 6.75 | sched 7 | preempted 7.5..8 | first 9 | end 11
    """
    line = Timeline()
    one = line.session("one", 1.0)
    line.turn(one, 0, ready=1, submit=2, sched=2.5, first=3.5, end=4.5, num_tools=2)
    line.tool(one, 0, 0, 4.5, 4.5, 5.5, name="read", cpu_s=0.5)
    line.tool(one, 0, 1, 4.5, 5.0, 6.0, name="bash", cpu_s=1.0)
    line.turn(
        one, 1, ready=6.5, submit=6.75, sched=7, first=9, end=11,
        prompt=200, cached=80, prefilled=160, recomputed=40, output=21, is_last=1,
    )  # fmt: skip
    line.preempted(one, 1, 7.5, 8.0)
    line.end(one, 11)
    line.run_end(11, busy_s=5.0, preemptions=1)
    return line
