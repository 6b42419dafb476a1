"""The protocol of routing: which of several engines behind one front door gets a turn.

A router sees what a front door knows (what it has sent where, and what came back) and what engines
tell it: their load and, by their KV events, which prefixes they hold. It never sees the future.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from marsbench.admission.base import SessionView, SystemView
from marsbench.events import Event, Kind


class RoutableReplica(SystemView, Protocol):
    """One engine behind the front door. Its ``active`` are the sessions whose last turn it got."""

    @property
    def index(self) -> int:
        """Its number: unchanged when others die or are added, never used again."""
        ...

    @property
    def in_flight(self) -> int:
        """Turns sent there and not answered."""
        ...

    @property
    def sessions(self) -> int:
        """Unfinished sessions whose last turn was sent there."""
        ...

    @property
    def prefill_tokens(self) -> int:
        """Prompt tokens to compute of turns sent there without a first token yet, less the prefix
        that was cached when they were sent.
        """
        ...

    @property
    def context_tokens(self) -> int:
        """Prompt tokens of all turns in flight."""
        ...

    def cached_tokens(self, turn: SessionView) -> int:
        """Prefix hit of the turn there now, as KV events tell it."""
        ...


class RoutingPolicy(Protocol):
    """Chooses the engine for a turn, when the turn is sent."""

    def on_event(self, event: Event) -> None: ...

    def route(self, turn: SessionView, replicas: Sequence[RoutableReplica], now_s: float) -> int:
        """Position in ``replicas``, which are those that live, of the one that gets the turn.

        Positions move when a replica dies: whoever remembers a choice remembers its ``index``.
        """
        ...


class FirstReplica:
    """The null router: one replica."""

    def on_event(self, event: Event) -> None:
        """Nothing to learn."""

    def route(self, turn: SessionView, replicas: Sequence[RoutableReplica], now_s: float) -> int:
        """Always the first."""
        return 0


class Homes:
    """Where sessions are bound to; what routers with affinity have in common."""

    def __init__(self) -> None:
        self._homes: dict[int, int] = {}

    def on_event(self, event: Event) -> None:
        """Forget sessions that have ended."""
        if event.kind == Kind.SESSION_END:
            self._homes.pop(event.session, None)

    def position(self, session: int, replicas: Sequence[RoutableReplica]) -> int | None:
        """Position of the replica that a session is bound to; None if there is none, or it died."""
        home = self._homes.get(session)
        if home is None:
            return None
        # Numbers grow with position, so without deaths before it the number is the position.
        at = min(home, len(replicas) - 1)
        while at >= 0 and replicas[at].index > home:
            at -= 1
        return at if at >= 0 and replicas[at].index == home else None

    def bind(self, session: int, replicas: Sequence[RoutableReplica], position: int) -> int:
        """Bind a session to a replica; returns the position again."""
        self._homes[session] = replicas[position].index
        return position


def least(replicas: Sequence[RoutableReplica]) -> int:
    """Position of the replica with the fewest turns in flight, then the fewest sessions."""
    return min(range(len(replicas)), key=lambda i: (replicas[i].in_flight, replicas[i].sessions, i))
