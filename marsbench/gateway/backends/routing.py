"""The default router: a session stays where its KV is; a new one goes where fewest sessions are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from marsbench.admission.base import SessionView
from marsbench.events import Event, Kind
from marsbench.routing.base import RoutableReplica


class StickyLeastLoaded:
    """Routing policy with session affinity."""

    def __init__(self) -> None:
        self._homes: dict[int, int] = {}
        self._sessions: Counter[int] = Counter()
        """Of each replica: counted here, since to look through all that are open takes the longer the
        more there are."""

    def on_event(self, event: Event) -> None:
        """Forget sessions that have ended."""
        if event.kind == Kind.SESSION_END:
            self._leave(event.session)

    def route(self, turn: SessionView, replicas: Sequence[RoutableReplica], now_s: float) -> int:
        """Return the replica where the session was before, else the one with the fewest
        sessions.
        """
        home = self._homes.get(turn.session)
        if home is None:
            home = min(
                range(len(replicas)),
                key=lambda i: (
                    self._sessions[i],
                    replicas[i].num_waiting,
                    replicas[i].num_running,
                    i,
                ),
            )
            self._move(turn.session, home)
        return home

    def bind(self, session: int, replica: int) -> None:
        """Note that the session had to move: its KV is at this replica now."""
        self._leave(session)
        self._move(session, replica)

    def _move(self, session: int, replica: int) -> None:
        self._homes[session] = replica
        self._sessions[replica] += 1

    def _leave(self, session: int) -> None:
        home = self._homes.pop(session, None)
        if home is not None:
            self._sessions[home] -= 1


def least_loaded(replicas: Sequence[RoutableReplica], among: Sequence[int]) -> int:
    """Return the replica with the fewest active sessions, then the fewest waiting and running
    turns, then the first.
    """
    if len(among) == 1:  # the usual case, and counting sessions takes longer the more there are
        return among[0]
    return min(
        among,
        key=lambda i: (
            len(replicas[i].active),
            replicas[i].num_waiting,
            replicas[i].num_running,
            i,
        ),
    )
