"""The policy that agentservesim's automated search found: short pins, small contexts, cheap victims.

Source: AgentServeSim, arXiv:2606.09613, public repository, the search's joint champion ("gate").
Reproduced: a turn keeps its KV for 2 s unless the moving average (weight 0.2) of the tool's waits is
beyond 3 s; sessions with pinned KV go first, then by arrival of the session, where each token of the
context up to 10,000 counts as one more millisecond; the running turn that is cheapest to compute
again is preempted first; a turn that does not fit waits without holding up those that do.
Differs: the gate stands in the engine's own queue, where the cached part of a prompt is known; pins
last until the session's turn is scheduled and are given up as in soft_pins.py; the place in the
queue is looked at again while a turn waits, not stamped once.
"""

from __future__ import annotations

from baselines.continuum import Continuum
from marsbench.core import PolicyContext
from marsbench.scheduler.base import EngineView, Key, TurnView
from marsbench.system import Policies, System

WEIGHT = 0.2
PATIENCE = 1.5
"""A tool whose waits are longer than this many times the pin's life is not waited for."""


class EvolvedGate(Continuum):
    """Scheduling and retention policy of the search's best candidate."""

    def __init__(self, context: PolicyContext) -> None:
        super().__init__(context)
        self._band_tokens = context.params.get("band_tokens", 10_000.0)
        self._means_s: dict[str, float] = {}

    def observe_wait(self, tool: str, wait_s: float) -> None:
        """Note a wait in the moving average of its tool."""
        before_s = self._means_s.get(tool, wait_s)
        self._means_s[tool] = before_s + WEIGHT * (wait_s - before_s)

    def ttl_s(self, tool: str, turn: TurnView) -> float:
        """Return the constant TTL, seconds, or 0 for a tool that takes longer."""
        return self._ttl_s if self._means_s.get(tool, 0.0) <= PATIENCE * self._ttl_s else 0.0

    def waiting_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """Serve pinned sessions first, then by arrival and size of the context."""
        unpinned = 0.0 if turn.session in self._pinned else 1.0
        arrival_s, session = self.session_rank(turn)
        size_s = min(float(turn.prompt_tokens), self._band_tokens) / 1000.0
        return (unpinned, arrival_s + size_s, float(session), float(turn.sequence))

    def victim_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """Preempt the turn with the fewest tokens to compute again."""
        return (-float(turn.prompt_tokens + turn.generated_tokens), float(turn.sequence))

    def skip_blocked(self) -> bool:
        """Return True: a turn that does not fit lets others pass."""
        return True


def build(context: PolicyContext) -> Policies:
    """Build the searched gate for a deployment."""
    policy = EvolvedGate(context)
    return Policies(scheduling=policy, retention=policy)


EVOLVED_GATE = System(
    name="evolved-gate",
    summary="agentservesim's evolved policy: 2 s pins, small contexts first, cheapest victim",
    build=build,
    tunable={"ttl_s": (1.0, 2.0, 6.0, 20.0), "band_tokens": (0.0, 10_000.0, 40_000.0)},
    limits={"band_tokens": (0.0, 1e6)},
)
