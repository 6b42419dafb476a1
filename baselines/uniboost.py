"""UniBoost: arrival order in which less work moves a turn forward by a bounded time.

Paper: UniBoost, ICML'26, as proposed for SGLang in sgl-project/sglang, pull request 35637 (open).
Reproduced: a waiting turn's rank is its submission less ln(1 / (1 - exp(-g w))) / g, where w is the
work of its uncached prompt and g sets how much work matters; g = 0 is first come, first served.
Differs: w is the seconds that the prefill takes alone, so that g (0.1 per second) does not depend on
the deployment; g is not fitted to the workload while it runs, it is the grid; preempted turns
stay in front, as vLLM has it.
"""

from __future__ import annotations

import math

from marsbench.core import PolicyContext
from marsbench.scheduler.base import EngineOrder, EngineView, Key, TurnView
from marsbench.system import Policies, System

RESORT_S = 0.1
"""How often prefix hits are looked at again: a few engine steps."""
LEAST_WORK_S = 1e-6
"""A turn with nothing to compute would be moved forward without bound."""


class UniBoost(EngineOrder):
    """Scheduling policy: submission less a boost that falls with the work."""

    resort_s = RESORT_S

    def __init__(self, context: PolicyContext) -> None:
        self._context = context
        self._gamma = context.params.get("gamma_per_s", 0.1)

    def boost_s(self, work_s: float) -> float:
        """Return by how many seconds a turn with so much work is moved forward."""
        if self._gamma <= 0:
            return 0.0
        return -math.log(-math.expm1(-self._gamma * max(work_s, LEAST_WORK_S))) / self._gamma

    def waiting_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """Serve preempted turns first, then by boosted submission."""
        if turn.num_preemptions:
            return (0.0, 0.0, float(turn.sequence))
        uncached = turn.prompt_tokens - view.cached_tokens(turn)
        work_s = self._context.prefill_s(uncached, turn.prompt_tokens)
        return (1.0, turn.ready_s - self.boost_s(work_s), float(turn.sequence))


def build(context: PolicyContext) -> Policies:
    """Build UniBoost for a deployment."""
    return Policies(scheduling=UniBoost(context))


UNIBOOST = System(
    name="uniboost",
    summary="UniBoost (ICML'26): arrival order, moved forward by little work, within bounds",
    build=build,
    tunable={"gamma_per_s": (0.001, 0.01, 0.1, 1.0)},
    limits={"gamma_per_s": (1e-6, 100.0)},
)
