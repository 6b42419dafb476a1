"""The unified information stream of a live gateway: typed events to log, policies and subscribers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from marsbench.core import PS_PER_S
from marsbench.events import FIELDS, Event, Kind
from marsbench.records import ROW, EventLog

MAX_NAMES = 1000
"""Distinct tool names kept apart; models invent names, and the table must not grow with them."""
OTHER = "(other)"
PS_PER_NS = 1000
SESSION = 2
"""Column of the session in a row."""


class EventSink(Protocol):
    """Something besides policies that takes every event."""

    def event(self, event: Event, session_id: str) -> None:
        """Take one event; must not block."""
        ...


class WallClock:
    """Picoseconds since the gateway started, on a clock that never goes back."""

    def __init__(self, read_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._read_ns = read_ns
        self._start_ns = read_ns()

    def now_ps(self) -> int:
        """Now."""
        return (self._read_ns() - self._start_ns) * PS_PER_NS

    def now_s(self) -> float:
        """Now, seconds."""
        return self.now_ps() / PS_PER_S


class EventBus:
    """Writes each event once and tells everybody who listens, in order."""

    def __init__(
        self,
        clock: WallClock,
        listeners: Sequence[Callable[[Event], None]] = (),
        sinks: Sequence[EventSink] = (),
        max_events: int = 500_000,
    ) -> None:
        self.clock = clock
        self.log = EventLog()
        self.dropped = 0
        """Oldest events that made room."""
        self._listeners = list(listeners)
        self._sinks = list(sinks)
        self._max_events = max_events
        self._named_from = 0

    def emit(
        self,
        kind: Kind,
        session: int = -1,
        turn: int = -1,
        call: int = -1,
        payload: tuple[int, ...] = (),
        *,
        session_id: str = "",
        name: str = "",
        tool_class: str = "",
    ) -> int:
        """Write an event of now; returns its time in picoseconds."""
        at_ps = self.clock.now_ps()
        if name or tool_class:
            name = self._name(name)
            payload = (self.log.intern(name), self.log.intern(tool_class), *payload)
        self.log.append(at_ps, int(kind), session, turn, call, *payload)
        if len(self.log) > self._max_events:
            self._make_room()
        if self._listeners or self._sinks:
            num_fields = len(FIELDS[kind])
            args = (*payload, *(0,) * (num_fields - len(payload)))[:num_fields]
            event = Event(at_ps / PS_PER_S, kind, session, turn, call, args, name, tool_class)
            for listener in self._listeners:
                listener(event)
            for sink in self._sinks:
                sink.event(event, session_id)
        return at_ps

    def register(self, session: int, session_id: str) -> None:
        """The next session's index and id; indices count up from 0."""
        ids = self.log.session_ids
        ids.extend("" for _ in range(session + 1 - len(ids)))
        ids[session] = session_id

    def _name(self, name: str) -> str:
        if len(self.log.strings) < MAX_NAMES or name in self.log.strings:
            return name
        return OTHER

    def _make_room(self) -> None:
        half = len(self.log) // 2
        del self.log.rows[: half * ROW]
        self.dropped += half
        first = min((s for s in self.log.rows[SESSION::ROW] if s >= 0), default=0)
        for index in range(self._named_from, first):
            self.log.session_ids[index] = ""
        self._named_from = max(self._named_from, first)
