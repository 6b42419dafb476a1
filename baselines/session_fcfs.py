"""Session-level first come, first served: the order most agent schedulers build on.

Known from Continuum (arXiv:2511.02230, program-level FCFS) and InferCept (ICML'24,
arXiv:2402.01869, a returning request keeps its first arrival). Reproduced: waiting turns are
ordered by the arrival of their session, not of the turn, and the youngest session is preempted
first. Differs: nothing else; blocks, quanta and retention are stock vLLM's. A sub-agent ranks
with the session that started it, since that session waits for it.
"""

from __future__ import annotations

import math

from marsbench.core import PolicyContext
from marsbench.events import Event, Kind
from marsbench.scheduler.base import EngineView, Key, TurnView
from marsbench.system import Policies, System


class SessionFcfs:
    """Scheduling policy; the base of the policies that keep this order."""

    reorders_running = False
    resort_s = math.inf

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
        """Arrival and index of the session, or of the session that started it."""
        return self._rank.get(turn.session, (turn.session_arrival_s, turn.session))

    def waiting_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """Oldest session first."""
        return (*self.session_rank(turn), float(turn.sequence))

    def running_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """Never asked."""
        return ()

    def prefill_quantum(self, turn: TurnView, view: EngineView, now_s: float) -> int | None:
        """The engine's own limits only."""
        return None

    def on_scheduled(
        self, turn: TurnView, new_tokens: int, quantum: int | None, now_s: float
    ) -> None:
        """Nothing to learn."""

    def victim_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """The youngest session is preempted first."""
        return (*self.session_rank(turn), float(turn.sequence))

    def skip_blocked(self) -> bool:
        """Stop at the first turn that does not fit, as vLLM does."""
        return False

    def shrink_chunks(self) -> bool:
        """Preempt at once, as vLLM does."""
        return False


def build(context: PolicyContext) -> Policies:
    return Policies(scheduling=SessionFcfs())


SESSION_FCFS = System(
    name="session-fcfs",
    summary="turns in order of their session's arrival; stock memory management",
    build=build,
    tunable={"long_prefill_token_threshold": (0, 256, 512, 1024, 2048, 4096)},
)
