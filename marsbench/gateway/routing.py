"""The default router: a session stays where its KV is; a new one goes where fewest sessions are."""

from __future__ import annotations

from collections.abc import Sequence

from marsbench.admission.base import SessionView, SystemView
from marsbench.events import Event, Kind


class StickyLeastLoaded:
    """Routing policy with session affinity."""

    def __init__(self) -> None:
        self._homes: dict[int, int] = {}

    def on_event(self, event: Event) -> None:
        """Forget sessions that have ended."""
        if event.kind == Kind.SESSION_END:
            self._homes.pop(event.session, None)

    def route(self, turn: SessionView, replicas: Sequence[SystemView], now_s: float) -> int:
        """Where the session was before, else the replica with the fewest sessions."""
        home = self._homes.get(turn.session)
        if home is None:
            home = least_loaded(replicas, range(len(replicas)))
            self._homes[turn.session] = home
        return home

    def bind(self, session: int, replica: int) -> None:
        """The session had to move; its KV is there now."""
        self._homes[session] = replica


def least_loaded(replicas: Sequence[SystemView], among: Sequence[int]) -> int:
    """Fewest active sessions, then fewest waiting and running turns, then the first."""
    return min(
        among,
        key=lambda i: (
            len(replicas[i].active),
            replicas[i].num_waiting,
            replicas[i].num_running,
            i,
        ),
    )
