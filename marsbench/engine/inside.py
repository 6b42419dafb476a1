"""What the policies inside each of several replicas are told: their own sessions' events, no others.

A policy that schedules or retains inside an engine hears there of the sessions whose turns it gets,
as it does inside a server. A session that comes from another replica, or is new, is introduced by
what the front door knows of it; to the replica that it leaves it is over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from marsbench.engine.life import listeners_of
from marsbench.events import FLEET_KINDS, Event, Kind, Status
from marsbench.system import Policies

INTRODUCED_BY = (Kind.SESSION_ARRIVE, Kind.TURN_READY, Kind.GPU_SUBMIT)


class InsideStreams:
    """One stream for each replica, made of the stream of all."""

    def __init__(self, inside: Sequence[Policies]) -> None:
        self._listeners: list[list[Callable[[Event], None]]] = [
            listeners_of((each.scheduling, each.retention)) for each in inside
        ]
        self.anybody = any(self._listeners)
        """Whether any policy listens."""
        self._homes: dict[int, int] = {}
        self._known: dict[int, dict[Kind, Event]] = {}
        """What introduces each unfinished session."""

    def on_event(self, event: Event) -> None:
        """Pass an event on to whom it concerns."""
        kind, session = event.kind, event.session
        if kind == Kind.ROUTE:
            self._routed(event)
            return
        if kind in FLEET_KINDS:
            return
        if session < 0:
            for listeners in self._listeners:
                for listener in listeners:
                    listener(event)
            return
        if kind in INTRODUCED_BY:
            self._known.setdefault(session, {})[kind] = event
        home = self._homes.get(session)
        if home is not None:
            self._tell(home, event)
        if kind == Kind.SESSION_END:
            self._known.pop(session, None)
            self._homes.pop(session, None)

    def _routed(self, event: Event) -> None:
        session, home = event.session, event.get("replica")
        before = self._homes.get(session)
        if before == home:
            return
        if before is not None:
            left = (int(Status.MOVED),)
            self._tell(before, Event(event.time_s, Kind.SESSION_END, session, -1, -1, left))
        self._homes[session] = home
        known = self._known[session]
        for kind in INTRODUCED_BY:
            if kind in known:
                self._tell(home, known[kind])

    def _tell(self, replica: int, event: Event) -> None:
        for listener in self._listeners[replica]:
            listener(event)
