"""A live run lives through the same events as a simulated one, on time, whatever the server does."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest

from marsbench.admission.base import Oversubscribe
from marsbench.arrival.base import ArrivalPlan
from marsbench.core import Session, SharedPrefix, ToolCall, Turn, to_ps
from marsbench.engine.base import EngineConfig
from marsbench.engine.live.client import Client, Patience
from marsbench.engine.live.fake_server import Behaviour
from marsbench.engine.live.wall import Site, run_live
from marsbench.engine.plan import CellPlan
from marsbench.engine.profile import load_profile
from marsbench.engine.sim.core import SimCore
from marsbench.engine.virtual import VirtualEngine
from marsbench.errors import EngineError, PolicyError
from marsbench.events import Kind, Status
from marsbench.records import EventLog
from marsbench.system import Policies
from marsbench.tables import build_tables
from marsbench.tools.executor import Execution
from marsbench.tools.recorded import Recorded

CONFIG = EngineConfig(num_blocks=4096, max_model_len=8192)
SAMPLES = {Kind.KV_STATS, Kind.CPU_STATS}


def live(url: str, sessions, arrivals, *, patience=None, tools=None, policies=None, warm_up=0):
    """Run sessions; the event log and the outcome."""
    log = EventLog()
    policies = policies or Policies()
    outcome = run_live(
        CellPlan(
            sessions=tuple(sessions),
            arrivals=arrivals,
            policies=policies,
            flags=CONFIG,
            tools=tools or Recorded(),
        ),
        log,
        Site(
            connect=lambda clock: Client(url, "fake", clock=clock, patience=patience),
            warm_up_turns=warm_up,
        ),
    )
    return log, outcome


def call(seconds: float) -> ToolCall:
    """A tool call that only waits."""
    return ToolCall("wait", "plan", seconds, cpu_s=0.0)


def statuses(log: EventLog) -> dict[str, Status]:
    """How each session ended."""
    rows = log.to_numpy()
    return {log.session_ids[row[2]]: Status(row[5]) for row in rows[rows[:, 1] == Kind.SESSION_END]}


def lives(log: EventLog) -> dict[tuple[int, int], list[tuple]]:
    """Events of each session, and of each tool call number in it, without times: kind, turn, and
    payload where it is planned."""
    planned = {Kind.SESSION_ARRIVE, Kind.TURN_READY, Kind.SESSION_END}
    found: dict[tuple[int, int], list[tuple]] = {}
    for row in log.to_numpy().tolist():
        kind = Kind(row[1])
        if kind not in SAMPLES and row[2] >= 0:
            payload = tuple(row[5:]) if kind in planned else ()
            if kind == Kind.GPU_END:
                payload = (row[5], row[9], row[10])  # output, tools, last
            found.setdefault((row[2], row[4]), []).append((kind.name, row[3], *payload))
    return found


def test_same_life_as_in_the_simulator(fake):
    """Sessions with parallel tools, think time, nested sub-agents and a shared prefix have exactly
    the simulator's events in the simulator's order, session by session."""
    prefix = SharedPrefix("p", 64)
    grandchild = Session("grandchild", (Turn(20, 2),), shared_prefix=prefix)
    child = Session("child", (Turn(30, 3, children=(grandchild,)), Turn(5, 2)))
    parent = Session(
        "parent",
        (
            Turn(100, 6, tools=(call(0.02), call(0.05)), children=(child,)),
            Turn(40, 4, think_s=0.03),
            Turn(30, 5, drop_context_to=100),
        ),
        shared_prefix=prefix,
    )
    huge = Session("huge", (Turn(9000, 5),))
    sessions = [parent, huge, Session("plain", (Turn(10, 3), Turn(10, 3)))]
    arrivals = ArrivalPlan((0, to_ps(0.1), to_ps(0.05)))
    with fake(Behaviour(ttft_s=0.01, itl_s=0.002)) as (url, _):
        log, outcome = live(url, sessions, arrivals)
    simulated = EventLog()
    cost = load_profile("tiny-cpu").step_cost()
    VirtualEngine(SimCore).run(
        CellPlan(
            sessions=tuple(sessions),
            arrivals=arrivals,
            policies=Policies(),
            flags=CONFIG,
            cost=cost,
            tools=Recorded(),
        ),
        simulated,
    )
    assert log.session_ids == simulated.session_ids
    assert lives(log) == lives(simulated)
    assert statuses(log)["huge"] == Status.TOO_LARGE
    times = log.to_numpy()[:, 0]
    assert (np.diff(times) >= 0).all(), "rows are in order of time"
    tables = build_tables(log)  # also asserts that each latency is attributed exactly
    assert tables.totals.num_blocks == 4096
    assert len(outcome.completions) == 8


def test_open_loop(fake):
    """A server that takes 0.4 s for every first token does not hold arrivals back: ten sessions
    30 ms apart are all sent on time, and latency counts from the planned arrival."""
    times = tuple(to_ps(0.03 * k) for k in range(10))
    sessions = [Session(f"s{k}", (Turn(50, 2),)) for k in range(10)]
    with fake(Behaviour(ttft_s=0.4)) as (url, _):
        log, outcome = live(url, sessions, ArrivalPlan(times))
    rows = log.to_numpy()
    arrived = rows[rows[:, 1] == Kind.SESSION_ARRIVE]
    sent = rows[rows[:, 1] == Kind.GPU_SUBMIT]
    assert arrived[:, 0].tolist() == list(times)
    assert (sent[:, 0] >= arrived[:, 0]).all()
    assert sent[:, 0].max() < times[-1] + to_ps(0.3), "before the first answer came back"
    assert len(outcome.send_error_s) == 10
    assert min(outcome.send_error_s) >= 0
    latencies = build_tables(log).sessions["latency_s"]
    assert (latencies >= 0.4).all()


def test_closed_loop(fake):
    """A closed loop of two keeps two sessions in the system, also past one that fails."""
    sessions = [Session(f"s{k}", (Turn(50, 2),)) for k in range(6)]
    with fake(Behaviour(ttft_s=0.03, faults={2: "500"})) as (url, _):
        log, _ = live(url, sessions, ArrivalPlan(None, closed_loop=2))
    inside = most = 0
    for kind in log.to_numpy()[:, 1].tolist():
        inside += (kind == Kind.SESSION_ARRIVE) - (kind == Kind.SESSION_END)
        most = max(most, inside)
    assert most == 2
    assert sorted(statuses(log).values()) == [Status.OK] * 5 + [Status.ERROR]


def test_failures_end_their_session_only(fake):
    """Request 0 breaks off, 1 is refused, 2 is silent: three sessions fail, each in its own way, and
    the fourth finishes."""
    sessions = [Session(f"s{k}", (Turn(50, 4, tools=(call(0.01),)), Turn(10, 2))) for k in range(4)]
    arrivals = ArrivalPlan(tuple(to_ps(0.05 * k) for k in range(4)))
    behaviour = Behaviour(faults={0: "disconnect", 1: "500", 2: "silent"})
    with fake(behaviour) as (url, _):
        log, outcome = live(url, sessions, arrivals, patience=Patience(idle_s=0.3))
    assert list(statuses(log).values()).count(Status.OK) == 1
    assert statuses(log) == {
        "s0": Status.ERROR, "s1": Status.ERROR, "s2": Status.TIMEOUT, "s3": Status.OK,
    }  # fmt: skip
    tables = build_tables(log)
    assert math.isnan(tables.sessions["latency_s"][0])
    assert sum(done.ok for _, done in outcome.completions) == 2


def test_failed_child_returns_to_its_parent(fake):
    """A sub-agent that fails comes back to its parent like a tool with an error: the parent goes on."""
    child = Session("child", (Turn(20, 2),))
    parent = Session("parent", (Turn(50, 2, children=(child,)), Turn(10, 2)))
    with fake(Behaviour(faults={1: "500"})) as (url, _):
        log, _ = live(url, [parent], ArrivalPlan((0,)))
    assert statuses(log) == {"parent": Status.OK, "child": Status.ERROR}


def test_retry_counts_as_latency(fake):
    """A turn that is refused once and then answered is a success; its lateness is not the client's."""
    patience = Patience(backoff_s=0.1)
    with fake(Behaviour(faults={0: "429"})) as (url, _):
        log, outcome = live(
            url, [Session("s", (Turn(50, 2),))], ArrivalPlan((0,)), patience=patience
        )
    ((_, done),) = outcome.completions
    assert (done.ok, done.tries) == (True, 2)
    assert outcome.send_error_s == []
    assert statuses(log) == {"s": Status.OK}


def test_server_outputs_come_back(fake):
    """The second prompt carries the ids the server produced, so its whole first context is a hit:
    100 + 13 - 1 = 112 tokens are 7 blocks of 16."""
    session = Session("s", (Turn(100, 13), Turn(40, 2)))
    with fake(Behaviour(block_size=16)) as (url, server):
        log, outcome = live(url, [session], ArrivalPlan((0,)))
        bodies = [body["prompt"] for body in server.requests]
    first = outcome.completions[0][1]
    assert bodies[1][:113] == [*bodies[0], *first.token_ids]
    turns = build_tables(log).turns
    assert turns["cached_tokens"].tolist() == [0, 112]
    assert turns["prefilled_tokens"].tolist() == [100, 153 - 112]
    assert turns["recomputed_tokens"].tolist() == [0, 0]
    assert outcome.server.hit_tokens == 112
    assert outcome.server.prompt_tokens == 253


def test_lost_context_is_recomputed(fake):
    """The cache holds 20 blocks; while the first session's tool runs, another one of 311 tokens (19
    blocks) pushes most of its 7 blocks out: what is missing of 112 tokens is computed again."""
    first = Session("first", (Turn(100, 13, tools=(call(0.3),)), Turn(40, 2)))
    other = Session("other", (Turn(310, 2),))
    with fake(Behaviour(num_blocks=20)) as (url, _):
        log, _ = live(url, [first, other], ArrivalPlan((0, to_ps(0.1))))
    turns = build_tables(log).turns
    row = turns[(turns["session_id"] == "first") & (turns["turn_index"] == 1)].iloc[0]
    assert row["cached_tokens"] < 112
    assert row["recomputed_tokens"] == 112 - row["cached_tokens"]


class OneAtATime:
    """Admits the next session when nothing is active, as seen in the telemetry."""

    gates_continuations = False
    tick_s = None

    def __init__(self) -> None:
        self.most_in_engine = 0
        self.events: list[Kind] = []

    def on_event(self, event):
        self.events.append(event.kind)

    def admit(self, pending, view, now_s):
        self.most_in_engine = max(self.most_in_engine, view.num_running + view.num_waiting)
        assert view.num_blocks == 4096
        return pending[:1] if not view.active else ()


def test_admission_policies_decide(fake):
    """With a policy that lets one session in at a time no two overlap, and it hears every event."""
    policy = OneAtATime()
    sessions = [Session(f"s{k}", (Turn(50, 3, tools=(call(0.01),)), Turn(9, 2))) for k in range(3)]
    with fake(Behaviour(ttft_s=0.02)) as (url, _):
        log, _ = live(url, sessions, ArrivalPlan((0, 0, 0)), policies=Policies(admission=policy))
    spans = build_tables(log).sessions[["admit_s", "end_s"]].to_numpy()
    assert (spans[1:, 0] >= spans[:-1, 1]).all()
    assert policy.most_in_engine == 1
    assert policy.events.count(Kind.GPU_SCHED_FIRST) == policy.events.count(Kind.GPU_END) == 6


class Never(OneAtATime):
    """Admits nobody."""

    def admit(self, pending, view, now_s):
        return ()


def test_admission_that_stops_the_run(fake):
    """A policy that lets nobody in while nothing is active ends the run with an error, not a hang."""
    with fake(Behaviour()) as (url, _), pytest.raises(PolicyError, match="held 1 turns back"):
        live(
            url, [Session("s", (Turn(9, 2),))], ArrivalPlan((0,)),
            policies=Policies(admission=Never()),
        )  # fmt: skip


class OneSlot(Oversubscribe):
    """Tool dispatch with one slot, first come first served."""

    def slots(self, view, now_s):
        return 1


class Sleeping:
    """An executor that sleeps a call's I/O time and knows how many ran at once."""

    def __init__(self, failing: bool = False) -> None:
        self.failing = failing
        self.running = self.most = 0
        self.state = "new"

    async def open(self):
        self.state = "open"

    async def run(self, demand):
        if self.failing:
            raise EngineError("the container engine went away")
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(demand.io_ps / 1e12)
        finally:
            self.running -= 1
        return Execution(123, timed_out=False)

    async def close(self):
        self.state = "closed"


@pytest.mark.parametrize(("policies", "most"), [(Policies(), 3), (Policies(tools=OneSlot()), 1)])
def test_tool_slots(fake, policies, most):
    """Three parallel calls run at once, or one after the other where the policy has one slot; the
    time in the queue is on record."""
    tools = Sleeping()
    session = Session("s", (Turn(20, 2, tools=(call(0.05),) * 3), Turn(5, 2)))
    with fake(Behaviour()) as (url, _):
        log, _ = live(url, [session], ArrivalPlan((0,)), tools=tools, policies=policies)
    assert tools.most == most
    assert tools.state == "closed"
    calls = build_tables(log).calls
    queued = (calls["started_s"] - calls["enqueued_s"]).max()
    assert (queued >= 0.1) == (most == 1)
    assert (calls["cpu_s"] == 123e-12).all()


def test_executor_that_breaks_stops_the_run(fake):
    """A tool that cannot run at all is no tool result: the run ends with the executor's own error,
    and the executor is closed."""
    tools = Sleeping(failing=True)
    session = Session("s", (Turn(20, 2, tools=(call(0.05),)), Turn(5, 2)))
    with fake(Behaviour()) as (url, _), pytest.raises(EngineError, match="went away"):
        live(url, [session], ArrivalPlan((0,)), tools=tools)
    assert tools.state == "closed"


class Shortest:
    """Any scheduling policy that is not the null one (never asked here)."""


def test_engine_side_policies_need_the_engine():
    """A system that schedules inside the engine is refused on a stock server, with the way out."""
    policies = Policies(scheduling=Shortest())
    with pytest.raises(EngineError, match="scheduler class"):
        live("http://127.0.0.1:9", [], ArrivalPlan(()), policies=policies)


def test_no_server_at_all():
    """Every session fails as disconnected; the run itself ends."""
    patience = Patience(max_tries=1, connect_s=0.5)
    log, outcome = live(
        "http://127.0.0.1:9", [Session("s", (Turn(9, 2),))], ArrivalPlan((0,)), patience=patience
    )
    assert statuses(log) == {"s": Status.ERROR}
    assert outcome.completions[0][1].status == "disconnect"


def test_prompts_do_not_depend_on_timing(fake):
    """Two runs in which the sessions come in another order send each session the same ids."""
    sessions = [
        Session(name, (Turn(40, 3),), shared_prefix=SharedPrefix(name, 50)) for name in ("a", "b")
    ]
    seen = []
    for times in ((0, to_ps(0.1)), (to_ps(0.1), 0)):
        with fake(Behaviour()) as (url, server):
            live(url, sessions, ArrivalPlan(times))
            seen.append({body["session_id"]: body["prompt"] for body in server.requests})
    assert seen[0] == seen[1]
    assert len(seen[0]) == 2


def test_warm_up_is_not_measured(fake):
    """Warm-up turns reach the server before time begins and leave no trace in records, counters or
    hits."""
    session = Session("s", (Turn(600, 2),))
    with fake(Behaviour()) as (url, server):
        log, outcome = live(url, [session], ArrivalPlan((0,)), warm_up=3)
        assert len(server.requests) == 4
    assert len(outcome.completions) == 1
    assert (outcome.server.prompt_tokens, outcome.server.hit_tokens) == (600, 0)
    assert log.session_ids == ["s"]


def test_wrong_address_is_told_at_once():
    """With a warm-up an address without a server is one error before the first session."""
    patience = Patience(max_tries=1, connect_s=0.5)
    with pytest.raises(EngineError, match=r"http://127.0.0.1:9 does not complete .*cannot connect"):
        live(
            "http://127.0.0.1:9", [Session("s", (Turn(9, 2),))], ArrivalPlan((0,)),
            patience=patience, warm_up=1,
        )  # fmt: skip
