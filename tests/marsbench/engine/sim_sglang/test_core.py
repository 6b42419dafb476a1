"""The simulated core with SGLang's rules: small timelines by hand, and its books."""

from __future__ import annotations

import dataclasses

import pytest
from sglang_cells import coding_agents, play, random_cell

from marsbench.core import to_ps
from marsbench.engine.base import EngineConfig, Request
from marsbench.engine.cost import StepCost
from marsbench.engine.parity import RunLog, first_difference, summary
from marsbench.engine.sim.core import SimCore
from marsbench.engine.sim_sglang import budget
from marsbench.engine.sim_sglang.core import RadixCore
from marsbench.engine.simulated import simulated
from marsbench.errors import EngineError
from marsbench.system import Policies

MS = to_ps(0.001)
FOREVER = 1 << 62
COST = StepCost.from_coefficients(c_tok=0, c_pair=0, weights=[0], m_ctx=0, o_step=MS, o_seq=0)
CONFIG = EngineConfig(
    rules="sglang", num_blocks=640, block_size=1, max_model_len=4096, max_num_batched_tokens=64,
    max_num_seqs=32,
)  # fmt: skip
ROOMY = dataclasses.replace(CONFIG, num_blocks=60_000, max_model_len=50_000)
"""Room for several answers of the 4,096 tokens that SGLang expects at most."""


def core_of(config=CONFIG):
    log = RunLog()
    core = RadixCore(config, COST, Policies(), log)
    core.trace = log
    return core, log


def request(session, prompt, output, *, turn=0, reused=0, ready_ms=0, priority=0, shared=0):
    return Request(
        session=session, turn_index=turn, prompt_tokens=prompt, reused_tokens=reused or shared,
        output_tokens=output, prefix_id=0 if shared else -1, prefix_tokens=shared,
        session_arrival_ps=0, ready_ps=ready_ms * MS, priority=priority, is_last=False,
        tool_names=("bash",),
    )  # fmt: skip


def finish(core, now_ps=0):
    while not core.idle():
        now_ps = core.advance(now_ps, FOREVER)
        core.check_integrity()
    return now_ps


def told(log, what):
    return [(m.session, m.turn_index, m.values) for m in log.moments if m.what == what]


def test_chunked_prefill_then_decode():
    """100 tokens at 64 a step are two prefill steps; the second makes the first of 3 tokens."""
    core, log = core_of()
    core.submit(request(0, 100, 3))
    assert finish(core) == 4 * MS
    assert [step.scheduled for step in log.steps] == [
        ((0, 0, 64),), ((0, 0, 36),), ((0, 0, 1),), ((0, 0, 1),),
    ]  # fmt: skip
    assert [(m.what, m.at_ps // MS) for m in log.moments] == [
        ("scheduled first", 0), ("first token", 2), ("finished", 4),
    ]  # fmt: skip


def test_prefill_goes_before_decode():
    """A turn that comes while another decodes gets a prefill step of its own, at once."""
    core, log = core_of(ROOMY)
    core.submit(request(0, 10, 6))
    now = core.advance(0, 2 * MS)
    core.submit(request(1, 10, 2, ready_ms=2))
    finish(core, now)
    assert [step.scheduled for step in log.steps[1:5]] == [
        ((0, 0, 1),), ((1, 0, 10),), ((0, 0, 1), (1, 0, 1)), ((0, 0, 1),),
    ]  # fmt: skip


def test_an_interval_puts_the_next_prefill_off():
    """With an interval of 2, two decode steps follow a prefill before the next one."""
    core, log = core_of(dataclasses.replace(ROOMY, prefill_decode_interval=2))
    core.submit(request(0, 10, 6))
    now = core.advance(0, 1)
    core.submit(request(1, 10, 2, ready_ms=1))
    finish(core, now)
    assert [step.scheduled for step in log.steps[:4]] == [
        ((0, 0, 10),), ((0, 0, 1),), ((0, 0, 1),), ((1, 0, 10),),
    ]  # fmt: skip


@pytest.mark.parametrize(("page", "cached"), [(1, 47), (16, 32)])
def test_a_continuation_hits_whole_pages(page, cached):
    """40 prompt + 8 output tokens leave 47 with KV: all are hit next time, in whole pages."""
    core, log = core_of(dataclasses.replace(CONFIG, block_size=page))
    core.submit(request(0, 40, 8))
    now = finish(core)
    core.submit(request(0, 60, 1, turn=1, reused=48))
    finish(core, now)
    assert told(log, "scheduled first")[1] == (0, 1, (cached, 60 - cached))
    assert told(log, "finished")[1] == (0, 1, (60 - cached, 0, cached))


def test_only_what_is_the_same_is_hit():
    """A rewritten context keeps 20 of 48 tokens; another session has 30 of a prefix in common."""
    core, log = core_of()
    core.submit(request(0, 40, 8, shared=30))
    now = finish(core)
    core.submit(request(0, 60, 1, turn=1, reused=20, shared=30))
    core.submit(request(1, 45, 1, shared=30))
    finish(core, now)
    assert [values[0] for _, _, values in told(log, "scheduled first")] == [0, 20, 30]


def test_held_memory_is_integrated_over_time():
    """40 prompt tokens are held for the prefill's millisecond, 41 for the decode's, then none."""
    core, _ = core_of()
    core.submit(request(0, 40, 2))
    finish(core)
    core.submit(request(0, 40, 1, turn=1, reused=20, ready_ms=12))
    assert core.stats.referenced_block_ps == (40 + 41) * MS


def test_eviction_drops_whole_leaves_the_least_recent_first():
    """62 tokens lack for the second session: the first one loses the 45 tokens of its last chunk and
    answer, and the 64 of the chunk before.
    """
    core, log = core_of()
    core.submit(request(0, 300, 2))
    now = finish(core)
    core.submit(request(1, 400, 2, ready_ms=now // MS))
    now = finish(core, now)
    assert core.stats.evicted_blocks == 45 + 64
    core.submit(request(0, 302, 1, turn=1, reused=302, ready_ms=now // MS))
    finish(core, now)
    assert told(log, "scheduled first")[2][2] == (301 - 45 - 64, 302 - 192)


def test_memory_that_runs_out_retracts_the_shortest_answer(monkeypatch):
    """Answers longer than expected do not all fit: those retracted resume, and are charged for what
    they had computed.
    """
    monkeypatch.setattr(budget, "LONGEST_ANSWER", 40)
    core, log = core_of()
    for session in range(5):
        core.submit(request(session, 60, 250))
    finish(core)
    lost = [(session, values[0]) for session, _, values in told(log, "preempted")]
    hits = [(session, values[0]) for session, _, values in told(log, "resumed")]
    assert lost
    assert len(lost) == len(hits) == core.stats.preemptions
    again = sum(computed for _, computed in lost) - sum(hit for _, hit in hits)
    assert sum(values[1] for _, _, values in told(log, "finished")) == again
    assert len(told(log, "finished")) == 5


def test_priorities_order_the_queue_and_take_seats():
    """The smallest priority goes first, and one smaller by more than ten takes a running seat."""
    core, log = core_of(dataclasses.replace(ROOMY, policy="priority", max_num_seqs=1))
    core.submit(request(0, 10, 9, priority=100))
    now = core.advance(0, 3 * MS)
    core.submit(request(1, 10, 2, ready_ms=3, priority=99))
    core.submit(request(2, 10, 2, ready_ms=3, priority=50))
    finish(core, now)
    assert [session for session, _, _ in told(log, "scheduled first")] == [0, 2, 1]
    assert told(log, "preempted") == [(0, 0, (12, 12))]


@pytest.mark.parametrize(
    ("order", "expected"),
    [("fcfs", [2, 1]), ("lpm", [1, 2]), ("hrrn", [1, 2]), ("shortest-prefill-first", [1, 2])],
)
def test_orders_of_the_queue(order, expected):
    """Session 1 waits with 60 tokens of which 50 are cached, session 2 came before it with 30."""
    core, log = core_of(dataclasses.replace(ROOMY, max_num_seqs=1, schedule_policy=order))
    core.submit(request(1, 45, 6))
    now = finish(core)
    core.submit(request(0, 5, 5, ready_ms=now // MS))
    now = core.advance(now, now + 1)
    core.submit(request(2, 30, 1, ready_ms=now // MS))
    core.submit(request(1, 60, 1, turn=1, reused=51, ready_ms=now // MS))
    finish(core, now)
    assert [session for session, _, _ in told(log, "scheduled first")][2:] == expected


@pytest.mark.parametrize("config", [CONFIG, dataclasses.replace(CONFIG, max_model_len=300)])
def test_the_largest_turn_that_fits_runs_to_its_end(config):
    """``fits`` says yes up to the last token SGLang grants, and no beyond it."""
    core, log = core_of(config)
    output = next(n for n in range(700, 0, -1) if core.fits(50, n))
    assert not core.fits(50, output + 1)
    core.submit(request(0, 50, output))
    finish(core)
    assert told(log, "finished")


@pytest.mark.parametrize("seed", range(24))
def test_jumping_over_steps_changes_nothing(seed, monkeypatch):
    """Step by step or in jumps: same events and totals, and no token is lost or counted twice."""
    if seed % 3:
        monkeypatch.setattr(budget, "LONGEST_ANSWER", 40)
    cell = random_cell(
        400 + seed,
        enable_prefix_caching=seed != 5,
        schedule_policy=("fcfs", "fcfs", "lpm", "hrrn")[seed % 4],
        radix_eviction_policy=("lru", "lru", "tlru", "slru", "lfu")[seed % 5],
        prefill_decode_interval=(0, 0, 3)[seed % 3],
    )

    class Checked(RadixCore):
        def advance(self, now_ps, limit_ps):
            after = super().advance(now_ps, limit_ps)
            self.check_integrity()
            return after

    steps, jumps = play(Checked, cell), play(Checked, cell, traced=False)
    assert first_difference(steps, jumps, ("steps", "jumps")) is None
    assert summary(steps) == summary(jumps)


def test_agents_find_their_context_again():
    """Long sessions under pressure: most of what they had is found, some was dropped, all end."""
    log = play(RadixCore, coding_agents(12), traced=False)
    finished = [m for m in log.moments if m.what == "finished"]
    assert len(finished) == 12 * 22
    assert log.stats.evicted_blocks > 0
    cached, computed = (sum(m.values[k] for m in finished) for k in (2, 0))
    assert cached > computed


def test_flags_choose_the_rules():
    """Engine ``sim`` has both; others it has not are named in one line."""
    log = RunLog()
    assert isinstance(simulated(CONFIG, COST, Policies(), log), RadixCore)
    vllm = dataclasses.replace(CONFIG, rules="vllm", block_size=16)
    assert isinstance(simulated(vllm, COST, Policies(), log), SimCore)
    with pytest.raises(EngineError, match="rules 'trt': engine sim has those of vllm and sglang"):
        simulated(dataclasses.replace(CONFIG, rules="trt"), COST, Policies(), log)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (
            {"schedule_policy": "dfs-weight"},
            "schedule_policy dfs-weight is not modelled .fcfs, lpm",
        ),
        ({"radix_eviction_policy": "fifo"}, "radix_eviction_policy fifo is not modelled"),
        ({"enable_session_radix_cache": True}, "session radix cache is not modelled"),
        ({"long_prefill_token_threshold": 512}, "SGLang has no long_prefill_token_threshold"),
        ({"host_chunks": 8}, "run with --host-kv 0"),
        (
            {"policy": "priority", "schedule_policy": "lpm"},
            "priorities go with schedule_policy fcfs",
        ),
        (
            {"schedule_policy": "shortest-prefill-first", "enable_prefix_caching": False},
            "needs enable_prefix_caching",
        ),
    ],
)
def test_what_is_not_modelled_is_refused(flags, line):
    """In one line, with the engine that has it."""
    with pytest.raises(EngineError, match=f"engine sim: .*{line}"):
        core_of(dataclasses.replace(CONFIG, **flags))
