"""The simulator with SGLang's rules and the installed SGLang's own scheduler decide alike, step by step."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec

import pytest
from sglang_cells import coding_agents, play, random_cell

from marsbench.engine.adversary import WildOrder, make_case
from marsbench.engine.parity import first_difference, summary
from marsbench.engine.sim_sglang.core import RadixCore
from marsbench.system import Policies

pytestmark = [
    pytest.mark.sglang,
    pytest.mark.skipif(find_spec("sglang") is None, reason="SGLang is not installed"),
]


def assert_parity(cell, policies=Policies):
    """Same steps, same events, same totals; also when the simulator jumps over steps. What a policy
    was told is the same, too.
    """
    from marsbench.engine.sglang.core import SglangCore

    asked = policies()
    real = play(SglangCore, cell, policies=asked)
    for traced in (True, False):
        ours_asked = policies()
        ours = play(RadixCore, cell, policies=ours_asked, traced=traced)
        if isinstance(asked.scheduling, WildOrder):
            assert ours_asked.scheduling.told == asked.scheduling.told
        difference = first_difference(ours, real, ("sim", "sglang-core"))
        assert difference is None, difference
        assert summary(ours) == summary(real)
    return real


@pytest.fixture
def short_answers(monkeypatch):
    """Both expect answers of at most 40 tokens, so a small memory is promised more than once."""
    from marsbench.engine.sglang.runtime import quietly
    from marsbench.engine.sim_sglang import budget

    with quietly():
        import sglang.srt.managers.scheduler  # noqa: F401 - by its own order of imports
        from sglang.srt.managers import schedule_policy
    monkeypatch.setattr(schedule_policy, "CLIP_MAX_NEW_TOKENS", 40)
    monkeypatch.setattr(budget, "LONGEST_ANSWER", 40)


@pytest.mark.parametrize("seed", range(10))
def test_stock_sglang_on_random_cells(seed):
    """Scarce memory, odd sizes, ties, compaction, shared prefixes, one cell in ten without a cache."""
    assert_parity(random_cell(seed, enable_prefix_caching=seed != 7))


@pytest.mark.parametrize("page", [1, 16])
def test_stock_sglang_on_coding_agents(page):
    """Long sessions that share a system prompt, with memory for a few: hits, evictions, chunks."""
    log = assert_parity(coding_agents(12, page))
    finished = [m for m in log.moments if m.what == "finished"]
    assert len(finished) == 12 * 22
    assert log.stats.evicted_blocks > 0
    assert sum(m.values[2] for m in finished) > 0


@pytest.mark.usefixtures("short_answers")
def test_memory_that_runs_out_retracts_the_same_turns():
    """Answers longer than expected: the same turns are retracted, requeued and resumed."""
    preempted = 0
    for seed in (43, 57, 62, 90, 101, 123):
        for interval in (0, 3):
            preempted += assert_parity(
                random_cell(seed, prefill_decode_interval=interval)
            ).stats.preemptions
    assert preempted > 0


@pytest.mark.parametrize("order", ["lpm", "hrrn", "shortest-prefill-first"])
@pytest.mark.usefixtures("short_answers")
def test_orders_of_the_queue(order):
    """Cache-aware orders look up, defer and sort the same, and hrrn counts the same tokens."""
    for seed in (120, 122, 125, 126, 131):
        assert_parity(random_cell(seed, schedule_policy=order, enable_prefix_caching=True))


@pytest.mark.parametrize("eviction", ["lfu", "slru", "priority", "tlru"])
def test_eviction_policies(eviction):
    """The same leaves are dropped by use, segment, priority or what the next turn may lose."""
    for seed in (181, 184, 190):
        assert_parity(
            random_cell(
                seed, radix_eviction_policy=eviction, enable_prefix_caching=True,
                tlru_threshold=600, tlru_next_prompt_estimate=100,
            )
        )  # fmt: skip


@pytest.mark.usefixtures("short_answers")
def test_priorities_take_the_same_seats():
    """Priorities that are far apart: who is preempted, and what is freed for whom."""
    preempted = 0
    for seed in (301, 304, 308, 311):
        config, sessions = random_cell(seed, policy="priority", retraction_policy="priority")
        apart = [
            dataclasses.replace(script, priority=script.priority * 20 + number % 7)
            for number, script in enumerate(sessions)
        ]
        preempted += assert_parity((config, apart)).stats.preemptions
    assert preempted > 0


@pytest.mark.usefixtures("short_answers")
def test_policies_inside_decide_the_same():
    """Wild orders, quanta, victims and pins: asked at the same points, with the same effect."""
    pinned = preempted = 0
    for seed in (0, 3, 5, 9, 12, 14, 18, 21):
        case = make_case(seed, policies=True)
        order = ("fcfs", "fcfs", "lpm", "hrrn")[seed % 4]
        cell = random_cell(
            seed, schedule_policy=order, prefill_decode_interval=(0, 0, 2)[seed % 3],
            enable_prefix_caching=True,
        )  # fmt: skip
        log = assert_parity(cell, case.policies)
        pinned += sum(m.what == "pinned" for m in log.moments)
        preempted += log.stats.preemptions
    assert pinned > 0
    assert preempted > 0
