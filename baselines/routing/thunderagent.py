"""ThunderAgent's placement: sessions stay while they are active, and come in where most room is.

arXiv:2602.13692, §"restore": a new or restored session goes onto the backend with the most room (the
largest of a best-fit-decreasing order first); a paused one may come back elsewhere, since its KV
counts as lost. Room is the cache less the contexts, and 100 tokens each, of the sessions there.
Differs: the capacity test of the admission policy looks at all backends together, so a session that
was paused is one that waited at the gate: its turn is sent later than it was ready.
"""

from __future__ import annotations

from collections.abc import Sequence

from marsbench.admission.base import SessionView
from marsbench.core import PolicyContext
from marsbench.events import Event, Kind
from marsbench.routing.base import Homes, RoutableReplica

MARGIN_TOKENS = 100


class MostRoom(Homes):
    """Routing policy: affinity, until a session has waited at the gate."""

    def __init__(self, context: PolicyContext) -> None:
        super().__init__()
        self._ready_s: dict[int, float] = {}
        self._held: dict[int, tuple[int, int]] = {}
        """Session -> replica number and tokens there."""
        self._used: dict[int, int] = {}

    def on_event(self, event: Event) -> None:
        """Turns that get ready, and ended sessions."""
        if event.kind == Kind.TURN_READY:
            self._ready_s[event.session] = event.time_s
        elif event.kind == Kind.SESSION_END:
            self._leave(event.session)
            self._ready_s.pop(event.session, None)
            super().on_event(event)

    def route(self, turn: SessionView, replicas: Sequence[RoutableReplica], now_s: float) -> int:
        """Return the session's last replica if the session did not wait, else the one with the most
        room.
        """
        self._leave(turn.session)
        home = self.position(turn.session, replicas)
        waited = now_s > self._ready_s.get(turn.session, now_s)
        if home is None or waited:
            home = max(range(len(replicas)), key=lambda i: (self._room(replicas[i]), -i))
        number, tokens = replicas[home].index, turn.prompt_tokens + MARGIN_TOKENS
        self._held[turn.session] = number, tokens
        self._used[number] = self._used.get(number, 0) + tokens
        return self.bind(turn.session, replicas, home)

    def _room(self, replica: RoutableReplica) -> int:
        return replica.num_blocks * replica.block_size - self._used.get(replica.index, 0)

    def _leave(self, session: int) -> None:
        number, tokens = self._held.pop(session, (-1, 0))
        if tokens:
            self._used[number] -= tokens
