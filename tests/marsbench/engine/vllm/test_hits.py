"""Prefix hits of waiting turns: searched for, yet what vLLM's own walk over the blocks finds."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec

import pytest

from marsbench.core import to_ps
from marsbench.engine.adversary import UNTIL_PS, WildRetention, make_case
from marsbench.engine.cost import StepCost
from marsbench.engine.parity import RunLog, run
from marsbench.scheduler.base import EngineOrder
from marsbench.system import Policies

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed"),
]

COST = StepCost.from_coefficients(
    c_tok=0, c_pair=0, weights=[0], m_ctx=0, o_step=to_ps(0.001), o_seq=0
)


class Checking(EngineOrder):
    """Asks before every step and holds each answer against vLLM's."""

    resort_s = 0.0

    def __init__(self):
        self.seen: list[int] = []
        self.before: dict[int, int] = {}
        self.shrunk = 0

    def skip_blocked(self):
        return True

    def waiting_key(self, turn, view, now_s):
        request = view._turns.request_of(turn)
        blocks, tokens, _ = view._scheduler.kv_cache_manager.get_computed_blocks(request)
        assert view.cached_tokens(turn) == tokens
        evictable = sum(block.ref_cnt == 0 for block in blocks.blocks[0])
        assert view.hits.evictable_at_most(turn, evictable)
        assert evictable == 0 or not view.hits.evictable_at_most(turn, evictable - 1)
        self.seen.append(tokens)
        self.shrunk += tokens < self.before.get(turn.sequence, 0)
        self.before[turn.sequence] = tokens
        return super().waiting_key(turn, view, now_s)


def test_hits_are_vllms_whatever_is_evicted():
    """In 20 random cells short of memory, with pins, preemptions and shared prefixes, every hit of
    every waiting turn is vLLM's, also after part of one seen before was evicted."""
    from marsbench.engine.vllm.core import VllmCore

    seen, shrunk = [], 0
    for seed in range(20):
        case = make_case(700 + seed)
        order = Checking()
        policies = Policies(scheduling=order, retention=WildRetention(seed))
        config = dataclasses.replace(case.config, policy="fcfs", enable_prefix_caching=True)
        run(
            lambda listener, c=config, p=policies: VllmCore(c, COST, p, listener),
            case.sessions,
            until_ps=UNTIL_PS,
        )
        seen += order.seen
        shrunk += order.shrunk
    assert sum(tokens > 0 for tokens in seen) > 500
    assert shrunk > 0, "no waiting turn lost part of its hit: these cells test too little"


def test_without_a_prefix_cache_nothing_is_hit():
    """With prefix caching off every answer is zero, as vLLM's."""
    from marsbench.engine.vllm.core import VllmCore

    case, order = make_case(701), Checking()
    config = dataclasses.replace(case.config, policy="fcfs", enable_prefix_caching=False)
    log = run(
        lambda listener: VllmCore(config, COST, Policies(scheduling=order), listener),
        case.sessions,
        until_ps=UNTIL_PS,
    )
    assert isinstance(log, RunLog)
    assert set(order.seen) == {0}
