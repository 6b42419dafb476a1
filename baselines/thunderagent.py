"""ThunderAgent: pause whole sessions between turns when their contexts outgrow the KV cache.

Paper: "ThunderAgent", ICML'26, arXiv:2602.13692, capacity test, pause and restore rules; constants
from the authors' public router.
Reproduced: every 5 s the contexts of running sessions plus those in tools, halved for every second
there, are compared with the cache; above it sessions pause, those in tools first, smallest
first, then running ones when their turn ends, smallest first. Restore: paused sessions with a turn
to run, then new ones, then those still in tools, smallest first, while they fit with a margin of
100 tokens each; a new session enters at once if nobody waits and it fits; after 1800 s a
session is resumed by force. Differs: token counts are exact instead of estimated from
characters; savings by shared prefixes are not subtracted; one backend, so no migration or
bin packing; no preparation of tool environments. The test is made when a turn asks to enter (all
do), at most every 5 s. With nothing else active the first in the order enters even if it is too
large, since it could never enter otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from marsbench.admission.base import SessionView, SystemView
from marsbench.core import PolicyContext
from marsbench.events import Event, Kind
from marsbench.system import Policies, System


class ThunderAgent:
    """Admission policy: session-level pause and restore on a periodic capacity test."""

    gates_continuations = True

    def __init__(self, context: PolicyContext) -> None:
        params = context.params
        self._period_s = params.get("period_s", 5.0)
        self.tick_s: float | None = self._period_s
        self._decay = params.get("decay_base", 2.0)
        self._margin = params.get("margin_tokens", 100.0)
        self._force_s = params.get("force_resume_s", 1800.0)
        self._capacity = context.num_blocks * context.block_size * params.get("capacity_share", 1.0)
        self._next_s = 0.0
        self.paused: dict[int, float] = {}
        """Session -> since when."""
        self.marked: set[int] = set()
        """Sessions that pause when their turn ends."""

    def on_event(self, event: Event) -> None:
        """Marked sessions pause at the end of their turn; ended ones are forgotten."""
        if event.kind == Kind.GPU_END and event.session in self.marked:
            self.marked.discard(event.session)
            self.paused[event.session] = event.time_s
        elif event.kind == Kind.SESSION_END:
            self.marked.discard(event.session)
            self.paused.pop(event.session, None)

    def admit(
        self, pending: Sequence[SessionView], view: SystemView, now_s: float
    ) -> Sequence[SessionView]:
        """Turns of sessions that are not paused, and what the restore rule lets in."""
        known = {session.session for session in view.active}
        new = [session for session in pending if session.session not in known]
        due = now_s >= self._next_s
        if due:
            self._next_s = now_s + self._period_s
            self._pause(view, now_s)
        entering = self._restore(pending, new, view, now_s) if due else []
        if not due and len(new) == 1 and not self.paused:
            room = self._room(view, now_s)
            entering = [s for s in new if self._tokens(s) + self._margin <= room]
        resumed = {session.session for session in entering}
        admitted = [
            s
            for s in pending
            if s.session in resumed or (s.session in known and s.session not in self.paused)
        ]
        if pending and not admitted and not self._progress(view):
            admitted = self._by_restore_order(pending, known)[:1]
            self.paused.pop(admitted[0].session, None)
        return admitted

    def _tokens(self, session: SessionView) -> int:
        """Context a session needs now."""
        return max(session.context_tokens, session.prompt_tokens)

    def _load(self, sessions: Iterable[SessionView], now_s: float) -> float:
        """Tokens of running sessions plus decayed tokens of those in tools."""
        return sum(
            self._tokens(s)
            * (self._decay ** -(now_s - s.phase_since_s) if s.phase == "tool" else 1.0)
            for s in sessions
            if s.session not in self.paused
        )

    def _room(self, view: SystemView, now_s: float) -> float:
        return self._capacity - self._load(view.active, now_s)

    def _pause(self, view: SystemView, now_s: float) -> None:
        """Pause until what stays fits; turns that are marked already count as gone."""
        staying = [s for s in view.active if s.session not in self.marked]
        excess = self._load(staying, now_s) - self._capacity
        candidates = sorted(
            (s for s in staying if s.session not in self.paused),
            key=lambda s: (s.phase != "tool", self._tokens(s), s.session),
        )
        for session in candidates:
            if excess <= 0:
                return
            excess -= self._load([session], now_s)
            if session.phase == "engine":
                self.marked.add(session.session)
            else:
                self.paused[session.session] = now_s

    def _by_restore_order(
        self, pending: Sequence[SessionView], known: set[int]
    ) -> list[SessionView]:
        return sorted(pending, key=lambda s: (s.session not in known, self._tokens(s), s.session))

    def _restore(
        self,
        pending: Sequence[SessionView],
        new: Sequence[SessionView],
        view: SystemView,
        now_s: float,
    ) -> list[SessionView]:
        """New sessions that may enter; paused ones are resumed in place."""
        room = self._room(view, now_s)
        waiting = {s.session for s in pending}
        paused = [s for s in view.active if s.session in self.paused]
        order = [
            *sorted((s for s in paused if s.session in waiting), key=self._tokens),
            *sorted(new, key=self._tokens),
            *sorted((s for s in paused if s.session not in waiting), key=self._tokens),
        ]
        fresh = {s.session for s in new}
        entering = []
        for session in order:
            need = self._tokens(session) + self._margin
            since_s = self.paused.get(session.session, session.phase_since_s)
            if need > room and now_s - since_s < self._force_s:
                continue
            room -= need
            if session.session in fresh:
                entering.append(session)
            else:
                del self.paused[session.session]
        return entering

    def _progress(self, view: SystemView) -> bool:
        """Whether some session is in the engine or in tools and will bring the next event."""
        return any(session.phase in {"engine", "tool"} for session in view.active)


def build(context: PolicyContext) -> Policies:
    return Policies(admission=ThunderAgent(context))


THUNDERAGENT = System(
    name="thunderagent",
    summary="ThunderAgent (ICML'26): pause and restore sessions on a capacity test every 5 s",
    build=build,
    tunable={
        "period_s": (2.0, 5.0, 10.0),
        "decay_base": (1.1, 2.0, 4.0, 8.0),
        "capacity_share": (0.7, 0.85, 1.0),
    },
)
