"""Tail-optimised LRU: what would not make the next turn slow is evicted first.

Paper: "Tail-Optimized Caching for LLM Inference", arXiv:2510.15152; SGLang ships it as
``--radix-eviction-policy tlru`` (pull request 34012).
Reproduced: with ``threshold_tokens`` that a turn may compute anew and ``next_tokens`` that it is
expected to add, a context is worth protecting only beyond the difference of the two; the others are
evicted first, and the protected ones go least recently used first. Differs: whole contexts are
protected or not, since a pin here holds a context, where the original gives up the end of a long
one first; a pin yields to every turn that waits; both numbers (8192 and 1024) are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from marsbench.core import PolicyContext
from marsbench.scheduler.base import EngineView, Key, NoRetention, Retain, RetainedView, TurnView
from marsbench.system import Policies, System


class Tlru(NoRetention):
    """Retention policy: protect contexts that would take long to compute again."""

    max_share = 1.0

    def __init__(self, context: PolicyContext) -> None:
        self._threshold = context.params.get("threshold_tokens", 8192.0)
        self._next = context.params.get("next_tokens", 1024.0)

    def on_turn_end(
        self,
        turn: TurnView,
        tool_names: Sequence[str],
        is_last: bool,
        view: EngineView,
        now_s: float,
    ) -> Retain | None:
        """Protect a context whose loss would put the next turn's first token beyond the threshold."""
        context = turn.prompt_tokens + turn.generated_tokens
        return Retain(math.inf) if context + self._next > self._threshold else None

    def reclaim_key(self, retained: RetainedView, view: EngineView, now_s: float) -> Key:
        """Give up the least recently used first."""
        return (-retained.since_s, float(retained.session))

    def yields_to(
        self, retained: RetainedView, turn: TurnView, view: EngineView, now_s: float
    ) -> bool:
        """Return True: protection is an order of eviction and no reservation."""
        return True


def build(context: PolicyContext) -> Policies:
    """Build tail-optimised LRU for a deployment."""
    return Policies(retention=Tlru(context))


TLRU = System(
    name="tlru",
    summary="tail-optimised LRU (SGLang's tlru): contexts cheap to compute again are evicted first",
    build=build,
    tunable={"threshold_tokens": (2048.0, 8192.0, 32_768.0)},
    limits={"threshold_tokens": (0.0, 1e7)},
)
