"""Request priorities: one rule and one unit, whoever drives the sessions."""

from __future__ import annotations

import pytest

from marsbench.arrival.base import ArrivalPlan
from marsbench.core import Session, Turn, to_ps
from marsbench.engine.base import EngineConfig
from marsbench.engine.cost import StepCost
from marsbench.engine.life import SessionState
from marsbench.engine.plan import CellPlan
from marsbench.engine.priority import request_priority
from marsbench.engine.sim.core import SimCore
from marsbench.engine.virtual import VirtualEngine
from marsbench.records import EventLog
from marsbench.system import Policies
from marsbench.tools.recorded import Recorded

CHILD = Session("child", (Turn(5, 1),))
SESSIONS = (
    Session("first", (Turn(10, 2, children=(CHILD,)), Turn(10, 1))),
    Session("second", (Turn(10, 1),)),
)
ARRIVALS_S = (0.05, 0.125)
SENT = {
    "none": [("first", 0), ("second", 0), ("child", 0), ("first", 0)],
    "session_arrival": [
        ("first", 50_000), ("second", 125_000), ("child", 50_000), ("first", 50_000),
    ],
    "continuation_first": [("first", 1), ("second", 1), ("child", 1), ("first", 0)],
}  # fmt: skip
"""Which session sends what as its priority: arrivals in microseconds, a sub-agent's is its root's."""


def plan(rule, cost=None):
    return CellPlan(
        sessions=SESSIONS,
        arrivals=ArrivalPlan(tuple(to_ps(at_s) for at_s in ARRIVALS_S)),
        policies=Policies(),
        flags=EngineConfig(num_blocks=256, max_model_len=4096),
        cost=cost,
        tools=Recorded(),
        priority=rule,
    )


def test_the_rule_alone():
    """An arrival at 2.5 s is 2,500,000 us, for a sub-agent of a sub-agent, too, whenever that came;
    first turns are 1 and later ones 0; without a rule all are 0."""
    root = SessionState(0, "root")
    root.arrival_ps = to_ps(2.5)
    child = SessionState(2, "grandchild", SessionState(1, "child", root))
    child.arrival_ps = to_ps(9.0)
    for state in (root, child):
        assert request_priority("session_arrival", state) == 2_500_000
        assert request_priority("continuation_first", state) == 1
        state.turn_index = 3
        assert request_priority("continuation_first", state) == 0
        assert request_priority("none", state) == 0


@pytest.mark.parametrize("rule", list(SENT))
def test_the_replay_in_virtual_time_sends_it(rule):
    """Steps take 100 ms, so that the second session is there before the first one's sub-agent."""
    sent = []

    class Noting(SimCore):
        def submit(self, request):
            sent.append((request.session, request.priority))
            super().submit(request)

    cost = StepCost.from_coefficients(
        c_tok=0, c_pair=0, weights=[0], m_ctx=0, o_step=to_ps(0.1), o_seq=0
    )
    log = EventLog()
    VirtualEngine(Noting).run(plan(rule, cost), log)
    assert [(log.session_ids[number], priority) for number, priority in sent] == SENT[rule]


@pytest.mark.parametrize("rule", list(SENT))
def test_the_replay_on_the_wall_clock_sends_it(rule):
    """The bodies that reach a server carry the same priorities; 0 is what a server assumes. Which
    of two sessions is answered first is the machine's business: they are compared sorted."""
    pytest.importorskip("aiohttp")
    from threaded_server import in_a_thread

    from marsbench.engine.live.client import Client
    from marsbench.engine.live.fake_server import FakeServer
    from marsbench.engine.live.wall import Site, run_live

    server = FakeServer()
    with in_a_thread(server) as url:
        site = Site(connect=lambda clock: Client(url, "fake", clock=clock))
        run_live(plan(rule), EventLog(), site)
    sent = [body.get("priority", 0) for body in server.requests]
    assert sorted(sent) == sorted(priority for _, priority in SENT[rule])
