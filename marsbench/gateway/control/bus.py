"""The unified information stream of a live gateway: typed events to log, policies and subscribers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from marsbench.attribution import Ints
from marsbench.core import PS_PER_S
from marsbench.engine.life import CallState, Life, SessionState
from marsbench.events import Event, Kind, Status
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
        """Return the present time, ps."""
        return (self._read_ns() - self._start_ns) * PS_PER_NS

    def now_s(self) -> float:
        """Return the present time, seconds."""
        return self.now_ps() / PS_PER_S


class EventBus:
    """The stream of a gateway: what ``marsbench.engine.life`` writes, and everybody who hears of it."""

    def __init__(
        self,
        clock: WallClock,
        listeners: Sequence[Callable[[Event], None]] = (),
        sinks: Sequence[EventSink] = (),
        max_events: int = 500_000,
    ) -> None:
        """``listeners`` are policies; ``sinks`` hear what is written, whatever policies are told."""
        self.clock = clock
        self.log = EventLog()
        self.life = Life(self.log, [self._hear] if listeners or sinks else [])
        self.active = self.life.active
        """Admitted, unfinished sessions in order of admission."""
        self.lent: set[int] = set()
        """Sessions of which policies think that they have ended."""
        self.dropped = 0
        """Oldest events that made room."""
        self._listeners = list(listeners)
        self._sinks = list(sinks)
        self._max_events = max_events
        self._named_from = 0

    def call(self, session: SessionState, index: int, name: str, tool_class: str) -> CallState:
        """Make a tool call of the session's current turn, under a name that the log knows."""
        strings = self.log.strings
        if len(strings) >= MAX_NAMES and name not in strings:
            name = OTHER
        return CallState(
            session,
            index,
            name=name,
            tool_class=tool_class,
            name_code=self.log.intern(name),
            class_code=self.log.intern(tool_class),
        )

    def lend(self, session: SessionState) -> None:
        """Tell policies that the session has ended. It has not: nothing of it is written."""
        self._tell(Kind.SESSION_END, session, int(Status.TIMEOUT))
        self.lent.add(session.session)

    def take_back(self, session: SessionState) -> None:
        """Tell policies that a lent session arrives, as if it were new."""
        self.lent.discard(session.session)
        self._tell(Kind.SESSION_ARRIVE, session, session.prompt_tokens, -1, -1)

    def since(self, position: int) -> tuple[Ints, int]:
        """Return a copy of the rows from a position on, and the position after them.

        Positions count all rows ever written; those dropped since are left out.
        """
        rows = self.log.to_numpy()[max(position - self.dropped, 0) :].copy()
        return rows, self.dropped + len(self.log)

    def register(self, session: int, session_id: str) -> None:
        """Give the session of this index its id; indices count up from 0."""
        ids = self.log.session_ids
        ids.extend("" for _ in range(session + 1 - len(ids)))
        ids[session] = session_id

    def make_room(self) -> None:
        """Drop the oldest half of a log that has grown too long, and ids that nothing mentions."""
        if len(self.log) <= self._max_events:
            return
        half = len(self.log) // 2
        del self.log.rows[: half * ROW]
        self.dropped += half
        first = min((s for s in self.log.rows[SESSION::ROW] if s >= 0), default=0)
        for index in range(self._named_from, first):
            self.log.session_ids[index] = ""
        self._named_from = max(self._named_from, first)

    def _hear(self, event: Event) -> None:
        """The life has written an event."""
        for listener in self._listeners if event.session not in self.lent else ():
            listener(event)
        session_id = self.log.session_ids[event.session] if event.session >= 0 else ""
        for sink in self._sinks:
            sink.event(event, session_id)

    def _tell(self, kind: Kind, session: SessionState, *payload: int) -> None:
        event = Event(self.clock.now_s(), kind, session.session, -1, -1, payload)
        for listener in self._listeners:
            listener(event)
        for sink in self._sinks:
            sink.event(event, session.session_id)
