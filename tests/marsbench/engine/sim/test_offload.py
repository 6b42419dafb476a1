"""Timelines of the simulator with host memory, each with its arithmetic."""

from __future__ import annotations

import dataclasses

import pytest

from marsbench.core import Session, Turn, to_ps
from marsbench.engine.adversary import UNTIL_PS, make_case
from marsbench.engine.base import EngineConfig
from marsbench.engine.cost import LinkCost, StepCost
from marsbench.engine.parity import run, scripts, summary
from marsbench.engine.sim.core import SimCore
from marsbench.scheduler.base import EngineOrder
from marsbench.system import Policies

STEP_PS, TOKEN_PS = 1_000_000_000, 1_000_000
LINK = LinkCost(h2d_token_ps=2_000_000, d2h_token_ps=4_000_000, latency_ps=30_000_000)
COST = StepCost.from_coefficients(
    c_tok=TOKEN_PS, c_pair=0, weights=[0], m_ctx=0, o_step=STEP_PS, o_seq=0
).with_link(LINK)
CONFIG = EngineConfig(num_blocks=100, max_model_len=1600, host_chunks=100, blocks_per_chunk=2)


def play(sessions, config=CONFIG, *, traced=True):
    return run(
        lambda listener: SimCore(config, COST, Policies(), listener),
        scripts(sessions), traced=traced,
    )  # fmt: skip


def moments(log, what):
    return [m for m in log.moments if m.what == what]


def evicted_and_back():
    """A context of 1,000 tokens that another one of 1,200 pushes out before it comes back."""
    return [
        Session("a", (Turn(1000, 1, think_s=5.0), Turn(40, 1)), arrival_s=0.0),
        Session("b", (Turn(1200, 1),), arrival_s=1.0),
    ]


def test_a_prompt_is_stored_with_the_next_step():
    """Whole chunks of the prompt are offered in its step, and copied from that step's end on."""
    log = play(evicted_and_back())
    store, arrived = moments(log, "store")[0], moments(log, "stored")[0]
    step_ps = STEP_PS + 1000 * TOKEN_PS
    chunks = 1000 // 32
    assert store.at_ps == 0
    assert store.values[0] == chunks
    assert arrived.at_ps == step_ps + LINK.latency_ps + chunks * 32 * LINK.d2h_token_ps


def test_what_host_memory_has_is_loaded_and_not_computed():
    """The evicted context comes back at the link's speed; only the rest is prefilled."""
    log = play(evicted_and_back())
    (load,), (loaded,) = moments(log, "load"), moments(log, "loaded")
    local, external = load.values
    assert (local + external) == 1000 // 32 * 32
    assert local % 16 == 0
    took_ps = LINK.latency_ps + external * LINK.h2d_token_ps
    assert loaded.at_ps == load.at_ps + took_ps
    assert loaded.values[1] == took_ps
    back = moments(log, "scheduled first")[-1]
    assert back.at_ps == loaded.at_ps
    assert back.values == (local + external, 1041 - local - external)


class Asking(EngineOrder):
    """Notes what it is shown of host memory whenever a prefill is to be put into a step."""

    def __init__(self):
        self.seen = {}

    def prefill_quantum(self, turn, view, now_s):
        self.host = view.host
        held = (
            None if view.host is None else (view.host.used_blocks, view.host.tokens(turn.session))
        )
        self.seen.setdefault((turn.session, turn.turn_index), held)


def test_policies_see_what_host_memory_holds_of_a_session():
    """Session a comes back to the 31 chunks of its 1,000 tokens in host memory, which holds 68 with
    b's 37, of two blocks each; a load of 960 tokens takes 30 us and 2 us a token. Nothing is said of
    sessions that have ended, and there is no view where there is no host memory."""
    order, without = Asking(), Asking()

    def play_with(asking, config):
        policies = Policies(scheduling=asking)
        run(lambda listener: SimCore(config, COST, policies, listener), scripts(evicted_and_back()))

    play_with(order, CONFIG)
    assert order.seen == {(0, 0): (0, 0), (1, 0): (62, 0), (0, 1): (136, 31 * 32)}
    assert order.host.num_blocks == 200
    assert order.host.load_s(960) == pytest.approx(30e-6 + 960 * 2e-6)
    assert order.host.tokens(0) == 0
    play_with(without, dataclasses.replace(CONFIG, host_chunks=0))
    assert set(without.seen.values()) == {None}


def test_without_host_memory_the_context_is_computed_again():
    """The same session without a tier prefills what was pushed out, and counts no tier."""
    plain = dataclasses.replace(CONFIG, host_chunks=0)
    log = play(evicted_and_back(), plain)
    assert not moments(log, "load")
    assert log.stats.tier is None
    assert summary(log)["recomputed_tokens"] > 0
    assert summary(play(evicted_and_back()))["recomputed_tokens"] == 0


def test_the_engine_is_not_idle_until_its_stores_have_arrived():
    """After the last turn the core drains its copies, and then says so."""
    log = play([Session("a", (Turn(320, 1),), arrival_s=0.0)])
    (stored,) = moments(log, "stored")
    assert stored.at_ps > moments(log, "finished")[0].at_ps
    assert stored.at_ps < to_ps(0.1)
    assert log.stats.tier.stored_blocks == 20
    assert log.stats.tier.resident_blocks == 20


def test_a_step_that_needs_a_block_still_being_copied_waits_for_it():
    """The turn's blocks are free at once, but not overwritten before they are stored."""
    tight = dataclasses.replace(CONFIG, num_blocks=66)
    log = play(
        [
            Session("a", (Turn(1000, 1),), arrival_s=0.0),
            Session("b", (Turn(1000, 1),), arrival_s=0.001),
        ],
        tight,
    )
    stall_ps = log.stats.tier.stall_ps
    assert stall_ps == LINK.latency_ps + 1000 // 32 * 32 * LINK.d2h_token_ps
    first, second = moments(log, "first token")
    assert second.at_ps - first.at_ps == stall_ps + STEP_PS + 1000 * TOKEN_PS


@pytest.mark.parametrize("seed", range(300, 330))
def test_jumping_changes_nothing_with_host_memory(seed):
    """Untraced, the core jumps over quiet steps, and tells the same at the same times."""
    case = make_case(seed, policies=seed % 2 == 1, tier=True)

    def log(traced):
        return run(
            lambda listener: SimCore(
                case.config, COST.with_link(case.link), case.policies(), listener
            ),
            case.sessions, traced=traced, until_ps=UNTIL_PS,
        )  # fmt: skip

    stepped, jumped = log(True), log(False)
    assert stepped.moments == jumped.moments
    assert summary(stepped) == summary(jumped)
    assert stepped.stats.tier == jumped.stats.tier
