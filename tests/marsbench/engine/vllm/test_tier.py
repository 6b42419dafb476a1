"""With host memory, the simulator and vLLM's own offloading take the same decisions, step by step."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec

import pytest

from marsbench.core import Session, SharedPrefix, Turn, to_ps
from marsbench.engine.adversary import UNTIL_PS, make_case
from marsbench.engine.base import EngineConfig
from marsbench.engine.cost import LinkCost, StepCost
from marsbench.engine.parity import FixedScript, first_difference, run, scripts, summary
from marsbench.engine.sim.core import SimCore
from marsbench.scheduler.base import EngineOrder, NoRetention
from marsbench.system import Policies

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed"),
]

COST = StepCost.from_coefficients(
    c_tok=3_000_000, c_pair=400, weights=[8_000_000_000], m_ctx=30_000, o_step=2_000_000_000,
    o_seq=10_000_000,
)  # fmt: skip
LINK = LinkCost(h2d_token_ps=2_000_000, d2h_token_ps=2_000_000, latency_ps=20_000_000)
SLOW = LinkCost(h2d_token_ps=50_000_000, d2h_token_ps=200_000_000, latency_ps=20_000_000)
SCARCE = EngineConfig(num_blocks=350, max_model_len=60_000, host_chunks=400, blocks_per_chunk=4)


def agents(num: int, *, shared: int = 300, first: int = 900) -> list[FixedScript]:
    """Agents of eight turns that arrive 50 ms apart; every second one has the same prefix."""
    sessions = []
    for k in range(num):
        turns = tuple(
            Turn(
                first + 37 * k if i == 0 else 90 + 13 * i + k,
                20 + (7 * k + 3 * i) % 50,
                resent_output=1.0 if k % 3 else 0.5,
                drop_context_to=500 if (k + i) % 11 == 7 else None,
                think_s=0.05 * ((k + i) % 4),
            )
            for i in range(8)
        )
        prefix = SharedPrefix(f"p{k % 2}", shared) if shared else None
        sessions.append(Session(f"s{k}", turns, arrival_s=0.05 * k, shared_prefix=prefix))
    return [dataclasses.replace(s, priority=k % 3) for k, s in enumerate(scripts(sessions))]


def assert_parity(config, sessions, link=LINK, policies=Policies):
    """Same steps, hits, loads, stores and evictions; also when the simulator jumps over steps."""
    from marsbench.engine.vllm.core import VllmCore

    cost = COST.with_link(link)

    def play(core, traced):
        return run(
            lambda listener: core(config, cost, policies(), listener),
            sessions, traced=traced, until_ps=UNTIL_PS,
        )  # fmt: skip

    real = play(VllmCore, traced=True)
    for traced in (True, False):
        ours = play(SimCore, traced)
        difference = first_difference(ours, real, ("sim", "vllm-core"))
        assert difference is None, difference
        assert summary(ours) == summary(real)
        for field in ("stored_blocks", "loaded_blocks", "evicted_blocks", "stall_ps"):
            assert getattr(ours.stats.tier, field) == getattr(real.stats.tier, field), field
    return real


@pytest.mark.parametrize("eviction_policy", ["lru", "arc"])
@pytest.mark.parametrize("blocks_per_chunk", [1, 4, 16])
@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_pressure_in_both_tiers(policy, block_size, blocks_per_chunk, eviction_policy):
    """With room for a few of ten agents in either memory, both load, store and evict the same."""
    config = dataclasses.replace(
        SCARCE,
        policy=policy,
        block_size=block_size,
        num_blocks=5600 // block_size,
        host_chunks=9600 // block_size // blocks_per_chunk,
        blocks_per_chunk=blocks_per_chunk,
        eviction_policy=eviction_policy,
    )
    log = assert_parity(config, agents(10))
    assert log.stats.evicted_blocks > 0
    assert log.stats.tier.evicted_blocks > 0
    assert log.stats.tier.stored_blocks > 0


@pytest.mark.parametrize("threshold", [2, 3])
def test_a_threshold_keeps_out_what_comes_once(threshold):
    """Chunks are taken only when they were offered often enough, in both."""
    log = assert_parity(dataclasses.replace(SCARCE, store_threshold=threshold), agents(8))
    assert 0 < log.stats.tier.stored_blocks < log.stats.tier.num_blocks * 4


def test_a_slow_link_delays_and_stalls():
    """Loads that last for many steps, and steps that wait for stores, come at the same times."""
    log = assert_parity(dataclasses.replace(SCARCE, num_blocks=200), agents(10), SLOW)
    assert log.stats.tier.loaded_blocks > 0
    assert log.stats.tier.stall_ps > 0


def test_an_idle_engine_waits_for_a_load():
    """With one session nothing else runs while its context comes back."""
    sessions = [
        Session("a", (Turn(3000, 5, think_s=10.0), Turn(50, 5)), arrival_s=0.0),
        Session("b", (Turn(4000, 5),), arrival_s=3.0),
    ]
    config = dataclasses.replace(SCARCE, num_blocks=260)
    log = assert_parity(config, scripts(sessions))
    (load,) = [m for m in log.moments if m.what == "load"]
    (loaded,) = [m for m in log.moments if m.what == "loaded"]
    blocks = load.values[1] // 16
    assert loaded.at_ps - load.at_ps == LINK.latency_ps + blocks * 16 * LINK.h2d_token_ps
    assert load.at_ps > to_ps(10.0)


class Asking(EngineOrder):
    """Fewest tokens to compute first, then the most in host memory; notes all that it was shown."""

    resort_s = 0.0

    def __init__(self, seen):
        self.seen = seen

    def skip_blocked(self):
        return True

    def waiting_key(self, turn, view, now_s):
        held = view.host.tokens(turn.session)
        shown = (now_s, turn.session, view.cached_tokens(turn), held, view.host.used_blocks)
        self.seen.append(shown)
        return (max(0, turn.prompt_tokens - max(held, shown[2])), -held)


class AskingRetention(NoRetention):
    """Asks again when a turn ends, about every session."""

    max_share = 0.5

    def __init__(self, seen):
        self.seen = seen

    def on_turn_end(self, turn, tool_names, is_last, view, now_s):
        held = tuple(view.host.tokens(session) for session in range(10))
        self.seen.append((now_s, held, view.host.used_blocks, view.host.load_s(1000)))


@pytest.mark.parametrize("eviction_policy", ["lru", "arc"])
@pytest.mark.parametrize("blocks_per_chunk", [1, 4])
def test_policies_are_shown_the_same_of_host_memory(blocks_per_chunk, eviction_policy):
    """What lies in host memory of whom, whenever a policy asks, and steps that follow from it; in
    which order waiting turns are asked about is the engines' own."""
    config = dataclasses.replace(
        SCARCE, blocks_per_chunk=blocks_per_chunk, eviction_policy=eviction_policy,
        host_chunks=600 // blocks_per_chunk,
    )  # fmt: skip
    notes = []

    def policies():
        notes.append([])
        return Policies(scheduling=Asking(notes[-1]), retention=AskingRetention(notes[-1]))

    assert_parity(config, agents(10), policies=policies)
    real, traced, _ = notes
    assert set(traced) == set(real)
    assert len({entry[-2] for entry in real}) > 20, "hardly anything of host memory was seen"


@pytest.mark.parametrize("seed", range(40))
def test_adversarial_cells(seed):
    """Small random cells made to break an engine agree with host memory of any size and speed."""
    case = make_case(seed, tier=True)
    assert_parity(case.config, case.sessions, case.link, case.policies)


@pytest.mark.parametrize("seed", range(20_000, 20_030))
def test_adversarial_policies(seed):
    """Random scheduling and retention policies take effect alike with host memory."""
    case = make_case(seed, policies=True, tier=True)
    assert_parity(case.config, case.sessions, case.link, case.policies)
