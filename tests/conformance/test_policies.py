"""What every registered system of every plug-in must keep, on the simulated engine.

A new system inherits these tests by being registered; there is nothing to add here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from marsbench.admission.base import Unlimited
from marsbench.arrival.base import ArrivalPlan
from marsbench.core import PolicyContext, Session, SharedPrefix, ToolCall, Turn, to_ps, to_s
from marsbench.engine.base import EngineConfig
from marsbench.engine.cost import StepCost
from marsbench.engine.driver import run_cell
from marsbench.engine.recorder import NULL_POLICIES
from marsbench.engine.sim.core import SimCore
from marsbench.events import FIELDS, Kind, Status
from marsbench.records import EventLog
from marsbench.registry import load, table
from marsbench.system import Policies, System
from marsbench.tools import make_tool_model

NAMES = sorted(table("SYSTEMS"))
NUM_BLOCKS, BLOCK_SIZE, TOOL_CORES = 500, 16, 2
COST = StepCost.from_coefficients(
    c_tok=to_ps(1e-4), c_pair=0, weights=[0], m_ctx=to_ps(1e-7), o_step=to_ps(0.005), o_seq=0
)
"""10,000 prompt tokens/s; a decode step takes 5 ms and 0.1 ms per 1000 tokens of context."""
CONTEXT = PolicyContext(
    num_blocks=NUM_BLOCKS,
    block_size=BLOCK_SIZE,
    max_num_batched_tokens=2048,
    max_num_seqs=64,
    tool_cores=TOOL_CORES,
    prefill_tokens_per_s=10_000.0,
    decode_step_s=0.0052,
)

TURN_FIELDS = [
    "session",
    "turn_index",
    "session_arrival_s",
    "ready_s",
    "sequence",
    "prompt_tokens",
    "computed_tokens",
    "generated_tokens",
    "num_blocks",
    "num_preemptions",
    "last_scheduled_s",
]
SESSION_FIELDS = [
    "session",
    "arrival_s",
    "turn_index",
    "prompt_tokens",
    "context_tokens",
    "served_tokens",
    "phase",
    "phase_since_s",
]
PIN_FIELDS = [
    "session",
    "turn_index",
    "num_blocks",
    "context_tokens",
    "since_s",
    "until_s",
    "returned",
]


def some_sessions(count: int, seed: int) -> list[Session]:
    """Sessions of 2 to 6 turns that grow to about 3000 of the cache's 8000 tokens; each third
    has a sub-agent, and one can never fit.
    """
    rng = np.random.default_rng(seed)
    prefix = SharedPrefix("system", 320)

    def turns(number: int, *, child: bool = False) -> tuple[Turn, ...]:
        made = []
        for index in range(int(rng.integers(2, 7))):
            tools = tuple(
                ToolCall("bash", "script", wall_s=float(rng.exponential(0.5)), cpu_s=0.1)
                for _ in range(int(rng.integers(0, 3)))
            )
            children = ()
            if index == 0 and number % 3 == 0 and not child:
                children = (Session(f"s{number}.child", turns(number, child=True)),)
            made.append(
                Turn(
                    new_input_tokens=int(rng.integers(1, 600)),
                    output_tokens=int(rng.integers(1, 60)),
                    resent_output=float(rng.choice([1.0, 0.5])),
                    drop_context_to=700 if index == 4 else None,
                    tools=tools,
                    think_s=float(rng.choice([0.0, 0.2])),
                    children=children,
                )
            )
        return tuple(made)

    sessions = [Session(f"s{n}", turns(n), shared_prefix=prefix) for n in range(count)]
    return [*sessions, Session("too-large", (Turn(9000, 10), Turn(10, 10)))] if count else []


def num_sessions(sessions: list[Session] | tuple[Session, ...]) -> int:
    """Top-level sessions and all sub-agents."""
    children = [child for s in sessions for turn in s.turns for child in turn.children]
    return len(sessions) + (num_sessions(children) if children else 0)


class CheckedCore(SimCore):
    """The simulated core, asserting its own books and that it never stalls."""

    def advance(self, now_ps: int, limit_ps: int) -> int:
        steps = self.stats.steps
        after = super().advance(now_ps, limit_ps)
        self.check_integrity()
        assert 0 <= self.kv.free <= NUM_BLOCKS
        stalled = self.stats.steps == steps and bool(self.waiting)
        assert not stalled, "nothing runs although a turn waits"
        return after


class Watched:
    """A policy, asserting after each call that what it was shown has not changed."""

    def __init__(self, policy: Any, seen: dict[str, list[Any]]) -> None:
        self._policy = policy
        self._seen = seen

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._policy, name)
        if not callable(value) or name == "on_event":
            return value

        def call(*args: Any) -> Any:
            before = [shown(argument) for argument in args]
            self._seen.setdefault(name, before)
            result = value(*args)
            assert [shown(argument) for argument in args] == before, f"{name} changed its input"
            return result

        return call


def shown(item: Any) -> Any:
    """All that a view shows, as plain values."""
    if isinstance(item, list | tuple):
        return [shown(each) for each in item]
    for fields in (TURN_FIELDS, PIN_FIELDS, SESSION_FIELDS):
        if all(hasattr(item, field) for field in fields):
            return tuple(getattr(item, field) for field in fields)
    if hasattr(item, "running"):
        return [shown(item.waiting), shown(item.running), item.free_blocks]
    if hasattr(item, "active"):
        return [shown(item.active), item.free_blocks]
    return item


def watched(policies: Policies, seen: dict[str, list[Any]]) -> Policies:
    """The same policies behind ``Watched``; null policies as they are, one wrapper per object.

    ``seen`` gets what each method was shown at its first call.
    """

    @cache
    def wrap(policy: Any) -> Any:
        return policy if type(policy) in NULL_POLICIES else Watched(policy, seen)

    roles = ("scheduling", "retention", "admission", "tools")
    return replace(policies, **{role: wrap(getattr(policies, role)) for role in roles})


def policies_of(system: System, sessions: list[Session]) -> Policies:
    """A system's policies for a cell of these sessions."""
    return system.clairvoyant(CONTEXT, sessions) if system.clairvoyant else system.build(CONTEXT)


WITHOUT_GATE = [
    name
    for name in NAMES
    if isinstance(policies_of(load("SYSTEMS", name), []).admission, Unlimited)
]
"""Systems without admission control."""


def run(
    name: str,
    sessions: list[Session],
    arrivals_s: list[float],
    wrap: Callable[[Policies], Policies] = lambda policies: policies,
) -> EventLog:
    """One cell of a system on the small engine."""
    system: System = load("SYSTEMS", name)
    engine = EngineConfig(
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK_SIZE,
        max_num_batched_tokens=2048,
        max_num_seqs=64,
    )
    engine = replace(engine, **system.engine)
    policies = wrap(policies_of(system, sessions))
    log = EventLog()
    run_cell(
        sessions=sessions,
        arrivals=ArrivalPlan(tuple(to_ps(at_s) for at_s in arrivals_s)),
        core_factory=lambda listener: CheckedCore(engine, COST, policies, listener),
        policies=policies,
        tools=make_tool_model("modelled", TOOL_CORES),
        tool_cores=TOOL_CORES,
        priority=system.priority,
        log=log,
    )
    return log


def events(log: EventLog, kind: Kind) -> list[dict[str, int]]:
    """Rows of one kind with their fields by name."""
    rows = log.to_numpy()
    names = ("time_ps", "kind", "session", "turn", "call", *FIELDS[kind])
    return [dict(zip(names, map(int, row), strict=False)) for row in rows[rows[:, 1] == kind]]


@pytest.fixture(params=NAMES)
def name(request) -> str:
    """Every registered system."""
    return request.param


def spread(count: int, gap_s: float) -> list[float]:
    return [gap_s * index for index in range(count)]


@pytest.mark.parametrize("gap_s", [3.0, 0.3, 0.0], ids=["light", "overload", "burst"])
def test_every_session_finishes_or_is_rejected(name, gap_s):
    """Each session and sub-agent ends once: OK, or TOO_LARGE for the one that cannot fit."""
    sessions = some_sessions(20, seed=1)
    log = run(name, sessions, spread(len(sessions), gap_s))
    ends = events(log, Kind.SESSION_END)
    assert len({end["session"] for end in ends}) == len(ends) == num_sessions(sessions)
    assert Counter(end["status"] for end in ends) == {
        Status.OK: len(ends) - 1,
        Status.TOO_LARGE: 1,
    }
    assert len(events(log, Kind.GPU_END)) == sum(
        len(s.turns) + sum(len(c.turns) for t in s.turns[:-1] for c in t.children)
        for s in sessions[:-1]
    )


def test_kv_stays_within_capacity(name):
    """Telemetry never shows more blocks than there are (the core asserts its own books)."""
    sessions = some_sessions(20, seed=2)
    log = run(name, sessions, spread(len(sessions), 0.2))
    samples = events(log, Kind.KV_STATS)
    assert samples
    for sample in samples:
        held = sample["referenced_blocks"] + sample["pinned_blocks"]
        assert held + sample["free_blocks"] == NUM_BLOCKS
        assert sample["cached_blocks"] <= sample["free_blocks"]


def test_same_seed_gives_the_same_records(name):
    """Two runs are equal to the last row: no clock, no hash order, no hidden state."""
    sessions = some_sessions(12, seed=3)
    arrivals_s = spread(len(sessions), 0.4)
    first, second = run(name, sessions, arrivals_s), run(name, sessions, arrivals_s)
    assert first.rows == second.rows
    assert first.strings == second.strings


def test_empty_trace(name):
    """No sessions, no events but the end of the run."""
    log = run(name, [], [])
    assert {int(row[1]) for row in log.to_numpy()} <= {Kind.KV_STATS, Kind.CPU_STATS, Kind.RUN_END}


def test_decisions_do_not_change_what_they_are_shown(name):
    """Turns, pins, sessions and queues are the same before and after every call."""
    sessions = some_sessions(10, seed=4)
    log = run(name, sessions, spread(len(sessions), 0.3), wrap=lambda p: watched(p, {}))
    assert log.rows == run(name, sessions, spread(len(sessions), 0.3)).rows


def test_an_idle_system_starts_a_ready_turn_at_once(name):
    """Alone, no turn ever queues: a policy may not keep an idle engine waiting."""
    session = some_sessions(4, seed=5)[1]
    log = run(name, [session], [7.0])
    ready = {event["turn"]: event["time_ps"] for event in events(log, Kind.TURN_READY)}
    started = {event["turn"]: event["time_ps"] for event in events(log, Kind.GPU_SCHED_FIRST)}
    assert ready == started
    assert len(ready) == len(session.turns)


@pytest.mark.parametrize("name", WITHOUT_GATE)
def test_without_admission_control_nobody_waits_at_the_gate(name):
    """Systems that declare no admission policy submit every turn when it is ready."""
    sessions = some_sessions(10, seed=6)
    log = run(name, sessions, spread(len(sessions), 0.1))
    ready = {(e["session"], e["turn"]): e["time_ps"] for e in events(log, Kind.TURN_READY)}
    submitted = {(e["session"], e["turn"]): e["time_ps"] for e in events(log, Kind.GPU_SUBMIT)}
    assert ready == submitted


def test_nobody_starves(name):
    """In a burst of equal sessions the last one ends within the time of running them one by one."""
    alone = Session("alone", (Turn(1000, 50, tools=(ToolCall("t", "script", 0.5),)),) * 3)
    (end,) = events(run(name, [alone], [0.0]), Kind.SESSION_END)
    burst = [replace(alone, session_id=str(number)) for number in range(8)]
    ends = events(run(name, burst, [0.0] * len(burst)), Kind.SESSION_END)
    assert max(to_s(e["time_ps"]) for e in ends) <= len(burst) * to_s(end["time_ps"]) * 1.5


def test_the_watch_notices_changes():
    """The check above can fail: a policy that takes a session out of its list is caught."""

    class Thief:
        def admit(self, pending: list[Any], view: Any, now_s: float) -> list[Any]:
            return [pending.pop()]

    with pytest.raises(AssertionError, match="admit changed its input"):
        Watched(Thief(), {}).admit(["session"], None, 0.0)


def test_the_watch_sees_every_field():
    """The engine's own turns, pins and sessions show all the fields of their protocols."""
    seen: dict[str, list[Any]] = {}
    sessions = some_sessions(10, seed=4)
    run("oracle", sessions, spread(len(sessions), 0.3), wrap=lambda p: watched(p, seen))
    assert len(seen["waiting_key"][0]) == len(TURN_FIELDS)
    assert len(seen["admit"][0][0]) == len(SESSION_FIELDS)
    assert len(seen["review"][0][0]) == len(PIN_FIELDS)
