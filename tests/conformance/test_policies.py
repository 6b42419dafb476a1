"""What every registered system of every plug-in must keep, on the simulated engine.

A new system inherits these tests by being registered; there is nothing to add here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from cells import (
    NAMES,
    NUM_BLOCKS,
    events,
    num_sessions,
    policies_of,
    run,
    some_sessions,
    spread,
)

from marsbench.admission.base import Unlimited
from marsbench.core import Session, ToolCall, Turn, to_s
from marsbench.events import Kind, Status
from marsbench.registry import load
from marsbench.system import Policies, is_null

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
        return policy if is_null(policy) else Watched(policy, seen)

    roles = ("scheduling", "retention", "admission", "tools")
    return replace(policies, **{role: wrap(getattr(policies, role)) for role in roles})


WITHOUT_GATE = [
    name
    for name in NAMES
    if isinstance(policies_of(load("SYSTEMS", name), []).admission, Unlimited)
]
"""Systems without admission control."""


@pytest.fixture(params=NAMES)
def name(request) -> str:
    """Every registered system."""
    return request.param


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
