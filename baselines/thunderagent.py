"""ThunderAgent: pause whole sessions between turns when their contexts outgrow the KV cache.

Paper: "ThunderAgent", ICML'26, arXiv:2602.13692, capacity test, pause and restore rules. ``thunderagent``
follows the defaults of the authors' public router, ``thunderagent-paper`` the decay of the paper.
Reproduced: every 5 s, first restore, then test. What sessions use is the sum of their contexts and 100
tokens each, less what they share, which the router's formula takes to be the contexts of those
in the engine beyond the blocks in use. Beyond the cache sessions pause, those in tools first, the smallest first;
if that does not suffice, all that run are marked and pause when their turn ends. Restore: paused
sessions with a turn to run, then new ones, then those still in tools, smallest first, while they fit.
A new session enters at once if nobody is queued or paused and it fits; after 1800 s of waiting
a turn goes on by force. In the paper a context in tools counts half as much with every second there
(``decay`` 2) and nothing is subtracted for sharing; the router's default is no decay (1). Differs: token counts are exact instead of
estimated from characters; the router's release never refreshes its count of shared tokens, here
each test does; one backend, so no migration or bin packing; no preparation of tool environments.
The test is made when a turn asks to enter (all do), at most every 5 s. With nothing else active
the first in the order enters even if it is too large, since it could never enter otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

from marsbench.admission.base import SessionView, SystemView
from marsbench.core import PolicyContext
from marsbench.events import Event, Kind
from marsbench.system import Policies, System


@dataclass(frozen=True, slots=True)
class PauseRules:
    """Constants of a router that pauses and restores sessions."""

    period_s: float = 5.0
    """Time between two tests."""
    decay: float = 1.0
    """A context in tools is divided by this for every second there."""
    capacity_share: float = 1.0
    """Share of the cache beyond which sessions pause."""
    target: float = 1.0
    """They pause until no more than this part of that share is in use."""
    restore: float = 1.0
    """Paused sessions come back while they fit into this part of it."""
    entry: float = 1.0
    """New sessions enter at once while they fit into this part of it."""
    margin_tokens: float = 100.0
    """Kept free for each session."""
    force_resume_s: float = 1800.0
    """A turn that has waited so long goes on whatever is in use."""
    lease_s: float = math.inf
    """A session that has been in its tools for so long counts as gone; it comes back as a new one."""
    subtract_shared: float = 1.0
    """Whether shared prefixes are subtracted (0 or 1)."""

    def changed(self, context: PolicyContext) -> PauseRules:
        """Return the rules with the parameters that the user gives."""
        names = [field.name for field in fields(self)]
        given = {name: context.params[name] for name in names if name in context.params}
        return replace(self, **given)


class ThunderAgent:
    """Admission policy: session-level pause and restore on a periodic capacity test."""

    gates_continuations = True

    def __init__(self, context: PolicyContext, rules: PauseRules | None = None) -> None:
        self._rules = (rules or PauseRules()).changed(context)
        self.tick_s: float | None = self._rules.period_s
        tokens = context.num_blocks * context.block_size
        self._capacity = tokens * self._rules.capacity_share
        self._next_s = 0.0
        self._shared = 0.0
        self.paused: set[int] = set()
        self.marked: set[int] = set()
        """Sessions that pause when their turn ends."""
        self.queued: set[int] = set()
        """New sessions that could not enter at once."""
        self.gone: set[int] = set()
        """Sessions whose lease has ended."""

    def on_event(self, event: Event) -> None:
        """Marked sessions pause at the end of their turn; ended ones are forgotten."""
        if event.kind == Kind.GPU_END and event.session in self.marked:
            self.marked.discard(event.session)
            self.paused.add(event.session)
        elif event.kind == Kind.SESSION_END:
            for sessions in (self.marked, self.paused, self.queued, self.gone):
                sessions.discard(event.session)

    def admit(
        self, pending: Sequence[SessionView], view: SystemView, now_s: float
    ) -> Sequence[SessionView]:
        """Let in turns of sessions that are not paused, and new sessions that fit or are restored."""
        active = {session.session for session in view.active} - self.gone
        staying = [s for s in view.active if s.session in active and s.session not in self.paused]
        if now_s >= self._next_s:
            self._next_s = now_s + self._rules.period_s
            self._test(pending, view, active, staying, now_s)
        for session in pending:
            if self._held(session) and now_s - session.phase_since_s >= self._rules.force_resume_s:
                self._let_go(session)
            elif session.session not in active and not self._held(session):
                self._enter(session, staying, now_s)
        admitted = [session for session in pending if not self._held(session)]
        if pending and not admitted and not self._progress(view):
            admitted = self._by_group(pending, active)[:1]
            self._let_go(admitted[0])
        return admitted

    def _held(self, session: SessionView) -> bool:
        return session.session in self.paused or session.session in self.queued

    def _let_go(self, session: SessionView) -> None:
        for sessions in (self.paused, self.queued, self.gone):
            sessions.discard(session.session)

    def _enter(self, session: SessionView, staying: list[SessionView], now_s: float) -> None:
        """A new session enters at once behind nobody, if it fits; else it is queued."""
        need = self._tokens(session) + self._rules.margin_tokens
        room = self._capacity * self._rules.entry - self._used(staying, now_s)
        if self.queued or self.paused or need > room:
            self.queued.add(session.session)
        else:
            self._let_go(session)
            staying.append(session)

    # --- what is in use --------------------------------------------------------------------

    def _tokens(self, session: SessionView) -> int:
        """Context a session needs now."""
        return max(session.context_tokens, session.prompt_tokens)

    def _counted(self, session: SessionView, now_s: float) -> float:
        """Its context, less by decay while it is in its tools, and the margin."""
        tokens = float(self._tokens(session))
        if session.phase == "tool":
            tokens *= self._rules.decay ** -(now_s - session.phase_since_s)
        return tokens + self._rules.margin_tokens

    def _used(self, staying: Iterable[SessionView], now_s: float) -> float:
        return sum(self._counted(session, now_s) for session in staying) - self._shared

    def _shared_tokens(self, staying: Iterable[SessionView], view: SystemView) -> float:
        """Contexts in the engine beyond the blocks that are in use."""
        in_engine = sum(self._tokens(session) for session in staying if session.phase == "engine")
        in_use = (view.num_blocks - view.free_blocks) * view.block_size
        return self._rules.subtract_shared * max(0.0, in_engine - in_use)

    # --- the periodic test -----------------------------------------------------------------

    def _test(
        self,
        pending: Sequence[SessionView],
        view: SystemView,
        active: set[int],
        staying: list[SessionView],
        now_s: float,
    ) -> None:
        """End leases, restore who fits, then pause until the others fit."""
        for session in view.active:
            if session.phase == "tool" and now_s - session.phase_since_s >= self._rules.lease_s:
                self.gone.add(session.session)
                self.paused.discard(session.session)
                active.discard(session.session)
        staying[:] = [session for session in staying if session.session in active]
        self._shared = self._shared_tokens(staying, view)
        waiting = {session.session for session in pending}
        away = [s for s in view.active if s.session in self.paused - waiting]
        back = [session for session in pending if self._held(session)]
        restored = self._restore(self._by_group([*back, *away], active), staying, now_s)
        active |= restored
        self._pause(staying, now_s)

    def _by_group(self, sessions: Iterable[SessionView], active: set[int]) -> list[SessionView]:
        """Paused sessions with a turn to run, new ones, those in tools; the smallest of each first."""
        return sorted(
            sessions,
            key=lambda s: (
                s.phase == "tool", s.session not in active, self._tokens(s), s.session,
            ),
        )  # fmt: skip

    def _restore(
        self, ordered: Iterable[SessionView], staying: list[SessionView], now_s: float
    ) -> set[int]:
        restored = set()
        room = self._capacity * self._rules.restore - self._used(staying, now_s)
        for session in ordered:
            need = self._tokens(session) + self._rules.margin_tokens
            if need <= room:
                room -= need
                self._let_go(session)
                staying.append(session)
                restored.add(session.session)
        return restored

    def _pause(self, staying: list[SessionView], now_s: float) -> None:
        """Until the others fit, those in tools pause. A mark takes nothing off: then all that run
        get one.
        """
        used = self._used(staying, now_s)
        if used <= self._capacity:
            return
        target = self._capacity * self._rules.target
        for session in sorted(staying, key=lambda s: (self._tokens(s), s.session)):
            if session.phase == "tool" and used > target:
                used -= self._counted(session, now_s)
                self.paused.add(session.session)
                staying.remove(session)
        if used > target:
            self.marked |= {session.session for session in staying if session.phase != "tool"}

    def _progress(self, view: SystemView) -> bool:
        """Whether some session is in the engine or in tools and will bring the next event."""
        return any(session.phase in {"engine", "tool"} for session in view.active)


def build(context: PolicyContext) -> Policies:
    """Build ThunderAgent as its public router runs."""
    return Policies(admission=ThunderAgent(context))


def build_paper(context: PolicyContext) -> Policies:
    """Build ThunderAgent with the decay that its paper describes."""
    return Policies(admission=ThunderAgent(context, PauseRules(decay=2.0, subtract_shared=0.0)))


TUNABLE = {
    "period_s": (1.0, 2.0, 5.0),
    "decay": (1.0, 1.02, 1.05, 1.1, 1.2, 2.0),
    "capacity_share": (0.85, 1.0, 1.15, 1.3),
}
LIMITS = {"period_s": (0.25, 60.0), "decay": (1.0, 100.0), "capacity_share": (0.25, 4.0)}

THUNDERAGENT = System(
    name="thunderagent",
    summary="ThunderAgent (ICML'26), the router's defaults: pause and restore sessions every 5 s",
    build=build,
    tunable=TUNABLE,
    limits=LIMITS,
)

THUNDERAGENT_PAPER = System(
    name="thunderagent-paper",
    summary="ThunderAgent as in the paper: contexts in tools count half with every second there",
    build=build_paper,
    tunable=TUNABLE,
    limits=LIMITS,
)
