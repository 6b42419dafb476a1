"""The simulator and the installed vLLM's own scheduler take the same decisions, step by step."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marsbench.core import Session, SharedPrefix, Turn, to_ps
from marsbench.engine.adversary import UNTIL_PS, make_case
from marsbench.engine.base import EngineConfig
from marsbench.engine.cost import StepCost
from marsbench.engine.parity import FixedScript, RunLog, first_difference, run, scripts, summary
from marsbench.engine.sim.core import SimCore
from marsbench.errors import EngineError
from marsbench.system import Policies

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed")

COST = StepCost.from_coefficients(
    c_tok=3_000_000, c_pair=400, weights=[8_000_000_000], m_ctx=30_000, o_step=2_000_000_000,
    o_seq=10_000_000,
)  # fmt: skip
ROOMY = EngineConfig(num_blocks=5000, max_model_len=60_000)


def agents(
    num: int, *, shared: int = 0, first: int = 1500, resent: float = 1.0
) -> list[FixedScript]:
    """Agents of eight turns that arrive 50 ms apart; every second one has the same prefix."""
    sessions = []
    for k in range(num):
        turns = tuple(
            Turn(
                first + 37 * k if i == 0 else 90 + 13 * i + k,
                20 + (7 * k + 3 * i) % 50,
                resent_output=resent,
                think_s=0.05 * ((k + i) % 4),
            )
            for i in range(8)
        )
        prefix = SharedPrefix(f"p{k % 2}", shared) if shared else None
        sessions.append(Session(f"s{k}", turns, arrival_s=0.05 * k, shared_prefix=prefix))
    return [
        dataclasses.replace(script, priority=k % 3) for k, script in enumerate(scripts(sessions))
    ]


def play(core, config, sessions, policies=Policies, *, traced=True):
    return run(
        lambda listener: core(config, COST, policies(), listener),
        sessions,
        traced=traced,
        until_ps=UNTIL_PS,
    )


def assert_parity(config, sessions, policies=Policies):
    """Same steps, same events, same totals; also when the simulator jumps over steps."""
    from marsbench.engine.vllm.core import VllmCore

    real = play(VllmCore, config, sessions, policies)
    for traced in (True, False):
        ours = play(SimCore, config, sessions, policies, traced=traced)
        difference = first_difference(ours, real, ("sim", "vllm-core"))
        assert difference is None, difference
        assert summary(ours) == summary(real)
    return real


@pytest.mark.vllm
@needs_vllm
@pytest.mark.parametrize("budget", [256, 2048, 8192])
@pytest.mark.parametrize(
    ("threshold", "adaptive"), [(0, False), (512, False), (512, True)], ids=str
)
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_budgets_and_thresholds(policy, threshold, adaptive, budget):
    """Both policies agree at any token budget, with and without a cap on long prefills."""
    config = dataclasses.replace(
        ROOMY,
        policy=policy,
        max_num_batched_tokens=budget,
        long_prefill_token_threshold=threshold,
        long_prefill_token_threshold_adaptive=adaptive,
    )
    log = assert_parity(config, agents(8, shared=700))
    assert sum(m.values[2] for m in log.moments if m.what == "finished") > 0


@pytest.mark.vllm
@needs_vllm
@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_scarce_blocks_preempt_the_same_turns(policy, block_size):
    """With KV for about two of eight agents, both preempt and evict the same."""
    config = dataclasses.replace(
        ROOMY, num_blocks=5600 // block_size, block_size=block_size, policy=policy
    )
    log = assert_parity(config, agents(10, first=900))
    assert log.stats.preemptions > 0
    assert log.stats.evicted_blocks > 0


@pytest.mark.vllm
@needs_vllm
def test_two_turns_compute_the_same_prefix_at_once():
    """Sessions that start together compute copies of their prefix; later hits agree."""
    sessions = [dataclasses.replace(script, arrival_ps=0) for script in agents(6, shared=1000)]
    config = dataclasses.replace(ROOMY, max_num_batched_tokens=300, num_blocks=600)
    log = assert_parity(config, sessions)
    first = [m.values[0] for m in log.moments if m.what == "scheduled first" and m.at_ps == 0]
    assert first[0] == 0


@pytest.mark.vllm
@needs_vllm
@pytest.mark.parametrize(
    "change",
    [
        {"enable_prefix_caching": False},
        {"scheduler_reserve_full_isl": False, "num_blocks": 300},
        {"max_num_seqs": 2},
        {"max_num_batched_tokens": 8, "max_num_seqs": 8, "num_blocks": 300},
    ],
    ids=str,
)
def test_other_flags(change):
    """Flags away from their defaults agree too."""
    assert_parity(dataclasses.replace(ROOMY, **change), agents(5, first=400, resent=0.5))


@pytest.mark.vllm
@needs_vllm
@pytest.mark.parametrize("seed", range(40))
def test_adversarial_cells(seed):
    """Small random cells made to break an engine agree."""
    case = make_case(seed)
    assert_parity(case.config, case.sessions, case.policies)


@pytest.mark.vllm
@needs_vllm
@pytest.mark.parametrize("seed", [2206, *range(10_000, 10_050)])
def test_adversarial_policies(seed):
    """Random scheduling and retention policies take effect alike in both engines, and are told
    the same. (In 2206 the hit of a waiting turn grows while a neighbour computes their prefix.)
    """
    from marsbench.engine.vllm.core import VllmCore

    case = make_case(seed, policies=True)
    assert_parity(case.config, case.sessions, case.policies)
    if case.with_order:
        told = []
        for core in (SimCore, VllmCore):
            policies = case.policies()
            play(core, case.config, case.sessions, lambda policies=policies: policies)
            told.append(policies.scheduling.told)
        assert told[0] == told[1]


turns = st.lists(
    st.builds(
        Turn,
        new_input_tokens=st.integers(1, 200),
        output_tokens=st.integers(1, 40),
        resent_output=st.sampled_from([1.0, 0.5]),
        drop_context_to=st.sampled_from([None, None, None, 20]),
        think_s=st.sampled_from([0.0, 0.01, 1.0]),
    ),
    min_size=1,
    max_size=4,
).map(tuple)
workloads = st.lists(
    st.builds(
        Session,
        session_id=st.just("s"),
        turns=turns,
        arrival_s=st.sampled_from([0.0, 0.0, 0.003, 0.2]),
        shared_prefix=st.sampled_from([None, SharedPrefix("a", 50), SharedPrefix("b", 33)]),
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.vllm
@needs_vllm
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    sessions=workloads,
    spare=st.integers(0, 30),
    block_size=st.sampled_from([16, 32]),
    budget=st.sampled_from([4, 64, 8192]),
    threshold=st.sampled_from([0, 16]),
    policy=st.sampled_from(["fcfs", "priority"]),
)
def test_any_workload(sessions, spare, block_size, budget, threshold, policy):
    """Whatever the sizes and times, with memory for little more than the largest turn."""
    played = scripts(sessions)
    largest = max(p.prompt_tokens + p.output_tokens for s in played for p in s.turns)
    config = EngineConfig(
        num_blocks=-(-largest // block_size) + spare,
        block_size=block_size,
        max_model_len=60_000,
        max_num_batched_tokens=budget,
        max_num_seqs=min(budget, 64),
        long_prefill_token_threshold=threshold,
        policy=policy,
    )
    assert_parity(config, played)


# ---- the comparison itself


def test_the_same_core_twice_is_equal():
    """A core compared with itself shows no difference, and its totals are those of the script."""
    sessions = agents(3)
    logs = [play(SimCore, ROOMY, sessions) for _ in range(2)]
    assert first_difference(*logs, ("a", "b")) is None
    assert summary(logs[0])["turns"] == 3 * 8
    assert logs[0].stats.steps == len(logs[0].steps)


def test_a_different_flag_is_found_at_the_first_step_it_changes():
    """The first difference names the step, both sides' tokens and what led there."""
    sessions = agents(2)
    small = dataclasses.replace(ROOMY, max_num_batched_tokens=256)
    left, right = play(SimCore, ROOMY, sessions), play(SimCore, small, sessions)
    found = first_difference(left, right, ("roomy", "small"))
    assert found is not None
    lines = found.splitlines()
    assert lines[0] == "step 0 differs:"
    assert "0.0:1500" in found
    assert "0.0:256" in found


def test_events_are_compared_where_steps_are_not():
    """Untraced runs are compared by what the listeners were told."""
    sessions = agents(2)
    slower = dataclasses.replace(sessions[1], arrival_ps=to_ps(1.0))
    left = play(SimCore, ROOMY, sessions, traced=False)
    right = play(SimCore, ROOMY, [sessions[0], slower], traced=False)
    assert not left.steps
    found = first_difference(left, right, ("left", "right"))
    assert found is not None
    assert found.startswith("event ")


def test_a_log_that_stops_early_differs():
    """A core that runs fewer steps differs at the first missing one."""
    full = play(SimCore, ROOMY, agents(1))
    short = RunLog(steps=full.steps[:-1], moments=full.moments)
    found = first_difference(full, short, ("full", "short"))
    assert found is not None
    assert f"no such step (stopped after {len(short.steps)})" in found


def test_a_turn_that_can_never_fit_is_refused():
    """A script whose largest turn exceeds the cache is an error before anything runs."""
    tiny = dataclasses.replace(ROOMY, num_blocks=10)
    with pytest.raises(EngineError, match="does not fit"):
        play(SimCore, tiny, agents(1))
