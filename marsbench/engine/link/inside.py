"""The scheduler's end of the link: hears the control plane, tells it what the engine does.

Everything is done between steps and nothing waits. While the control plane is silent the scheduler
goes on with what requests say by themselves, as it does where there is none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from marsbench.core import to_ps
from marsbench.engine.link.roster import Roster
from marsbench.engine.link.sockets import Inlet, Outlet
from marsbench.engine.link.wire import BEAT_S, STATE_S, Batch, EngineState, WireEvent, wire_event
from marsbench.events import Event, Kind

TOLD = frozenset(
    {
        Kind.GPU_SCHED_FIRST,
        Kind.GPU_FIRST_TOKEN,
        Kind.GPU_PREEMPT,
        Kind.GPU_RESUME,
        Kind.GPU_END,
        Kind.KV_PIN,
        Kind.KV_UNPIN,
    }
)
"""Events that the control plane learns from the engine, which knows them best."""
SILENCE_S = 3 * BEAT_S

Sizes = tuple[int, int, int, int, int]
"""(blocks, free, pinned, running turns, waiting turns)."""

log = logging.getLogger(__name__)


class InsideLink:
    """Polled by the scheduler; each address may be empty (nothing heard, or nothing told)."""

    def __init__(
        self,
        *,
        listen: str,
        publish: str,
        roster: Roster,
        now_ps: Callable[[], int],
        restarted: Callable[[], None],
    ) -> None:
        """``restarted`` is called before the first message of a new control plane is taken in."""
        self._inlet = Inlet(listen) if listen else None
        self._outlet = Outlet(publish) if publish else None
        self._roster = roster
        self._now_ps = now_ps
        self._restarted = restarted
        self._boot = ""
        self._events: list[WireEvent] = []
        self._state_ps = -to_ps(STATE_S)
        self._silent = False
        self._damaged = 0

    @property
    def linked(self) -> bool:
        """Whether the control plane spoke lately (not: whether it was read lately)."""
        heard_ps = self._roster.heard_ps
        return heard_ps is not None and self._now_ps() - heard_ps <= to_ps(SILENCE_S)

    def poll(self) -> None:
        """Take in what the control plane has sent."""
        inlet = self._inlet
        if inlet is None:
            return
        for message in inlet.poll():
            if message.boot != self._boot:
                self._boot = message.boot
                self._restarted()
            self._roster.heard(message)
        if inlet.damaged and not self._damaged:
            log.warning("marsbench: messages are ignored: %s", inlet.problem)
        self._damaged = inlet.damaged
        if self._silent and self.linked:
            self._silent = False
            log.warning("marsbench: the control plane is back")
        elif not self._silent and not self.linked and self._roster.expects:
            self._silent = True
            log.warning(
                "marsbench: the control plane has been silent for %g s; going on with what "
                "requests say by themselves",
                SILENCE_S,
            )

    def event(self, event: Event) -> None:
        """Keep what the control plane should know, until ``flush``."""
        if self._outlet is None or event.kind not in TOLD:
            return
        name = self._roster.name_of(event.session)
        self._events.append(wire_event(event, name))

    def flush(self, sizes: Callable[[], Sizes], *, now: bool) -> None:
        """Send what was kept and, if the last is old or ``now``, the engine's state."""
        outlet = self._outlet
        if outlet is None:
            return
        if self._events:
            outlet.send(Batch(outlet.boot, outlet.seq, tuple(self._events)))
            self._events.clear()
        now_ps = self._now_ps()
        if now or now_ps - self._state_ps >= to_ps(STATE_S):
            self._state_ps = now_ps
            outlet.send(EngineState(outlet.boot, outlet.seq, now_ps, *sizes()))

    def close(self) -> None:
        """Close both sockets; the link cannot be used afterwards."""
        for end in (self._inlet, self._outlet):
            if end is not None:
                end.close()
