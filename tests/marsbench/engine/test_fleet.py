"""Several replicas behind one front door: one is as none, and moves, deaths and additions by hand."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
from cells import events, num_sessions, policies_of, some_sessions, spread
from cells import run as run_alone
from fleets import FLAGS, play, play_system

from marsbench.core import Session, SharedPrefix, ToolCall, Turn, to_ps
from marsbench.engine.plan import ReplicaChange
from marsbench.engine.sim.core import SimCore
from marsbench.errors import EngineError, PolicyError
from marsbench.events import FLEET_KINDS, Kind, Status
from marsbench.registry import load
from marsbench.routing.base import FirstReplica
from marsbench.system import Policies

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed")
ASIDE = [Kind.KV_STATS, Kind.CPU_STATS, Kind.RUN_END, *FLEET_KINDS]
"""Telemetry, which is sampled at other times, and what only replicas have."""


def facts(log):
    """All other rows, in an order of their own: one engine's log is not in order of time."""
    rows = log.to_numpy()
    rows = rows[~np.isin(rows[:, 1], ASIDE)]
    return rows[np.lexsort(rows.T[::-1])].tolist()


class Listed(FirstReplica):
    """A router that follows a list of positions."""

    def __init__(self, *positions: int) -> None:
        self._positions = list(positions)

    def route(self, turn, replicas, now_s):
        return self._positions.pop(0)


def stock(*positions: int, num: int = 2):
    """Two stock engines, and a list of where turns go."""
    return {
        "front": Policies(routing=Listed(*positions)),
        "inside": [Policies() for _ in range(num)],
        "num_replicas": 2,
    }


@pytest.mark.parametrize(
    "name",
    ["vllm", "vllm-priority", "autellix", "infercept", "continuum", "static", "thunderagent"],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_fleet_of_one_is_the_engine_alone(name, seed):
    """Every event of sessions, turns, pins and tools is the same, at the same time; and the fleet's
    log is in order of time.
    """
    sessions = some_sessions(15, seed)
    arrivals_s = spread(len(sessions), 0.3)
    alone = run_alone(name, sessions, arrivals_s, core=SimCore)
    system = load("SYSTEMS", name)
    policies = policies_of(system, sessions)
    log = play(
        sessions, arrivals_s, front=policies, inside=[policies], num_replicas=1, told=False,
        flags=FLAGS.__class__(**{**_fields(FLAGS), **system.engine}), priority=system.priority,
    )  # fmt: skip
    assert facts(log) == facts(alone)
    assert (np.diff(log.to_numpy()[:, 0]) >= 0).all()


def _fields(flags):
    return {name: getattr(flags, name) for name in flags.__dataclass_fields__}


def test_a_session_that_moves_computes_its_context_again():
    """1,000 prompt tokens and 100 out, then 200 more at the other replica: 1,300 tokens without a hit,
    1,088 of them (whole blocks of 16 of 1,100) for the second time; back at the first, its old 1,088
    are still there, the 263 that were added elsewhere are not.
    """
    turns = (Turn(1000, 100), Turn(200, 64), Turn(100, 10))
    log = play([Session("s", turns)], [0.0], **stock(0, 1, 0))
    ends = events(log, Kind.GPU_END)
    assert [e["cached_tokens"] for e in ends] == [0, 0, 1088]
    assert [e["prefilled_tokens"] for e in ends] == [1000, 1300, 1464 - 1088]
    assert [e["recomputed_tokens"] for e in ends] == [0, 1088, 1360 - 1088]
    routes = [(e["replica"], e["previous"]) for e in events(log, Kind.ROUTE)]
    assert routes == [(0, -1), (1, 0), (0, 1)]


def test_a_context_that_was_cut_elsewhere_is_not_found_whole():
    """At the other replica the context is cut to 400 tokens; back at the first, of the 1,088 that lie
    there only the 400 (25 blocks) are still a prefix of the prompt.
    """
    turns = (
        Turn(1000, 100),
        Turn(500, 50, drop_context_to=400, kept_prefix_tokens=400),
        Turn(100, 10),
    )
    log = play([Session("s", turns)], [0.0], **stock(0, 1, 0))
    assert [e["cached_tokens"] for e in events(log, Kind.GPU_END)] == [0, 0, 400]


def test_replicas_work_at_the_same_time():
    """Two equal turns at two replicas end when one alone would; at one they share its steps."""
    sessions = [Session(name, (Turn(1000, 100),)) for name in "ab"]
    apart = events(play(sessions, [0.0, 0.0], **stock(0, 1)), Kind.GPU_END)
    alone = events(play(sessions[:1], [0.0], **stock(0)), Kind.GPU_END)
    together = events(play(sessions, [0.0, 0.0], **stock(0, 0)), Kind.GPU_END)
    assert [e["time_ps"] for e in apart] == [alone[0]["time_ps"]] * 2
    assert min(e["time_ps"] for e in together) > alone[0]["time_ps"]


def test_a_replica_that_dies_loses_its_turns_and_its_kv():
    """1,000 prompt tokens take 0.1 s and 5 ms; then it decodes. The replica dies at 0.5 s: the turn
    goes to the other one, computes the prompt and the answer again, has one first token, and its
    context is found there by the turn after it.
    """
    session = Session("s", (Turn(1000, 200, tools=(ToolCall("t", "script", 1.0),)), Turn(100, 10)))
    die = ReplicaChange(to_ps(0.5), dies=0)
    log = play([session], [0.0], **stock(0, 0, 0), changes=[die])
    (down,) = events(log, Kind.REPLICA_DOWN)
    assert (down["replica"], down["sessions"], down["turns"]) == (0, 1, 1)
    assert to_ps(0.5) <= down["time_ps"] < to_ps(0.5) + to_ps(0.006), "at the end of its step"
    (lost,) = events(log, Kind.GPU_PREEMPT)
    assert lost["time_ps"] == down["time_ps"]
    assert lost["lost_tokens"] == pytest.approx(1000 + (0.5 - 0.105) / 0.0051, abs=2)
    assert down["lost_blocks"] == -(-lost["lost_tokens"] // 16) == lost["blocks"]
    assert [(e["replica"], e["previous"]) for e in events(log, Kind.ROUTE)] == [
        (0, -1), (1, 0), (1, 1),
    ]  # fmt: skip
    (again,) = events(log, Kind.GPU_RESUME)
    assert (again["time_ps"], again["cached_tokens"]) == (lost["time_ps"], 0)
    assert [e["turn"] for e in events(log, Kind.GPU_FIRST_TOKEN)] == [0, 1]
    first, second = events(log, Kind.GPU_END)
    assert (first["prefilled_tokens"], first["recomputed_tokens"]) == (2000, 1000)
    assert second["cached_tokens"] == 1184
    (end,) = events(log, Kind.SESSION_END)
    assert end["status"] == Status.OK


def test_turns_that_waited_at_a_dead_replica_start_elsewhere():
    """The first step has 2,048 tokens: 1,500 of the first turn, 548 of the second, none of the third.
    Its replica dies after it: two turns are resumed elsewhere, the third is scheduled for the first time.
    """
    sessions = [Session(name, (Turn(1500, 50),)) for name in "abc"]
    die = ReplicaChange(to_ps(0.1), dies=0)
    log = play(sessions, [0.0] * 3, **stock(0, 0, 0, 0, 0, 0), changes=[die])
    (down,) = events(log, Kind.REPLICA_DOWN)
    assert (down["sessions"], down["turns"]) == (3, 3)
    for kind in (Kind.GPU_PREEMPT, Kind.GPU_RESUME):
        assert [e["session"] for e in events(log, kind)] == [0, 1]
    first = [
        (e["session"], e["time_ps"] >= down["time_ps"]) for e in events(log, Kind.GPU_SCHED_FIRST)
    ]
    assert first == [(0, False), (1, False), (2, True)]
    prefilled = {e["session"]: e["prefilled_tokens"] for e in events(log, Kind.GPU_END)}
    assert prefilled == {0: 3000, 1: 548 + 1500, 2: 1500}


def test_a_replica_that_is_added_gets_turns():
    """Two of three replicas live from the start; the third is there from 1 s on."""
    sessions = [Session(f"s{k}", (Turn(500, 20),)) for k in range(4)]
    log = play_system(
        "vllm@round-robin", sessions, [0.0, 0.5, 1.0, 1.5],
        changes=[ReplicaChange(to_ps(0.9), added=1)],
    )  # fmt: skip
    assert [e["replica"] for e in events(log, Kind.ROUTE)] == [0, 1, 2, 0]
    assert [(e["replica"], e["time_ps"]) for e in events(log, Kind.REPLICA_UP)] == [
        (0, 0), (1, 0), (2, to_ps(0.9)),
    ]  # fmt: skip


def test_changes_after_the_last_session_do_not_happen():
    """The run ends with its last session, whatever was planned for later."""
    log = play(
        [Session("s", (Turn(500, 20),))], [0.0], **stock(0),
        changes=[ReplicaChange(to_ps(1e6), dies=0)],
    )  # fmt: skip
    assert not events(log, Kind.REPLICA_DOWN)
    assert events(log, Kind.RUN_END)[0]["time_ps"] < to_ps(10)


def test_a_dead_replicas_pins_are_given_up():
    """Every pin ends: those on a dead replica when it dies."""
    sessions = some_sessions(12, seed=3)
    log = play_system(
        "fixed-ttl@session-affinity", sessions, spread(len(sessions), 0.2),
        changes=[ReplicaChange(to_ps(2.0), dies=0)],
    )  # fmt: skip
    pinned = [(e["session"], e["turn"]) for e in events(log, Kind.KV_PIN)]
    given_up = [(e["session"], e["turn"]) for e in events(log, Kind.KV_UNPIN)]
    assert sorted(pinned) == sorted(given_up)
    assert events(log, Kind.REPLICA_DOWN)


@pytest.mark.parametrize(
    "name",
    ["vllm@round-robin", "autellix@lmetric", "infercept@llm-d", "continuum@dynamo-kv",
     "thunderagent@most-room", "concur@session-hash", "mars@progress-ttl"],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(2))
def test_every_session_ends_whatever_happens_to_replicas(name, seed):
    """Three replicas, one dies, two are added, another dies: each session ends once, all turns are
    answered once, time never goes back, and two runs are equal.
    """
    sessions = some_sessions(20, seed)
    changes = [
        ReplicaChange(to_ps(1.0), dies=1),
        ReplicaChange(to_ps(2.0), added=2),
        ReplicaChange(to_ps(3.0), dies=0),
    ]
    arrivals_s = spread(len(sessions), 0.15)
    log = play_system(name, sessions, arrivals_s, num_replicas=3, changes=changes)
    again = play_system(name, sessions, arrivals_s, num_replicas=3, changes=changes)
    assert log.rows == again.rows
    assert (np.diff(log.to_numpy()[:, 0]) >= 0).all()
    ends = events(log, Kind.SESSION_END)
    assert len({end["session"] for end in ends}) == len(ends) == num_sessions(sessions)
    assert sum(end["status"] == Status.OK for end in ends) == len(ends) - 1
    turns = [(e["session"], e["turn"]) for e in events(log, Kind.GPU_END)]
    assert len(turns) == len(set(turns))
    gone = {e["replica"]: e["time_ps"] for e in events(log, Kind.REPLICA_DOWN)}
    assert set(gone) == {0, 1}
    for route in events(log, Kind.ROUTE):
        assert route["time_ps"] <= gone.get(route["replica"], route["time_ps"])


def test_a_router_that_names_no_replica_stops_the_cell():
    """A position beyond the living replicas is the policy's mistake, in one line."""
    with pytest.raises(PolicyError, match=r"Listed.route: 2, but there are 2 replicas"):
        play([Session("s", (Turn(10, 1),))], [0.0], **stock(2))


def test_a_core_of_one_is_refused():
    """A core without the methods of a replica is named in one line."""

    class Single:
        pass

    with pytest.raises(EngineError, match="Single cannot be one of several replicas"):
        play([], [], **stock(), core=lambda *_: Single())


@pytest.mark.vllm
@needs_vllm
@pytest.mark.parametrize(
    "name",
    ["vllm@round-robin", "vllm@least-loaded", "vllm@dynamo-kv", "vllm@llm-d", "vllm@lmetric",
     "autellix@session-affinity", "continuum@progress-ttl", "thunderagent@most-room"],
)  # fmt: skip
@pytest.mark.parametrize("dies", [False, True], ids=["", "death"])
def test_two_replicas_of_vllm_do_the_same(name, dies):
    """Two simulated engines and two of vLLM's own schedulers: every event is the same, at the same
    time, with sessions that move, and with a replica that dies and one that is added.
    """
    from marsbench.engine.vllm.core import VllmCore

    changes = [ReplicaChange(to_ps(2.0), dies=1), ReplicaChange(to_ps(2.5), added=1)]
    sessions = some_sessions(16, seed=11)
    cells = [
        play_system(
            name, sessions, spread(len(sessions), 0.2), core=core, changes=changes if dies else ()
        )
        for core in (SimCore, VllmCore)
    ]
    ours, real = map(facts, cells)
    different = next((pair for pair in zip(ours, real, strict=False) if pair[0] != pair[1]), None)
    assert different is None
    assert len(ours) == len(real)
    routes = [
        [(e["time_ps"], e["session"], e["replica"], e["previous"]) for e in events(c, Kind.ROUTE)]
        for c in cells
    ]
    assert routes[0] == routes[1]


def test_prefixes_are_found_wherever_they_were_sent():
    """A shared prefix of 320 tokens is computed once at each replica, not once for both."""
    prefix = SharedPrefix("p", 320)
    sessions = [Session(f"s{k}", (Turn(100, 10),), shared_prefix=prefix) for k in range(4)]
    log = play(sessions, [0.0, 1.0, 2.0, 3.0], **stock(0, 1, 0, 1))
    assert [e["cached_tokens"] for e in events(log, Kind.GPU_END)] == [0, 0, 320, 320]
