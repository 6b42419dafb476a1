"""Static window: at most N sessions at a time, whatever happens.

The fixed concurrency limit of agent harnesses, and the yardstick for adaptive admission (CONCUR,
arXiv:2601.22705, and MARS compare with it). Reproduced: a session enters, in order of arrival,
when fewer than ``window`` sessions are active, and stays until it ends, tools included; the engine
is stock vLLM. ``static-tuned`` finds N on other sessions, ``static-best`` with hindsight.
Sub-agents enter with their parent and take no place of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

from marsbench.admission.base import SessionView, SystemView
from marsbench.core import PolicyContext
from marsbench.errors import ConfigError
from marsbench.events import Event
from marsbench.system import Policies, System

WINDOWS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 32, 48, 64)


class StaticWindow:
    """Admits sessions while fewer than a constant number are active."""

    gates_continuations = False
    tick_s: float | None = None

    def __init__(self, context: PolicyContext) -> None:
        self._window = context.params.get("window", 8)
        if self._window < 1:
            raise ConfigError(f"static: window must be at least 1, got {self._window:g}")

    def on_event(self, event: Event) -> None:
        """Nothing to learn."""

    def admit(
        self, pending: Sequence[SessionView], view: SystemView, now_s: float
    ) -> Sequence[SessionView]:
        """Fill the free places in order of arrival; sub-agents pass."""
        free = self._window - sum(not session.is_child for session in view.active)
        admitted = []
        for session in pending:
            if session.is_child:
                admitted.append(session)
            elif free >= 1:
                admitted.append(session)
                free -= 1
        return admitted


def build(context: PolicyContext) -> Policies:
    """Build a constant window for a deployment."""
    return Policies(admission=StaticWindow(context))


STATIC = System(
    name="static",
    summary="stock vLLM behind a fixed number of active sessions (default 8)",
    build=build,
    tunable={"window": WINDOWS},
    limits={"window": (1, 1024)},
)
