"""The admission gate of a run: turns that could be sent to the engine and wait to be let in."""

from __future__ import annotations

from collections.abc import Callable

from marsbench.admission.base import AdmissionPolicy, SystemView
from marsbench.core import to_ps, to_s
from marsbench.engine.life import SessionState
from marsbench.errors import PolicyError
from marsbench.system import is_null

MAX_IDLE_TICKS = 100_000
"""Ticks in a row with nothing running, due or admitted after which a policy is stuck."""


class Gate:
    """Asks the admission policy; decides nothing itself."""

    def __init__(
        self,
        policy: AdmissionPolicy,
        submit: Callable[[SessionState, int], None],
        tick_at: Callable[[int], None],
    ) -> None:
        """``submit`` sends a turn on; ``tick_at`` asks for a tick at a time."""
        self.pending: list[SessionState] = []
        """In order of arrival here."""
        self._policy = policy
        self._submit = submit
        self._request_tick = tick_at
        self._gated = not is_null(policy)
        self._tick_at_ps = -1
        self._idle_ticks = 0

    def holds(self, state: SessionState) -> bool:
        """Whether the session's current turn has to wait here."""
        return self._gated and (
            (not state.admitted and state.parent is None) or self._policy.gates_continuations
        )

    def ask(self, view: SystemView, at_ps: int) -> None:
        """Let in whom the policy chooses."""
        pending = self.pending
        chosen = self._policy.admit(list(pending), view, to_s(at_ps))
        waiting = {state.session: state for state in pending} if chosen else {}
        for session in chosen:
            state = waiting.pop(session.session, None)
            if state is None:
                raise PolicyError(
                    f"admission let session {session.session} in, which is not pending"
                )
            pending.remove(state)
            self._submit(state, at_ps)
        tick_s = self._policy.tick_s
        if pending and tick_s is not None and self._tick_at_ps <= at_ps:
            self._tick_at_ps = at_ps + max(to_ps(tick_s), 1)
            self._request_tick(self._tick_at_ps)

    def ticked(self, at_ps: int, *, idle: bool) -> None:
        """Count the ticks at which nothing runs and nothing can change; PolicyError if a policy
        goes on like that.
        """
        self._idle_ticks = self._idle_ticks + 1 if idle else 0
        if self._idle_ticks > MAX_IDLE_TICKS:
            raise self.stalled(at_ps)

    def stalled(self, at_ps: int) -> PolicyError:
        """Return the error about a policy that lets nobody in for ever."""
        return PolicyError(
            f"admission held {len(self.pending)} turns back while nothing was active "
            f"at {to_s(at_ps):.3f} s; it must admit at least one then"
        )
