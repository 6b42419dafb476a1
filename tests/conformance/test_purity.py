"""No policy can see the future: every registered system runs behind an allow-list of what its
protocols promise, a planted cheat is caught, and the views hold nothing of what is to come.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from types import CellType, FunctionType, MethodType
from typing import Any

import pytest
from cells import NAMES, policies_of, run, some_sessions, spread
from policy_glass import CheatError, glazed

from marsbench.admission.base import Oversubscribe, Unlimited
from marsbench.core import Session, ToolCall, Turn, TurnPlan
from marsbench.engine.base import Request
from marsbench.engine.life import CallState, SessionState
from marsbench.engine.replay import Script
from marsbench.engine.sim.turn import SimTurn
from marsbench.engine.turns import EngineTurn, TurnInfo
from marsbench.registry import load
from marsbench.scheduler.base import EngineOrder, NoRetention, Retain
from marsbench.system import Policies, System
from marsbench.tools.base import ToolDemand

FUTURE = {
    f"{cls.__module__}.{cls.__name__}"
    for cls in (Session, Turn, TurnPlan, ToolCall, ToolDemand, Request, Script)
} | {
    "vllm.v1.request.Request",
    "vllm.sampling_params.SamplingParams",
    "sglang.srt.managers.schedule_batch.Req",
    "sglang.srt.sampling.sampling_params.SamplingParams",
}
"""What knows how a session goes on, by its full name: neither engine need be installed here."""
CORES = [
    ("marsbench.engine.sim.core", "SimCore", ()),
    pytest.param(
        "marsbench.engine.vllm.core",
        "VllmCore",
        ("vllm",),
        marks=[pytest.mark.vllm, pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM")],
    ),
    pytest.param(
        "marsbench.engine.sglang.core",
        "SglangCore",
        ("sglang",),
        marks=[
            pytest.mark.sglang,
            pytest.mark.skipif(find_spec("sglang") is None, reason="no SGLang"),
        ],
    ),
]
"""Where a core is, and what it drives."""


@pytest.mark.parametrize("host_chunks", [0, 400], ids=["gpu", "host"])
@pytest.mark.parametrize("name", NAMES)
def test_no_system_needs_more_than_its_protocols_promise(name, host_chunks):
    """A cell of every registered system gives the same records behind glass as without, with host
    memory and without."""
    sessions = some_sessions(8, seed=5)
    arrivals_s = spread(len(sessions), 0.3)
    plain = run(name, sessions, arrivals_s, host_chunks=host_chunks)
    assert run(name, sessions, arrivals_s, glazed, host_chunks=host_chunks).rows == plain.rows


class Peeking(EngineOrder):
    """Shortest output first, which nobody can know."""

    def waiting_key(self, turn, view, now_s):
        return (float(self.peek(turn, view)),)


class PeekingGate(Unlimited):
    tick_s = None

    def admit(self, pending, view, now_s):
        return sorted(pending, key=lambda session: self.peek(session, view))


class PeekingTools(Oversubscribe):
    def niceness(self, call, view, now_s):
        self.peek(call, view)
        return super().niceness(call, view, now_s)


class PeekingRetention(NoRetention):
    max_share = 0.5

    def on_turn_end(self, turn, tool_names, is_last, view, now_s):
        self.peek(turn, view)
        return Retain(now_s + 1)


CHEATS = [
    ("scheduling", Peeking, lambda turn, view: turn.output_tokens),
    ("scheduling", Peeking, lambda turn, view: turn.request.output_tokens),
    ("scheduling", Peeking, lambda turn, view: turn._Pane__behind),
    (
        "scheduling",
        Peeking,
        lambda turn, view: sum(other.finish_step for other in [*view.waiting, *view.running]),
    ),
    ("scheduling", Peeking, lambda turn, view: view._batch),
    ("scheduling", Peeking, lambda turn, view: view.host._leading_chunks(turn.session)),
    ("admission", PeekingGate, lambda session, view: view.host._link),
    ("admission", PeekingGate, lambda session, view: session.recorded),
    ("admission", PeekingGate, lambda session, view: len(session.plans)),
    ("admission", PeekingGate, lambda session, view: session.parent),
    ("admission", PeekingGate, lambda session, view: view._core),
    ("admission", PeekingGate, lambda session, view: view.active[0].plans if view.active else 0),
    ("tools", PeekingTools, lambda call, view: call.demand.cpu_ps),
    ("tools", PeekingTools, lambda call, view: call.state),
    ("retention", PeekingRetention, lambda turn, view: vars(turn)),
    ("retention", PeekingRetention, lambda turn, view: turn.__dict__),
]


@pytest.mark.parametrize(("role", "cheat", "peek"), CHEATS)
def test_a_planted_cheat_is_caught(role, cheat, peek, monkeypatch):
    """A policy that reaches for what will happen, or behind the glass, stops the run by name."""
    monkeypatch.setattr(cheat, "peek", staticmethod(peek), raising=False)
    planted = System("cheat", "a cheat", build=lambda _context: Policies(**{role: cheat()}))
    monkeypatch.setattr("cells.load", lambda _kind, _name: planted)
    sessions = some_sessions(12, seed=5)
    with pytest.raises((CheatError, TypeError)) as caught:
        run("cheat", sessions, spread(len(sessions), 0.3), glazed, host_chunks=400)
    assert not isinstance(caught.value, TypeError) or "__dict__" in str(caught.value)


def reachable(item: object, packages: tuple[str, ...], seen: dict[int, object]) -> Iterable[object]:
    """Everything of these packages that an object leads to, private names, closures and containers
    included."""
    if id(item) in seen or isinstance(item, type):
        return
    seen[id(item)] = item
    yield item
    for each in gc.get_referents(item):
        inner = type(each).__module__.split(".")[0] in packages or isinstance(
            each, dict | list | tuple | set | MethodType | FunctionType | CellType
        )
        if inner and not (isinstance(each, dict) and "__builtins__" in each):  # a module's names
            yield from reachable(each, packages, seen)


def future_behind(item: object, packages: tuple[str, ...] = ()) -> list[str]:
    """Names of the classes by which an object leads to what is to come."""
    found = reachable(item, ("marsbench", *packages), {})
    names = (f"{type(each).__module__}.{type(each).__name__}" for each in found)
    return [name for name in names if name in FUTURE]


def collected(monkeypatch, core: Any) -> list[object]:
    """Turns, sessions and tool calls that policies of every role were shown in a cell."""
    caught: list[object] = []

    class Collecting(Oversubscribe, EngineOrder):
        tick_s = None
        gates_continuations = True

        def on_event(self, event):
            pass

        def slots(self, view, now_s):
            return 2

        def waiting_key(self, turn, view, now_s):
            caught.extend([turn, *view.running])
            return super().waiting_key(turn, view, now_s)

        def on_scheduled(self, turn, new_tokens, quantum, now_s):
            caught.append(turn)

        def next_call(self, queue, view, now_s):
            caught.extend(queue)
            return 0

        def admit(self, pending, view, now_s):
            caught.extend([*pending, *view.active])
            return pending

    def build(_context):
        policy = Collecting()
        return Policies(scheduling=policy, admission=policy, tools=policy)

    monkeypatch.setattr("cells.load", lambda _kind, _name: System("c", "collects", build=build))
    sessions = some_sessions(12, seed=5)
    run("c", sessions, spread(len(sessions), 0.3), core=core)
    return caught


@pytest.mark.parametrize(("module", "core", "packages"), CORES)
def test_views_hold_nothing_of_the_future(module, core, packages, monkeypatch):
    """From a session, a tool call or a turn as policies get them, in every engine, no path leads to
    recorded turns, plans, demands or requests, ours or the engine's, private attributes included."""
    caught = collected(monkeypatch, getattr(import_module(module), core))
    turn_class = EngineTurn if packages else SimTurn
    for view in (SessionState, CallState, turn_class):
        found = [item for item in caught if isinstance(item, view)]
        assert found
        for item in found[:: max(1, len(found) // 50)]:
            behind = future_behind(item, packages)
            assert not behind, f"a {view.__name__} leads to a {behind[0]}"


@pytest.mark.parametrize(("module", "core", "packages"), CORES)
def test_no_turn_tells_its_length_without_glass(module, core, packages, monkeypatch):
    """Shortest output first by way of the engine's own request fails in every engine: a turn has no
    request, nor has what it leads to."""

    def peek(turn, view):
        return turn.request.max_tokens

    monkeypatch.setattr(Peeking, "peek", staticmethod(peek), raising=False)
    planted = System("cheat", "a cheat", build=lambda _context: Policies(scheduling=Peeking()))
    monkeypatch.setattr("cells.load", lambda _kind, _name: planted)
    sessions = some_sessions(12, seed=5)
    with pytest.raises(AttributeError, match="request"):
        run(
            "cheat", sessions, spread(len(sessions), 0.1), core=getattr(import_module(module), core)
        )


def test_the_walk_finds_what_is_hidden():
    """The walk above can fail: a request behind a private slot, a bound method or a closure."""
    request = Request(
        session=0, turn_index=0, prompt_tokens=1, reused_tokens=0, output_tokens=9, prefix_id=-1,
        prefix_tokens=0, session_arrival_ps=0, ready_ps=0, priority=0, is_last=False, tool_names=(),
    )  # fmt: skip

    def length():
        return request.output_tokens

    class Hiding:
        def __init__(self, what):
            self._what = what

        def read(self):
            return self._what

    for hidden in (Hiding(request), Hiding(length), Hiding(Hiding(request).read)):
        assert future_behind(hidden, (__name__.split(".")[0],)), hidden
    assert not future_behind(EngineTurn("0", TurnInfo(0, 0, 0.0, 0.0), 0, 1))


def test_the_oracle_is_named_and_nobody_else_is_given_sessions():
    """Only systems that declare themselves clairvoyant are shown the sessions of a cell."""
    named = {name for name in NAMES if load("SYSTEMS", name).clairvoyant is not None}
    assert named
    assert all("oracle" in name or "best" in name for name in named), named
    assert all(policies_of(load("SYSTEMS", name), []) for name in named)
