"""The simulated core against hand-computed schedules and against itself without short cuts."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marsbench.arrival.base import ArrivalPlan
from marsbench.core import Session, SharedPrefix, ToolCall, Turn
from marsbench.engine.base import EngineConfig
from marsbench.engine.cost import StepCost
from marsbench.engine.plan import CellPlan
from marsbench.engine.sim.core import SimCore
from marsbench.engine.virtual import VirtualEngine
from marsbench.events import Kind
from marsbench.records import EventLog
from marsbench.scheduler.base import EngineOrder, Retain
from marsbench.system import Policies
from marsbench.tools.recorded import Recorded

MS = 1_000_000_000
FLAT = StepCost.from_coefficients(c_tok=0, c_pair=0, weights=[0], m_ctx=0, o_step=10 * MS, o_seq=0)
"""Every step takes 10 ms."""
ROOF = StepCost.from_coefficients(
    c_tok=3 * MS // 100, c_pair=1000, weights=[5 * MS], m_ctx=40_000, o_step=MS, o_seq=MS // 50
)
SMALL = EngineConfig(num_blocks=64, block_size=4, max_num_batched_tokens=32, max_num_seqs=8)


class Steps:
    """A StepTrace that keeps everything and checks the books after each step."""

    def __init__(self, core):
        self.core = core
        self.rows = []

    def step(self, index, start_ps, scheduled, preempted, free_blocks):
        self.rows.append((index, start_ps, scheduled, preempted, free_blocks))


def simulate(sessions, arrivals_s, *, config=SMALL, cost=FLAT, policies=None, traced=False):
    """Run sessions through the simulator; returns (event log, step rows, core)."""
    log = EventLog()
    policies = policies or Policies()
    made = []

    def factory(config, cost, policies, listener):
        core = SimCore(config, cost, policies, listener)
        if traced:
            core.trace = Steps(core)
        made.append(core)
        return core

    plan = ArrivalPlan(times_ps=tuple(round(t * 1000) * MS for t in arrivals_s), closed_loop=None)
    VirtualEngine(factory).run(
        CellPlan(
            sessions=tuple(sessions),
            arrivals=plan,
            policies=policies,
            flags=config,
            cost=cost,
            tools=Recorded(),
        ),
        log,
    )
    core = made[0]
    return log, (core.trace.rows if traced else []), core


def one_turn(name, prompt, output):
    return Session(name, (Turn(prompt, output),))


def times(log, kind):
    """Milliseconds at which events of a kind happened."""
    rows = log.to_numpy()
    return [int(row[0]) / MS for row in rows if row[1] == kind]


def test_prefill_is_chunked_by_the_token_budget_and_decode_takes_a_token_a_step():
    """80 prompt tokens at 32 a step: 3 steps, the third makes token 1, two more make 2 and 3."""
    log, steps, _ = simulate([one_turn("a", 80, 3)], [0.0], traced=True)
    assert [row[2] for row in steps] == [[(0, 0, 32)], [(0, 0, 32)], [(0, 0, 16)]] + [
        [(0, 0, 1)]
    ] * 2
    assert times(log, Kind.GPU_FIRST_TOKEN) == [30.0]
    assert times(log, Kind.GPU_END) == [50.0]


def test_running_turns_go_first_and_a_newcomer_gets_the_rest_of_the_budget():
    """At step 2 turn a decodes (1 token), so b gets 31 of its 40 tokens, then 9."""
    _, steps, _ = simulate([one_turn("a", 8, 5), one_turn("b", 40, 1)], [0.0, 0.005], traced=True)
    assert [row[2] for row in steps[:3]] == [
        [(0, 0, 8)],
        [(0, 0, 1), (1, 0, 31)],
        [(0, 0, 1), (1, 0, 9)],
    ]


def test_the_threshold_clips_prefill_unless_the_turn_is_alone():
    """vLLM lifts the cap for a lone request: 32 then (with b waiting) 8 tokens a step."""
    config = replace(SMALL, long_prefill_token_threshold=8)
    _, steps, _ = simulate(
        [one_turn("a", 64, 1), one_turn("b", 8, 1)], [0.0, 0.005], config=config, traced=True
    )
    assert steps[0][2] == [(0, 0, 32)]
    assert steps[1][2] == [(0, 0, 8), (1, 0, 8)]
    assert steps[2][2] == [(0, 0, 24)]


def test_a_continuation_hits_the_full_blocks_of_what_came_before():
    """Prompt 10 + output 3 leave 12 computed tokens = 3 blocks of 4; the next prompt reuses 13."""
    session = Session("a", (Turn(10, 3, tools=(ToolCall("t", "read", 0.1),)), Turn(7, 2)))
    log, _, _ = simulate([session], [0.0])
    rows = log.to_numpy()
    first, second = rows[rows[:, 1] == Kind.GPU_SCHED_FIRST]
    assert (first[5], first[6]) == (0, 10)
    assert (second[5], second[6]) == (12, 20 - 12)


def test_output_that_the_template_rewrites_is_not_reused():
    """With resent_output below 1 only the old prompt's full blocks hit: 10 tokens = 2 blocks."""
    session = Session("a", (Turn(10, 3, resent_output=0.5), Turn(7, 2)))
    log, _, _ = simulate([session], [0.0])
    rows = log.to_numpy()
    second = rows[rows[:, 1] == Kind.GPU_SCHED_FIRST][1]
    assert second[5] == 8


def test_a_shared_prefix_is_computed_once():
    """Two sessions share 20 tokens (5 blocks): the second, later one hits all of them."""
    sessions = [
        Session(name, (Turn(8, 2),), shared_prefix=SharedPrefix("sys", 20)) for name in ("a", "b")
    ]
    log, _, core = simulate(sessions, [0.0, 1.0])
    rows = log.to_numpy()
    hits = [int(row[5]) for row in rows[rows[:, 1] == Kind.GPU_SCHED_FIRST]]
    assert hits == [0, 20]
    # 5 shared blocks + 2 of 8 unshared prompt tokens + 1 partial (freed) each
    assert core.kv.cached == 5 + 2 + 2


def test_a_turn_is_admitted_only_if_its_whole_prompt_fits():
    """16 blocks: a holds 10 of them, b's 40 tokens (10 blocks) wait for a to finish."""
    config = replace(SMALL, num_blocks=16)
    log, _, _ = simulate([one_turn("a", 38, 3), one_turn("b", 40, 1)], [0.0, 0.005], config=config)
    rows = log.to_numpy()
    ends = rows[rows[:, 1] == Kind.GPU_END]
    starts = rows[rows[:, 1] == Kind.GPU_SCHED_FIRST]
    assert starts[1][0] == ends[0][0]


def test_the_last_running_turn_is_preempted_and_goes_to_the_front():
    """16 blocks of 4: a and b (28 tokens, 7 blocks each) grow until a needs b's blocks."""
    config = replace(SMALL, num_blocks=16, max_num_batched_tokens=64)
    log, _, core = simulate(
        [one_turn("a", 28, 12), one_turn("b", 28, 12), one_turn("c", 4, 1)],
        [0.0, 0.0, 0.02],
        config=config,
    )
    rows = log.to_numpy()
    preempted = rows[rows[:, 1] == Kind.GPU_PREEMPT]
    assert [int(row[2]) for row in preempted] == [1]
    assert core.stats.preemptions == 1
    order = [int(row[2]) for row in rows if row[1] in (Kind.GPU_RESUME, Kind.GPU_SCHED_FIRST)]
    assert order.index(2) < len(order)
    assert len(times(log, Kind.GPU_END)) == 3


def test_a_session_larger_than_the_cache_is_rejected_and_counted():
    """64 blocks of 4 = 256 tokens: a 300-token prompt can never run."""
    log, _, _ = simulate([one_turn("a", 300, 1), one_turn("b", 8, 1)], [0.0, 0.0])
    rows = log.to_numpy()
    ends = {int(row[2]): int(row[5]) for row in rows[rows[:, 1] == Kind.SESSION_END]}
    assert ends == {0: 1, 1: 0}


def random_sessions(seed, count, *, big=40):
    rng = np.random.default_rng(seed)
    sessions = []
    for index in range(count):
        turns = []
        for _ in range(int(rng.integers(1, 5))):
            calls = tuple(
                ToolCall("t", "read", float(rng.integers(0, 50)) / 1000)
                for _ in range(int(rng.integers(0, 3)))
            )
            drop = int(rng.integers(5, 30)) if rng.random() < 0.1 else None
            children = ()
            if rng.random() < 0.1:
                children = (
                    Session(f"c{index}.{len(turns)}", (Turn(int(rng.integers(1, 20)), 3),)),
                )
            turns.append(
                Turn(
                    int(rng.integers(0, big)),
                    int(rng.integers(1, 20)),
                    resent_output=float(rng.choice([1.0, 0.5])),
                    drop_context_to=drop,
                    tools=calls,
                    children=children,
                )
            )
        prefix = SharedPrefix(f"p{rng.integers(2)}", int(rng.integers(10, 14)))
        sessions.append(
            Session(f"s{index}", tuple(turns), shared_prefix=prefix if rng.random() < 0.7 else None)
        )
    arrivals = np.sort(rng.integers(0, 400, size=count)) / 1000
    return sessions, [float(t) for t in arrivals]


CONFIGS = [
    replace(
        SMALL,
        num_blocks=blocks,
        max_num_batched_tokens=budget,
        policy=policy,
        long_prefill_token_threshold=threshold,
    )
    for blocks in (60, 90)
    for budget in (12, 64)
    for policy in ("fcfs", "priority")
    for threshold in (0, 6)
]


class Chaos(EngineOrder):
    """A deterministic policy that uses every lever and keeps pins."""

    reorders_running = True
    resort_s = 0.05
    max_share = 0.5
    review_s = 0.07

    def waiting_key(self, turn, view, now_s):
        return (float((turn.session * 7 + int(now_s * 10)) % 5), -view.cached_tokens(turn))

    def running_key(self, turn, view, now_s):
        return (float((turn.session * 5 + int(now_s * 10)) % 3),)

    def prefill_quantum(self, turn, view, now_s):
        return 5 + turn.session % 7

    def victim_key(self, turn, view, now_s):
        return (float(turn.num_blocks),)

    def skip_blocked(self):
        return True

    def shrink_chunks(self):
        return True

    def on_turn_end(self, turn, tool_names, is_last, view, now_s):
        return Retain(now_s + 0.02 * (turn.session % 4))

    def review(self, retained, view, now_s):
        return [pin for pin in retained if (pin.session + int(now_s * 10)) % 5 == 0]

    def reclaim_key(self, retained, view, now_s):
        return (float(retained.num_blocks),)

    def yields_to(self, retained, turn, view, now_s):
        return (retained.session + turn.session) % 3 != 0

    def spares_returned(self):
        return True


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("chaotic", [False, True])
def test_jumping_over_quiet_steps_changes_nothing(config, chaotic):
    """Same events, to the picosecond, whether quiet steps are jumped over or made one by one."""
    if chaotic and config.policy == "priority":
        config = replace(config, policy="fcfs", max_num_seqs=3)
    for seed in range(4):
        sessions, arrivals = random_sessions(seed, 12)
        results = []
        for traced in (False, True):
            chaos = Chaos()
            policies = Policies(scheduling=chaos, retention=chaos) if chaotic else Policies()
            log, _, core = simulate(
                sessions, arrivals, config=config, cost=ROOF, policies=policies, traced=traced
            )
            rows = log.to_numpy()
            rows = rows[~np.isin(rows[:, 1], (Kind.KV_STATS, Kind.CPU_STATS))]
            results.append((rows.tolist(), core.stats.steps, core.stats.evicted_blocks))
        assert results[0] == results[1]
        ended = [row for row in results[0][0] if row[1] == Kind.SESSION_END]
        assert len(ended) == len(log.session_ids)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 14),
    blocks=st.integers(40, 120),
    budget=st.integers(5, 80),
    size=st.sampled_from([1, 4, 16]),
    chaotic=st.booleans(),
    caching=st.booleans(),
)
def test_blocks_are_conserved_and_every_session_ends(
    seed, count, blocks, budget, size, chaotic, caching
):
    """Whatever the policy does: no block is lost or used twice, and each session ends once."""
    sessions, arrivals = random_sessions(seed, count)
    chaos = Chaos()
    policies = Policies(scheduling=chaos, retention=chaos) if chaotic else Policies()
    config = replace(
        SMALL,
        num_blocks=blocks * 4 // size + 1,
        block_size=size,
        max_num_batched_tokens=budget,
        enable_prefix_caching=caching,
    )
    log, rows, core = simulate(sessions, arrivals, config=config, policies=policies, traced=True)
    core.check_integrity()
    assert core.kv.free == config.num_blocks, "at the end nothing is referenced"
    for _, _, scheduled, _, free in rows:
        assert sum(tokens for _, _, tokens in scheduled) <= budget
        assert 0 <= free <= config.num_blocks
    table = log.to_numpy()
    ends = table[table[:, 1] == Kind.SESSION_END][:, 2]
    rejected = table[(table[:, 1] == Kind.SESSION_END) & (table[:, 5] == 1)]
    assert len(set(ends.tolist())) == len(ends)
    if len(rejected) == 0:
        assert len(ends) == len(log.session_ids)
    outputs = table[table[:, 1] == Kind.GPU_END][:, 5]
    assert (outputs >= 1).all()
    assert math.isfinite(float(table[-1, 0]))
