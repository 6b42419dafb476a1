"""Residual shortest job first: the turn with the least prompt left to compute goes first.

Source: vllm-project/vllm, pull request 51375 (open), and the same author's in xLLM.
Reproduced: waiting turns are ordered by the full blocks of their prompt less those that are cached now,
ties by submission; preempted turns stay in front; a turn that has waited 10 s goes by submission
before all that have not. Differs: nothing else; running turns, victims and memory are vLLM's.
"""

from __future__ import annotations

from marsbench.core import PolicyContext
from marsbench.scheduler.base import EngineOrder, EngineView, Key, TurnView
from marsbench.system import Policies, System

RESORT_S = 0.1
"""How often hits and waits are looked at again: a few engine steps."""


class ResidualSjf(EngineOrder):
    """Scheduling policy: least uncached prefill first, stragglers by age."""

    resort_s = RESORT_S

    def __init__(self, context: PolicyContext) -> None:
        self._max_wait_s = context.params.get("max_wait_s", 10.0)

    def waiting_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """Serve preempted turns first, then stragglers, then the fewest blocks left to compute."""
        if turn.num_preemptions:
            return (0.0, 0.0, float(turn.sequence))
        if now_s - turn.ready_s >= self._max_wait_s:
            return (1.0, 0.0, float(turn.sequence))
        cached = view.cached_tokens(turn) // view.block_size
        left = turn.prompt_tokens // view.block_size - cached
        return (2.0, float(left), float(turn.sequence))


def build(context: PolicyContext) -> Policies:
    """Build residual shortest job first for a deployment."""
    return Policies(scheduling=ResidualSjf(context))


RESIDUAL_SJF = System(
    name="residual-sjf",
    summary="vllm#51375: least uncached prefill first, in blocks; after 10 s by age",
    build=build,
    tunable={"max_wait_s": (1.0, 10.0, 100.0, 1000.0)},
    limits={"max_wait_s": (0.0, 1e6)},
)
