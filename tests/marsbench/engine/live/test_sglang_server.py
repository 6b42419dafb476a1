"""A real SGLang server on the CPU does what its own scheduler does in virtual time."""

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
from marsbench.engine.live.kinds.sglang import Sglang
from marsbench.engine.live.wall import Site, run_live
from marsbench.engine.profile import load_profile
from marsbench.engine.virtual import VirtualEngine
from marsbench.records import EventLog

# three processes import for half a minute of CPU time before it serves
pytestmark = [pytest.mark.sglang, pytest.mark.timeout(1800)]

ARRIVALS = ArrivalPlan((0, to_ps(2.0), to_ps(11.0)))
SESSIONS = contending_sessions(away_s=5.0)
"""B needs 4,012 tokens, 300 of them shared, so all of A has to go."""


def site(server, salt, kind=None) -> Site:
    def connect(clock):
        return Client(server.url, "marsbench", clock=clock, kind=kind or Sglang())

    return Site(connect=connect, salt=salt, warm_up_turns=0)


def test_hits_lengths_and_counters(sglang_server, sglang_engine):
    """Every prompt and output has its planned length, every prefix hit is the one SGLang's scheduler
    has in virtual time (kept, evicted and compacted contexts), and the server's counters agree."""
    from marsbench.engine.sglang.core import SglangCore

    log, simulated = EventLog(), EventLog()
    outcome = run_live(plan(SESSIONS, ARRIVALS, sglang_engine), log, site(sglang_server, "hits"))
    cost = load_profile("tiny-cpu").step_cost()
    VirtualEngine(SglangCore).run(plan(SESSIONS, ARRIVALS, sglang_engine, cost=cost), simulated)
    check_answers(SESSIONS, outcome)
    assert cached(log) == cached(simulated)
    assert cached(log)["a", 1] == 300, "B pushed A's leaf out, as a whole"
    check_counters(log, outcome)
    assert outcome.server.queried_tokens == outcome.server.prompt_tokens
    assert (outcome.server.num_blocks, outcome.server.block_size) == (5120, 1)


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

    for priority in (0, 1):
        client = Client(sglang_server.url, "marsbench", clock=Clock(), kind=Sglang())
        assert asyncio.run(ask_with_hints(client, priority)).ok


def test_nothing_survives_a_killed_run(sglang_server):
    """SIGKILL of the process that started the server ends its API, scheduler and detokenizer
    processes and everything else below it. (Keep this test last: it ends the server.)"""
    assert len(sglang_server.pids()) >= 4
    assert sglang_server.kill_owner() == []
