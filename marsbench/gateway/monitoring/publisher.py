"""The gateway's event stream over ZeroMQ, so that a scheduler inside an engine hears what it knows.

Messages and sockets are those of ``marsbench.engine.link``: a ``Batch`` for each event, and about once
a second a ``Beat`` with the sessions that are active, so that who joins late or lost messages is up
to date after one. ``engine.link.sockets.Inlet`` reads it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from marsbench.core import to_ps
from marsbench.engine.life import SessionState
from marsbench.engine.link.sockets import Outlet
from marsbench.engine.link.wire import BEAT_S, Batch, Beat, wire_event, wire_session
from marsbench.errors import ConfigError
from marsbench.events import Event


class Publisher:
    """Sending never blocks; without subscribers it costs next to nothing."""

    def __init__(
        self,
        address: str,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        try:
            self._outlet = Outlet(address)
        except ConfigError as error:
            raise ConfigError(f"--publish: {error}") from error
        self.active: Mapping[int, SessionState] = {}
        """What a beat tells: admitted, unfinished sessions."""
        self._wall_ns = wall_ns
        self._beat_ps = -to_ps(BEAT_S)

    def event(self, event: Event, session_id: str) -> None:
        """Send one event."""
        outlet = self._outlet
        outlet.send(Batch(outlet.boot, outlet.seq, (wire_event(event, session_id),)))

    def beat(self, now_ps: int) -> None:
        """Send the active sessions, if the last beat is old enough."""
        if now_ps - self._beat_ps < to_ps(BEAT_S):
            return
        self._beat_ps = now_ps
        sessions = tuple(wire_session(s, s.session_id) for s in self.active.values())
        outlet = self._outlet
        outlet.send(Beat(outlet.boot, outlet.seq, now_ps, self._wall_ns(), sessions))

    def close(self) -> None:
        """Send what is queued and close."""
        self._outlet.close()
