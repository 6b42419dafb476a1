"""The simulated core alone, without a driver: its clock, its cache and its budget, by hand."""

from __future__ import annotations

from small_cores import request

from marsbench.engine.base import EngineConfig
from marsbench.engine.cost import StepCost
from marsbench.engine.parity import RunLog
from marsbench.engine.sim.core import SimCore
from marsbench.scheduler.base import EngineOrder
from marsbench.system import Policies

FOREVER = 1 << 60
CONFIG = EngineConfig(num_blocks=12, block_size=4, max_num_batched_tokens=64, max_num_seqs=8)
COST = StepCost.from_coefficients(
    c_tok=0, c_pair=1000, weights=[0], m_ctx=1, o_step=1_000_000, o_seq=0
)
"""A step takes 1,000,000 ps, 1000 more for each pair of tokens that attend to each other, and 1 for
each token of context read."""


def core_of(config=CONFIG, policies=None, *, traced=False):
    log = RunLog()
    core = SimCore(config, COST, policies or Policies(), log)
    if traced:
        core.trace = log
    return core, log


def finish(core, now_ps=0):
    """Times at which turns finish, until the core is idle."""
    ends = []
    while not core.idle():
        now_ps = core.advance(now_ps, FOREVER)
        ends.append(now_ps)
    return ends


def test_a_decoded_token_costs_attention_to_all_tokens_before_it():
    """Prompts of 10 and 20 tokens, 4 and 3 outputs. One step computes both prompts and makes two
    tokens; then a decodes with 11, 12, 13 tokens of context and b beside it with 21, 22.
    """
    core, _ = core_of()
    core.submit(request(0, 10, 4))
    core.submit(request(1, 20, 3))
    prefill = 1_000_000 + 1000 * (10 * 11 // 2 + 20 * 21 // 2) + 10 + 20
    end_b = prefill + 2 * 1_000_000 + 1001 * (11 + 12 + 21 + 22)
    assert finish(core) == [end_b, end_b + 1_000_000 + 1001 * 13]


def test_a_token_decoded_beside_a_prefill_costs_the_same():
    """The second step decodes with 11 tokens of context and computes a prompt of 20 beside it, the
    third and last decodes with 12.
    """
    core, _ = core_of()
    core.submit(request(0, 10, 3))
    first = core.advance(0, 1)
    assert first == 1_000_000 + 1000 * (10 * 11 // 2) + 10
    core.submit(request(1, 20, 1))
    second = first + 1_000_000 + 1000 * (20 * 21 // 2 + 11) + 20 + 11
    assert finish(core, first) == [second, second + 1_000_000 + 1001 * 12]


def cached_blocks(core, *sessions):
    return [core.kv.hit(session, -1, 0, 99)[0] for session in sessions]


def test_the_least_recently_used_session_loses_its_last_blocks_first():
    """Twelve blocks. Sessions 0 and 1 leave 4 each; a prompt of 6 takes the 4 empty ones and two
    of session 0, from its end. When session 0 has used its first two again, 1 is the older one.
    """
    core, _ = core_of()
    for session in (0, 1):
        core.submit(request(session, 16, 1))
        finish(core)
    assert cached_blocks(core, 0, 1) == [4, 4]
    core.submit(request(2, 24, 1))
    finish(core)
    assert cached_blocks(core, 0, 1, 2) == [2, 4, 6]
    core.submit(request(0, 9, 1, turn=1, reused=9))  # two blocks hit, one of session 1 goes for it
    finish(core)
    assert cached_blocks(core, 0, 1, 2) == [2, 3, 6]
    core.submit(request(3, 12, 1))  # one empty block and two of session 1
    finish(core)
    assert cached_blocks(core, 0, 1, 2, 3) == [2, 1, 6, 3]


class FirstIsVictim(EngineOrder):
    """Session 0 is preempted before all others."""

    def victim_key(self, turn, view, now_s):
        return (float(turn.session == 0),)


def test_tokens_scheduled_for_a_victim_go_back_into_the_budget():
    """Eight tokens a step, chunks of four at most, nine blocks. From the fifth step's 8, session 0
    gets one (it decodes) and 1 needs a block for its four: 0 is preempted, its token is free
    again, and session 2 gets four instead of three.
    """
    config = EngineConfig(
        num_blocks=9, block_size=4, max_num_batched_tokens=8, max_num_seqs=8,
        long_prefill_token_threshold=4, scheduler_reserve_full_isl=False,
    )  # fmt: skip
    core, log = core_of(config, Policies(scheduling=FirstIsVictim()), traced=True)
    core.submit(request(0, 8, 20))
    core.submit(request(1, 24, 1))
    core.submit(request(2, 24, 1))
    finish(core)
    scheduled = [(step.scheduled, step.preempted) for step in log.steps[:5]]
    assert [{s: n for s, _, n in turns} for turns, _ in scheduled] == [
        {0: 4, 1: 4}, {0: 4, 1: 4}, {0: 1, 1: 4, 2: 3}, {0: 1, 1: 4, 2: 3}, {1: 4, 2: 4},
    ]  # fmt: skip
    assert list(scheduled[4][1]) == [(0, 0)]
