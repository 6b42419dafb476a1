"""Adaptive retention: keep a session's KV over a tool wait only while that pays.

Paper: "retain only when warm resumption yields a latency benefit" (abstract), bounded pinning; the
public preview leaves it out. Benefit: the re-prefill saved. Cost: the blocks others cannot use while
the tool runs. The break-even bound is InferCept's form with the context of those who would wait,
over the speed the engine has to spare: computing a context again delays everybody in a busy batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mars_impl.estimate import reload_s
from mars_impl.params import MarsParams
from mars_impl.stream import LEAST_SPARE, StreamState
from marsbench.core import PolicyContext
from marsbench.scheduler.base import EngineView, Retain, RetainedView, TurnView


class Retention:
    """Which pins to make, and when they stop paying."""

    def __init__(self, params: MarsParams, state: StreamState, context: PolicyContext) -> None:
        self._params = params
        self._state = state
        self._context = context

    def break_even_s(self, context_tokens: int, view: EngineView) -> float:
        """Return the longest hold, seconds, that costs others less than computing the context again
        would.

        InferCept: T_fwd(C) * (C + C_other) / (2 C), C_other = what the others hold now; T_fwd as
        long as it takes at the engine's present load.
        """
        held = (view.num_blocks - view.free_blocks) * view.block_size
        other = max(held - context_tokens, 0)
        ratio = (context_tokens + other) / (2 * max(context_tokens, 1))
        reload = reload_s(context_tokens, self._context) / max(self._state.spare, LEAST_SPARE)
        return self._params.break_even * reload * max(ratio, 1.0)

    def decide(
        self, turn: TurnView, tool_names: Sequence[str], view: EngineView, now_s: float
    ) -> Retain | None:
        """Decide whether a finished turn's blocks are pinned, and for how long at most."""
        if self._params.fixed_ttl_s > 0:
            return Retain(now_s + self._params.fixed_ttl_s)
        return Retain(math.inf)

    def review(
        self, retained: Sequence[RetainedView], view: EngineView, now_s: float
    ) -> Sequence[RetainedView]:
        """Return the pins that are past their break-even while somebody waits for memory."""
        if self._params.fixed_ttl_s > 0 or not view.waiting:
            return ()
        return [
            pin
            for pin in retained
            if not pin.returned
            and now_s - pin.since_s > self.break_even_s(pin.context_tokens, view)
        ]
