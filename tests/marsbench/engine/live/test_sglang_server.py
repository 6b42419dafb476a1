"""A real SGLang server on the CPU does what its own scheduler does in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from marsbench.arrival.base import ArrivalPlan
from marsbench.core import Session, SharedPrefix, ToolCall, Turn, plan_turns, to_ps
from marsbench.engine.live.client import Client, CompletionRequest
from marsbench.engine.live.clock import Clock
from marsbench.engine.live.kinds.sglang import Sglang
from marsbench.engine.live.wall import Site, run_live
from marsbench.engine.plan import CellPlan
from marsbench.engine.profile import load_profile
from marsbench.engine.virtual import VirtualEngine
from marsbench.events import Kind
from marsbench.records import EventLog
from marsbench.system import Policies
from marsbench.tables import build_tables
from marsbench.tools.recorded import Recorded

# three processes import for half a minute of CPU time before it serves
pytestmark = [pytest.mark.sglang, pytest.mark.timeout(1800)]

PREFIX = SharedPrefix("system", 300)


def wait(seconds: float) -> ToolCall:
    """A tool call of a set length."""
    return ToolCall("sleep", "plan", seconds)


SESSIONS = [
    # 1,720 tokens stay in the tree; A is back after B has been
    Session(
        "a",
        (
            Turn(1400, 20, tools=(wait(5.0),)),
            Turn(400, 17, tools=(wait(0.1),)),
            Turn(100, 5, resent_output=0.5, tools=(wait(0.1),)),
            Turn(300, 9, drop_context_to=700, kept_prefix_tokens=600),
        ),
        shared_prefix=PREFIX,
    ),
    # while A's tool runs: 4,012 tokens, 300 of them shared, so A must go
    Session("b", (Turn(3700, 12, tools=(wait(0.1),)), Turn(60, 6)), shared_prefix=PREFIX),
    Session("c", (Turn(500, 8), Turn(50, 30)), shared_prefix=PREFIX),
]
ARRIVALS = ArrivalPlan((0, to_ps(2.0), to_ps(11.0)))


def plan(sessions, arrivals, flags, **more) -> CellPlan:
    return CellPlan(
        sessions=tuple(sessions), arrivals=arrivals, policies=Policies(), flags=flags,
        tools=Recorded(), **more,
    )  # fmt: skip


def site(server, salt, kind=None) -> Site:
    def connect(clock):
        return Client(server.url, "marsbench", clock=clock, kind=kind or Sglang())

    return Site(connect=connect, salt=salt, warm_up_turns=0)


def cached(log: EventLog) -> dict[tuple[str, int], int]:
    """Prefix hit of each turn."""
    rows = log.to_numpy()
    rows = rows[rows[:, 1] == Kind.GPU_SCHED_FIRST]
    return {(log.session_ids[row[2]], int(row[3])): int(row[5]) for row in rows}


def test_hits_lengths_and_counters(sglang_server, sglang_engine):
    """Every prompt and output has its planned length, every prefix hit is the one SGLang's scheduler
    has in virtual time (kept, evicted and compacted contexts), and the server's counters agree."""
    from marsbench.engine.sglang.core import SglangCore

    log, simulated = EventLog(), EventLog()
    outcome = run_live(plan(SESSIONS, ARRIVALS, sglang_engine), log, site(sglang_server, "hits"))
    cost = load_profile("tiny-cpu").step_cost()
    VirtualEngine(SglangCore).run(plan(SESSIONS, ARRIVALS, sglang_engine, cost=cost), simulated)
    plans = {
        (session.session_id, index): turn
        for session in SESSIONS
        for index, turn in enumerate(plan_turns(session))
    }
    for request, done in outcome.completions:
        turn = plans[SESSIONS[request.session].session_id, request.turn_index]
        assert done.ok, done.problems
        assert (done.prompt_tokens, done.output_tokens) == (turn.prompt_tokens, turn.output_tokens)
        assert len(done.token_ids) == len(done.token_ps) == turn.output_tokens
    assert cached(log) == cached(simulated)
    assert cached(log)["a", 1] == 300, "B pushed A's leaf out, as a whole"
    turns = build_tables(log).turns
    assert outcome.server.prompt_tokens == turns["prompt_tokens"].sum()
    assert outcome.server.generated_tokens == turns["output_tokens"].sum()
    assert outcome.server.hit_tokens == turns["cached_tokens"].sum()
    assert outcome.server.queried_tokens == turns["prompt_tokens"].sum()
    assert (outcome.server.num_blocks, outcome.server.block_size) == (5120, 1)
    assert outcome.server.preemptions == 0


class Promised(Sglang):
    """Output lengths by a least number of tokens: SGLang promises ``ignore_eos`` all of its length,
    and then never has to take memory back."""

    def fields(self, request):
        body = super().fields(request)
        del body["ignore_eos"]
        return {**body, "min_tokens": request.output_tokens}


def test_retractions_are_counted(sglang_server, sglang_engine):
    """SGLang promises answers that have begun a part of their length only: beside seven turns of
    20 + 640 tokens that are a third through, another of 660 gets in, and all need 5,280 of 5,120.
    One at least is retracted, and every output still has its full length."""
    log = EventLog()
    sessions = [Session(f"s{index}", (Turn(20, 640),)) for index in range(7)]
    sessions.append(Session("late", (Turn(20, 200), Turn(20, 420))))
    outcome = run_live(
        plan(sessions, ArrivalPlan((0,) * 8), sglang_engine),
        log,
        site(sglang_server, "retract", Promised()),
    )
    lengths = [(request.session, done.output_tokens) for request, done in outcome.completions]
    assert sorted(lengths) == [*((index, 640) for index in range(7)), (7, 200), (7, 420)]
    assert outcome.stats.preemptions == outcome.server.preemptions > 0
    assert outcome.stats.steps >= 640


def test_scheduler_fields_are_taken(sglang_server):
    """The session, a flat dictionary of hints and any priority are accepted."""

    async def ask(priority: int):
        async with Client(sglang_server.url, "marsbench", clock=Clock(), kind=Sglang()) as client:
            request = CompletionRequest(
                list(range(300, 320)), 2, "session", priority, {"turn": 1, "tools": ["ls", "cat"]}
            )
            return await client.complete(request)

    assert asyncio.run(ask(0)).ok
    assert asyncio.run(ask(1)).ok


def test_nothing_survives_a_killed_run(sglang_server):
    """SIGKILL of the process that started the server ends its API, scheduler and detokenizer
    processes and everything else below it. (Keep this test last: it ends the server.)"""
    assert len(sglang_server.pids()) >= 4
    assert sglang_server.kill_owner() == []
