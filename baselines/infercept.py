"""InferCept: keep a paused session's KV while keeping wastes less memory-time than dropping.

Paper: "InferCept: Efficient Intercept Support for Augmented Large Language Model Inference",
ICML'24, arXiv:2402.01869, waste equations and the min-waste rule.
Reproduced: for a session paused for t seconds with context C, keeping wastes t*C; dropping wastes
T(C)*C for its own recomputation and T(C)*C_other because the turns that run meanwhile wait for it
(T = forward time of a prefill, C_other = tokens those turns hold). The remaining pause is not
known, so the elapsed one stands for it, and the comparison is repeated all
the time (here every 0.1 s instead of every step). A returning
turn keeps its session's place in the queue. Differs: preserve or discard only, since no host tier
is modelled and so nothing can be swapped; T comes from the cost model of the profile, not from a
fit on the authors' GPU; a running turn that lacks blocks takes the worst pin back before it
preempts, a waiting one only when nothing runs. ``discard_scale`` 0.5 is the variant in the MARS preview (recomputation in chunks
holds half of its memory on average).
"""

from __future__ import annotations

from collections.abc import Sequence

from baselines.soft_pins import SoftPins
from marsbench.core import PolicyContext
from marsbench.scheduler.base import EngineView, Key, Retain, RetainedView, TurnView
from marsbench.system import Policies, System

REVIEW_S = 0.1
"""A few steps; break-even times are seconds."""
OPEN_END_S = 1e6
"""Far beyond any run: the pin ends by ``review``, not by a clock."""


class InferCept(SoftPins):
    """Scheduling and retention policy: least waste, re-decided all the time."""

    review_s = REVIEW_S

    def __init__(self, context: PolicyContext) -> None:
        super().__init__()
        self._context = context
        self._discard_scale = context.params.get("discard_scale", 1.0)

    def on_turn_end(
        self,
        turn: TurnView,
        tool_names: Sequence[str],
        is_last: bool,
        view: EngineView,
        now_s: float,
    ) -> Retain | None:
        """Keep at first: nothing has been wasted yet."""
        return None if is_last else Retain(now_s + OPEN_END_S)

    def review(
        self, retained: Sequence[RetainedView], view: EngineView, now_s: float
    ) -> Sequence[RetainedView]:
        """Drop what has by now cost more than its recomputation would."""
        if not retained:
            return ()
        other = _tokens_running(view)
        return [
            pin for pin in retained if not pin.returned and self.excess_waste(pin, other, now_s) > 0
        ]

    def reclaim_key(self, retained: RetainedView, view: EngineView, now_s: float) -> Key:
        """Give up the most wasteful pin first, and those of sessions that are back last."""
        waste = self.excess_waste(retained, _tokens_running(view), now_s)
        return (0.0 if retained.returned else 1.0, waste, float(retained.session))

    def excess_waste(self, pin: RetainedView, other_tokens: int, now_s: float) -> float:
        """Return by how many token-seconds keeping the pin wastes more than dropping it."""
        tokens = pin.context_tokens
        preserve = (now_s - pin.since_s) * tokens
        discard = self._context.prefill_s(tokens, tokens) * (tokens + other_tokens)
        return preserve - self._discard_scale * discard


def _tokens_running(view: EngineView) -> int:
    return sum(turn.computed_tokens for turn in view.running)


def build(context: PolicyContext) -> Policies:
    """Build InferCept for a deployment."""
    policy = InferCept(context)
    return Policies(scheduling=policy, retention=policy)


INFERCEPT = System(
    name="infercept",
    summary="InferCept (ICML'24): least waste of preserve and discard, session FCFS",
    build=build,
    tunable={"discard_scale": (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)},
)
