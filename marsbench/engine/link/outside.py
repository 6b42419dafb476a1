"""The driver's end of the link: tells the scheduler inside a server what happens around it, and
takes in what the engine does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from marsbench.core import to_ps
from marsbench.engine.life import SessionState
from marsbench.engine.link.roster import STREAMED
from marsbench.engine.link.sockets import Inlet, Outlet, RemoteClock
from marsbench.engine.link.wire import (
    BEAT_S,
    STATE_S,
    Batch,
    Beat,
    EngineState,
    wire_event,
    wire_session,
)
from marsbench.events import Event, Kind

PUMP_S = STATE_S
"""The engine tells its state no oftener; each look costs the machine a wake-up."""
SILENCE_S = 5.0
"""A scheduler with turns to run that says nothing for so long is taken for lost."""


class Ear(Protocol):
    """Takes in what the scheduler says the engine does. A live core is one."""

    def idle(self) -> bool:
        """Whether nothing is in the engine."""
        ...

    def engine_event(
        self, kind: Kind, session: int, turn: int, at_ps: int, args: tuple[int, ...]
    ) -> None:
        """Hear what happened inside the engine, timed by the driver's clock."""
        ...

    def engine_state(self, state: EngineState | None) -> None:
        """Hear the state of the KV cache and of the queues; None if it is not known any more."""
        ...


class OutsideLink:
    """Lives as long as its server; ``begin`` starts it for each run."""

    def __init__(
        self,
        *,
        publish: str,
        listen: str,
        note: Callable[[str], None],
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """``note`` is told, once each, when the scheduler falls silent and when it is back."""
        self._outlet = Outlet(publish)
        try:
            self._inlet = Inlet(listen)
        except BaseException:
            self._outlet.close()
            raise
        self._note = note
        self._wall_ns = wall_ns
        self._now_ps: Callable[[], int] = int
        self._salt = ""
        self._states: Sequence[SessionState] = ()
        self._ear: Ear | None = None
        self._clock = RemoteClock()
        self._boot = ""
        self._alive: dict[int, None] = {}
        self._beat_ps = 0
        self._busy_ps: int | None = None
        self._silent = False
        self._lost_before = 0
        self.outages = 0
        """Times the scheduler fell silent in this run."""
        self.heard = 0
        """Events of the engine in this run."""

    def name(self, session: int) -> str:
        """Return the name by which requests call a session."""
        return f"{self._salt}/{session}"

    def begin(
        self, *, salt: str, states: Sequence[SessionState], ear: Ear, now_ps: Callable[[], int]
    ) -> None:
        """Begin a new run, for which the scheduler forgets what it knew of the last one."""
        self._inlet.poll()  # what is left of the last run
        self._salt, self._states, self._ear, self._now_ps = salt, states, ear, now_ps
        self._outlet.begin()
        self._clock = RemoteClock()
        self._boot = ""
        self._alive = {}
        self._busy_ps = None
        self._silent = False
        self._lost_before = self._inlet.lost
        self.outages = self.heard = 0
        self.beat()

    def event(self, event: Event) -> None:
        """Tell the scheduler of an event, if it is one that it cannot know of by itself."""
        if event.kind not in STREAMED:
            return
        session = event.session
        if event.kind == Kind.SESSION_ARRIVE:
            self._alive[session] = None
        elif event.kind == Kind.SESSION_END:
            self._alive.pop(session, None)
        wire = wire_event(event, self.name(session) if session >= 0 else "")
        self._outlet.send(Batch(self._outlet.boot, self._outlet.seq, (wire,)))

    def beat(self) -> None:
        """Send a beat: all sessions that are not finished."""
        self._beat_ps = self._now_ps()
        sessions = tuple(wire_session(self._states[k], self.name(k)) for k in self._alive)
        outlet = self._outlet
        outlet.send(Beat(outlet.boot, outlet.seq, self._beat_ps, self._wall_ns(), sessions))

    def pump(self) -> None:
        """Take in what has come, beat if it is time, and notice silence."""
        for message in self._inlet.poll():
            self._take(message)
        now_ps = self._now_ps()
        if now_ps - self._beat_ps >= to_ps(BEAT_S):
            self.beat()
        self._listen_for_silence(now_ps)

    async def keep_up(self) -> None:
        """Pump messages again and again until the task is cancelled."""
        while True:
            self.pump()
            await asyncio.sleep(PUMP_S)

    def report(self) -> dict[str, Any]:
        """Return what the cell's entry in ``summary.json`` says of the link."""
        return {
            "engine_events": self.heard,
            "lost_messages": self._inlet.lost - self._lost_before,
            "damaged_messages": self._inlet.damaged,
            "outages": self.outages,
        }

    def close(self) -> None:
        """Close both sockets."""
        self._outlet.close()
        self._inlet.close()

    def _take(self, message: Batch | Beat | EngineState) -> None:
        assert self._ear is not None
        now_ps = self._now_ps()
        if message.boot != self._boot:  # another engine process: another clock
            self._boot = message.boot
            self._clock = RemoteClock()
        if isinstance(message, EngineState):
            self._clock.seen(message.now_ps, now_ps)
            self._ear.engine_state(message)
        elif isinstance(message, Batch):
            for event in message.events:
                self._clock.seen(event.time_ps, now_ps)
                salt, _, number = event.session_id.rpartition("/")
                if salt == self._salt and number.isdigit():
                    self.heard += 1
                    at_ps = max(0, self._clock.here(event.time_ps, now_ps))
                    kind, args = Kind(event.kind), event.args
                    if kind == Kind.KV_PIN:
                        args = (args[0], self._clock.later(args[1]))
                    self._ear.engine_event(kind, int(number), event.turn, at_ps, args)

    def _listen_for_silence(self, now_ps: int) -> None:
        assert self._ear is not None
        if self._ear.idle():
            self._busy_ps = None
        elif self._busy_ps is None:
            self._busy_ps = now_ps
        busy_ps = 0 if self._busy_ps is None else now_ps - self._busy_ps
        quiet = self._inlet.age_s > SILENCE_S
        if not self._silent and quiet and busy_ps > to_ps(SILENCE_S):
            self._silent = True
            self.outages += 1
            self._ear.engine_state(None)
            self._note(
                f"the scheduler inside the server has been silent for {SILENCE_S:g} s with turns to "
                "run; going on with the server's metrics"
            )
        elif self._silent and not quiet:
            self._silent = False
            self._note("the scheduler inside the server is back")
