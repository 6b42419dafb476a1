"""Requests and policies for tests of one core alone, whose steps all take 1 ms."""

from __future__ import annotations

import math

from marsbench.core import to_ps
from marsbench.engine.base import Request
from marsbench.engine.cost import StepCost
from marsbench.engine.parity import RunLog
from marsbench.scheduler.base import NoRetention, Retain

MS = to_ps(0.001)
COST = StepCost.from_coefficients(c_tok=0, c_pair=0, weights=[0], m_ctx=0, o_step=MS, o_seq=0)


class Keep(NoRetention):
    """Retains every turn for ``ttl_s``; pins yield to waiting turns if ``yields``."""

    review_s = math.inf

    def __init__(self, ttl_s=math.inf, *, yields=True, share=1.0, spares=False):
        self.ttl_s = ttl_s
        self.yields = yields
        self.max_share = share
        self.spares = spares

    def on_turn_end(self, turn, tool_names, is_last, view, now_s):
        return Retain(now_s + self.ttl_s)

    def reclaim_key(self, retained, view, now_s):
        return (float(retained.num_blocks),)

    def yields_to(self, retained, turn, view, now_s):
        return self.yields

    def spares_returned(self):
        return self.spares


def request(
    session: int, prompt: int, output: int, *, turn=0, reused=0, ready_ms=0, last=False, priority=0
) -> Request:
    """A turn of a session without a shared prefix."""
    return Request(
        session=session, turn_index=turn, prompt_tokens=prompt, reused_tokens=reused,
        output_tokens=output, prefix_id=-1, prefix_tokens=0, session_arrival_ps=0,
        ready_ps=ready_ms * MS, priority=priority, is_last=last, tool_names=("bash",),
    )  # fmt: skip


def finish(core, now_ps: int, *, check: bool = True) -> int:
    """Advance until nothing is left to run, by default with a look at the books after each step."""
    while not core.idle():
        now_ps = core.advance(now_ps, 1 << 62)
        if check:
            core.check_integrity()
    return now_ps


def told(log: RunLog, what: str) -> list[tuple]:
    """What the listener was told of one kind: session, turn, values."""
    return [(m.session, m.turn_index, m.values) for m in log.moments if m.what == what]
