"""Capacity: the search finds the peak of a curve, the rate counts sessions' worth of turns."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsbench.core import Session, Turn, to_ps
from marsbench.events import Kind, Status
from marsbench.experiment.capacity import enough_sessions, saturated_rate, search
from marsbench.records import EventLog


def _sessions(*num_turns: int) -> list[Session]:
    return [
        Session(f"s{k}", tuple(Turn(10, 5) for _ in range(num))) for k, num in enumerate(num_turns)
    ]


def _log(sessions, rows) -> EventLog:
    log = EventLog()
    log.session_ids = [session.session_id for session in sessions]
    for time_s, kind, session, payload in rows:
        log.append(to_ps(time_s), kind, session, 0, -1, payload)
    return log


@given(peak=st.integers(1, 300), first=st.integers(0, 600), slope=st.floats(0.05, 3))
def test_search_finds_the_peak(peak, first, slope):
    """On a curve with one peak the answer is within a refinement step (13 %) of it, and asks for
    each number once."""
    asked: list[int] = []

    def measure(numbers):
        asked.extend(numbers)
        return [1 / (1 + slope * abs(math.log(n / peak))) for n in numbers]

    found = search(measure, first=first)
    assert abs(found.active - peak) <= max(1, 0.13 * peak)
    assert found.sessions_per_s == max(rate for _, rate in found.curve)
    assert len(asked) == len(set(asked)) == len(found.curve)


def test_search_stays_in_bounds():
    """A rate that only rises (tools without contention) ends at the most that is asked for."""
    found = search(lambda numbers: [float(n) for n in numbers], first=3, most=20)
    assert found.active == 20
    falling = search(lambda numbers: [1 / n for n in numbers], first=50, most=64)
    assert falling.active == 1


def test_rate_counts_shares_of_sessions():
    """Starts at 0 s, 4 s and 10 s: in these 10 s s0 does 2 of its 2 turns, s1 1 of its 4, so
    1.25 sessions' worth of turns: 0.125 per second. Turns after the last start do not count.
    """
    sessions = _sessions(2, 4, 3)
    rows = [
        (0, Kind.SESSION_ARRIVE, 0, 0),
        (2, Kind.GPU_END, 0, 5),
        (4, Kind.SESSION_ARRIVE, 1, 0),
        (6, Kind.GPU_END, 0, 5),
        (8, Kind.GPU_END, 1, 5),
        (10, Kind.SESSION_ARRIVE, 2, 0),
        (12, Kind.GPU_END, 1, 5),
    ]
    assert saturated_rate(_log(sessions, rows), sessions) == pytest.approx(0.125)


def test_rejected_sessions_count_whole():
    """A session that does not fit uses up an arrival: 1 rejected + 1 of 2 turns in 5 s = 0.3/s."""
    sessions = _sessions(2, 9, 1)
    rows = [
        (0, Kind.SESSION_ARRIVE, 0, 0),
        (1, Kind.SESSION_ARRIVE, 1, 0),
        (1, Kind.SESSION_END, 1, Status.TOO_LARGE),
        (3, Kind.GPU_END, 0, 5),
        (5, Kind.SESSION_ARRIVE, 2, 0),
    ]
    assert saturated_rate(_log(sessions, rows), sessions) == pytest.approx(0.3)


def test_subagents_are_part_of_their_parents():
    """Turns of sub-agents are not sessions' worth of turns of their own."""
    sessions = _sessions(1, 1)
    log = _log(
        sessions,
        [
            (0, Kind.SESSION_ARRIVE, 0, 0),
            (0, Kind.SESSION_ARRIVE, 2, 0),
            (1, Kind.GPU_END, 2, 5),
            (2, Kind.GPU_END, 0, 5),
            (4, Kind.SESSION_ARRIVE, 1, 0),
        ],
    )
    log.session_ids.append("s0/child")
    assert saturated_rate(log, sessions) == pytest.approx(0.25)


def test_enough_sessions_have_names_of_their_own():
    """Three sessions for a window of 3 become 9, children included, all with different names."""
    child = Session("c", (Turn(1, 1),))
    sessions = [*_sessions(1, 1), Session("p", (Turn(1, 1, children=(child,)),))]
    more = enough_sessions(sessions, 3)
    names = [s.session_id for s in more] + [
        c.session_id for s in more for t in s.turns for c in t.children
    ]
    assert len(more) == 9
    assert len(set(names)) == 12
