"""A real vLLM server on the CPU does what the simulator says, and leaves nothing behind."""

from __future__ import annotations

import asyncio

import pytest
from real_servers import (
    ask_with_hints,
    cached,
    check_answers,
    check_counters,
    contending_sessions,
    plan,
)

from marsbench.arrival.base import ArrivalPlan
from marsbench.core import Session, Turn, to_ps
from marsbench.engine.live.client import Client
from marsbench.engine.live.clock import Clock
from marsbench.engine.live.wall import Site, run_live
from marsbench.engine.profile import load_profile
from marsbench.engine.sim.core import SimCore
from marsbench.engine.virtual import VirtualEngine
from marsbench.records import EventLog

pytestmark = pytest.mark.vllm

ARRIVALS = ArrivalPlan((0, to_ps(1.5), to_ps(9.0)))
SESSIONS = contending_sessions(away_s=3.5)
"""A leaves 13 full blocks and one that is not. B needs 32, 2 of them shared; 40 - 14 = 26 are free, so
4 of A's have to go."""


def site(server, salt) -> Site:
    return Site(
        connect=lambda clock: Client(server.url, "marsbench", clock=clock),
        salt=salt,
        warm_up_turns=0,
    )


def test_hits_lengths_and_counters(vllm_server, vllm_engine):
    """Every prompt and output has its planned length, every prefix hit is the one the simulator
    predicts (kept, evicted and compacted contexts), and the server's counters agree."""
    log, simulated = EventLog(), EventLog()
    outcome = run_live(plan(SESSIONS, ARRIVALS, vllm_engine), log, site(vllm_server, "hits"))
    cost = load_profile("tiny-cpu").step_cost()
    VirtualEngine(SimCore).run(plan(SESSIONS, ARRIVALS, vllm_engine, cost=cost), simulated)
    check_answers(SESSIONS, outcome)
    for _, done in outcome.completions:
        assert done.queue_s is not None
        assert done.prefill_s is not None
    assert cached(log) == cached(simulated)
    assert 256 < cached(log)["a", 1] < 13 * 128, "B pushed a part of A out"
    check_counters(log, outcome)
    assert outcome.server.num_blocks == vllm_engine.num_blocks


def test_preemptions_are_counted(vllm_server, vllm_engine):
    """Four turns of 1,500 + 300 tokens at once cannot all stay in 5,120: vLLM preempts, and every
    output still has its full length."""
    log = EventLog()
    sessions = [Session(f"s{index}", (Turn(1200, 400),)) for index in range(4)]
    arrivals = ArrivalPlan((0, 0, 0, 0))
    outcome = run_live(plan(sessions, arrivals, vllm_engine), log, site(vllm_server, "preempt"))
    assert [done.output_tokens for _, done in outcome.completions] == [400] * 4
    assert outcome.stats.preemptions == outcome.server.preemptions > 0
    assert outcome.stats.steps >= 400


def test_scheduler_fields_are_taken(vllm_server):
    """The session, a flat dictionary of hints and priority 0 are accepted; priority 1 is an error
    of the server, reported with its own words, where it schedules first come, first served."""

    taken, refused = (
        asyncio.run(ask_with_hints(Client(vllm_server.url, "marsbench", clock=Clock()), priority))
        for priority in (0, 1)
    )
    assert taken.ok
    assert refused.ok or "priority" in refused.problems[0]


def test_nothing_survives_a_killed_run(vllm_server):
    """SIGKILL of the process that started the server ends the API server, its engine process and
    everything else below it. (Keep this test last: it ends the server.)"""
    assert len(vllm_server.pids()) >= 3
    assert vllm_server.kill_owner() == []
