"""Lending: when the memory of a session whose tools run long is better used by others.

A session that waits for its tools holds a working set it does not use. Giving it up costs computing
the context again; keeping it costs whoever waits for memory. The rule is InferCept's break-even
applied to what is *still ahead*: as soon as the wait is more likely than not to outlast it, given
how long it has lasted, the memory is lent. Extra sessions are worth the less, and computing a context
again delays the more, the less speed the engine has to spare, so the break-even grows with the inverse
of the spare share. Busy tool cores are no reason not to lend: calls that wait for each other hold
memory all the longer. What the tools are called is not asked: once a call runs, that tells no more.
"""

from __future__ import annotations

from mars_impl.estimate import reload_s
from mars_impl.params import MarsParams
from mars_impl.stream import LEAST_SPARE, SessionInfo, StreamState
from marsbench.core import PolicyContext

CHECK_S = 0.5
"""How often one session's wait is judged again."""


class Lending:
    """Judges the waits of resident sessions."""

    def __init__(self, params: MarsParams, state: StreamState, context: PolicyContext) -> None:
        self._params = params
        self._state = state
        self._context = context
        self._capacity_tokens = context.num_blocks * context.block_size

    def break_even_s(self, context_tokens: int) -> float:
        """Wait that costs as much as computing the context again, with the cache full.

        InferCept: T_fwd(C) * (C + C_other) / (2 C), here C + C_other = the KV cache.
        """
        ratio = self._capacity_tokens / (2 * max(context_tokens, 1))
        return reload_s(context_tokens, self._context) * max(ratio, 1.0)

    def pays(self, info: SessionInfo, now_s: float) -> bool:
        """Whether a resident session should give up its place until its tools are done."""
        if info.phase != "tool" or now_s < info.judged_s + CHECK_S:
            return False
        if self._params.lend <= 0 or not self._params.kv_signal:
            return False
        info.judged_s = now_s
        spare = self._state.spare
        if spare <= LEAST_SPARE:
            return False
        span_s = self._params.lend * self.break_even_s(info.context) / spare
        return self._state.waits.outlasts(now_s - info.since_s, span_s) >= 0.5
