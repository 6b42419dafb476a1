"""A real vLLM server on the CPU does what the simulator says, and leaves nothing behind."""

from __future__ import annotations

import asyncio

import pytest

from marsbench.arrival.base import ArrivalPlan
from marsbench.core import Session, SharedPrefix, ToolCall, Turn, plan_turns, to_ps
from marsbench.engine.live.client import Client, CompletionRequest
from marsbench.engine.live.clock import Clock
from marsbench.engine.live.wall import Site, run_live
from marsbench.engine.plan import CellPlan
from marsbench.engine.profile import load_profile
from marsbench.engine.sim.core import SimCore
from marsbench.engine.virtual import VirtualEngine
from marsbench.events import Kind
from marsbench.records import EventLog
from marsbench.system import Policies
from marsbench.tables import build_tables
from marsbench.tools.recorded import Recorded

pytestmark = pytest.mark.vllm

PREFIX = SharedPrefix("system", 300)


def wait(seconds: float) -> ToolCall:
    """A tool call of a set length."""
    return ToolCall("sleep", "plan", seconds)


SESSIONS = [
    # 1,720 tokens stay as 13 full blocks and one that is not; back after B has been
    Session(
        "a",
        (
            Turn(1400, 20, tools=(wait(3.5),)),
            Turn(400, 17, tools=(wait(0.1),)),
            Turn(100, 5, resent_output=0.5, tools=(wait(0.1),)),
            Turn(300, 9, drop_context_to=700, kept_prefix_tokens=600),
        ),
        shared_prefix=PREFIX,
    ),
    # while A's tool runs: 32 blocks, 2 of them shared; 40 - 14 = 26 are free, so 4 of A's must go
    Session("b", (Turn(3700, 12, tools=(wait(0.1),)), Turn(60, 6)), shared_prefix=PREFIX),
    Session("c", (Turn(500, 8), Turn(50, 30)), shared_prefix=PREFIX),
]
ARRIVALS = ArrivalPlan((0, to_ps(1.5), to_ps(9.0)))


def cached(log: EventLog) -> dict[tuple[str, int], int]:
    """Prefix hit of each turn."""
    rows = log.to_numpy()
    rows = rows[rows[:, 1] == Kind.GPU_SCHED_FIRST]
    return {(log.session_ids[row[2]], int(row[3])): int(row[5]) for row in rows}


def test_hits_lengths_and_counters(vllm_server, vllm_engine):
    """Every prompt and output has its planned length, every prefix hit is the one the simulator
    predicts (kept, evicted and compacted contexts), and the server's counters agree."""
    log, simulated = EventLog(), EventLog()
    outcome = run_live(
        CellPlan(
            sessions=tuple(SESSIONS),
            arrivals=ARRIVALS,
            policies=Policies(),
            flags=vllm_engine,
            tools=Recorded(),
        ),
        log,
        Site(
            connect=lambda clock: Client(vllm_server.url, "marsbench", clock=clock),
            salt="hits",
            warm_up_turns=0,
        ),
    )
    cost = load_profile("tiny-cpu").step_cost()
    VirtualEngine(SimCore).run(
        CellPlan(
            sessions=tuple(SESSIONS),
            arrivals=ARRIVALS,
            policies=Policies(),
            flags=vllm_engine,
            cost=cost,
            tools=Recorded(),
        ),
        simulated,
    )
    plans = {
        (session.session_id, index): plan
        for session in SESSIONS
        for index, plan in enumerate(plan_turns(session))
    }
    for request, done in outcome.completions:
        plan = plans[SESSIONS[request.session].session_id, request.turn_index]
        assert done.ok, done.problems
        assert (done.prompt_tokens, done.output_tokens) == (plan.prompt_tokens, plan.output_tokens)
        assert len(done.token_ids) == len(done.token_ps) == plan.output_tokens
        assert done.queue_s is not None
        assert done.prefill_s is not None
    assert cached(log) == cached(simulated)
    assert 256 < cached(log)["a", 1] < 13 * 128, "B pushed a part of A out"
    turns = build_tables(log).turns
    assert outcome.server.prompt_tokens == turns["prompt_tokens"].sum()
    assert outcome.server.generated_tokens == turns["output_tokens"].sum()
    assert outcome.server.hit_tokens == turns["cached_tokens"].sum()
    assert outcome.server.num_blocks == vllm_engine.num_blocks
    assert outcome.server.preemptions == 0


def test_preemptions_are_counted(vllm_server, vllm_engine):
    """Four turns of 1,500 + 300 tokens at once cannot all stay in 5,120: vLLM preempts, and every
    output still has its full length."""
    log = EventLog()
    sessions = [Session(f"s{index}", (Turn(1200, 400),)) for index in range(4)]
    outcome = run_live(
        CellPlan(
            sessions=tuple(sessions),
            arrivals=ArrivalPlan((0, 0, 0, 0)),
            policies=Policies(),
            flags=vllm_engine,
            tools=Recorded(),
        ),
        log,
        Site(
            connect=lambda clock: Client(vllm_server.url, "marsbench", clock=clock), salt="preempt"
        ),
    )
    assert [done.output_tokens for _, done in outcome.completions] == [400] * 4
    assert outcome.stats.preemptions == outcome.server.preemptions > 0
    assert outcome.stats.steps >= 400


def test_scheduler_fields_are_taken(vllm_server):
    """The session, a flat dictionary of hints and priority 0 are accepted; priority 1 is an error
    of the server, reported with its own words, where it schedules first come, first served."""

    async def ask(priority: int):
        async with Client(vllm_server.url, "marsbench", clock=Clock()) as client:
            request = CompletionRequest(
                list(range(300, 320)), 2, "session", priority, {"turn": 1, "tools": ["ls", "cat"]}
            )
            return await client.complete(request)

    assert asyncio.run(ask(0)).ok
    refused = asyncio.run(ask(1))
    assert refused.ok or "priority" in refused.problems[0]


def test_nothing_survives_a_killed_run(vllm_server):
    """SIGKILL of the process that started the server ends the API server, its engine process and
    everything else below it. (Keep this test last: it ends the server.)"""
    assert len(vllm_server.pids()) >= 3
    assert vllm_server.kill_owner() == []
