"""Session-level first come, first served: the order most agent schedulers build on.

Known from Continuum (arXiv:2511.02230, program-level FCFS) and InferCept (ICML'24,
arXiv:2402.01869, a returning request keeps its first arrival). Reproduced: waiting turns are
ordered by the arrival of their session, not of the turn, and the youngest session is preempted
first. Differs: nothing else; blocks, quanta and retention are stock vLLM's. A sub-agent ranks
with the session that started it, since that session waits for it.
"""

from __future__ import annotations

from marsbench.core import PolicyContext
from marsbench.events import Event, Kind
from marsbench.scheduler.base import EngineOrder, EngineView, Key, TurnView
from marsbench.system import Policies, System


class SessionFcfs(EngineOrder):
    """Scheduling policy; the base of the policies that keep this order. All else is vLLM's way."""

    def __init__(self) -> None:
        self._rank: dict[int, tuple[float, int]] = {}

    def on_event(self, event: Event) -> None:
        """Learn who started whom, so that sub-agents inherit their parent's rank."""
        if event.kind == Kind.SESSION_ARRIVE:
            own = (event.time_s, event.session)
            parent = event.get("parent")
            self._rank[event.session] = self._rank.get(parent, own) if parent >= 0 else own
        elif event.kind == Kind.SESSION_END:
            self._rank.pop(event.session, None)

    def session_rank(self, turn: TurnView) -> tuple[float, int]:
        """Return arrival and index of the session, or of the session that started it."""
        return self._rank.get(turn.session, (turn.session_arrival_s, turn.session))

    def waiting_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """Serve the oldest session first."""
        return (*self.session_rank(turn), float(turn.sequence))

    def victim_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """Preempt the youngest session first."""
        return (*self.session_rank(turn), float(turn.sequence))


def build(context: PolicyContext) -> Policies:
    """Build the order by session age for a deployment."""
    return Policies(scheduling=SessionFcfs())


SESSION_FCFS = System(
    name="session-fcfs",
    summary="turns in order of their session's arrival; stock memory management",
    build=build,
    tunable={"long_prefill_token_threshold": (0, 256, 512, 1024, 2048, 4096)},
    limits={"long_prefill_token_threshold": (0, 65_536)},
)
