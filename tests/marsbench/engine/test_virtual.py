"""The driver's own rules: what it does with policies that stop a run."""

from __future__ import annotations

import pytest

from marsbench.admission.base import Niceness, Oversubscribe, Unlimited
from marsbench.arrival.base import ArrivalPlan
from marsbench.core import PS_PER_S, Session, ToolCall, Turn
from marsbench.engine import gate
from marsbench.engine.base import EngineConfig
from marsbench.engine.cost import StepCost, TurnCost
from marsbench.engine.plan import CellPlan
from marsbench.engine.sim.core import SimCore
from marsbench.engine.virtual import VirtualEngine
from marsbench.errors import PolicyError
from marsbench.events import Kind
from marsbench.records import EventLog
from marsbench.system import Policies
from marsbench.tools.base import ToolAssumptions
from marsbench.tools.modelled import Modelled
from marsbench.tools.recorded import Recorded

MS = PS_PER_S // 1000
MILLISECOND = StepCost.from_coefficients(
    c_tok=0, c_pair=0, weights=[0], m_ctx=0, o_step=MS, o_seq=0
)


class Never(Unlimited):
    """Admits nobody."""

    def __init__(self, tick_s):
        self.tick_s = tick_s

    def admit(self, pending, view, now_s):
        return ()


@pytest.mark.parametrize("tick_s", [None, 1.0])
def test_a_policy_that_never_admits_stops_the_run_with_one_line(tick_s, monkeypatch):
    """Nothing runs and nothing is due: an error, at once or after a bounded number of ticks."""
    monkeypatch.setattr(gate, "MAX_IDLE_TICKS", 50)
    policies = Policies(admission=Never(tick_s))
    cost = StepCost.from_coefficients(
        c_tok=0, c_pair=0, weights=[0], m_ctx=0, o_step=1_000_000_000, o_seq=0
    )
    with pytest.raises(PolicyError, match="held 1 turns back while nothing was active"):
        VirtualEngine(SimCore).run(
            CellPlan(
                sessions=(Session("a", (Turn(10, 2),)),),
                arrivals=ArrivalPlan(times_ps=(0,), closed_loop=None),
                policies=policies,
                flags=EngineConfig(num_blocks=64),
                cost=cost,
                tools=Recorded(),
            ),
            EventLog(),
        )


class Weighing(Oversubscribe):
    """Every call of tool ``long`` is nice."""

    def __init__(self, niceness):
        self.given = niceness

    def niceness(self, call, view, now_s):
        return self.given if call.name == "long" else Niceness()


def run_tools(niceness):
    """Two sessions with a tool call each of 2000 s of CPU, on one core: when they end."""
    policies = Policies(tools=Weighing(niceness))
    sessions = [
        Session(
            name, (Turn(10, 1, tools=(ToolCall(name, "test", 2000.0, cpu_s=2000.0),)), Turn(1, 1))
        )
        for name in ("short", "long")
    ]
    log = EventLog()
    VirtualEngine(SimCore).run(
        CellPlan(
            sessions=tuple(sessions),
            arrivals=ArrivalPlan(times_ps=(0, 0), closed_loop=None),
            policies=policies,
            flags=EngineConfig(num_blocks=64),
            cost=MILLISECOND,
            tools=Modelled(1),
            tool_cores=1,
            assumptions=ToolAssumptions(shell_timeout_s=None),
        ),
        log,
    )
    return log.to_numpy()


def test_the_policy_s_niceness_reaches_the_cores_and_the_record():
    """Niceness 10 weighs 110 to 1024: the other call ends at 2000 * 1134/1024 s instead of sharing
    to 4000 s, and the start of the nice one says what it got."""
    rows = run_tools(Niceness(10, 0.5))
    ends = sorted(rows[rows[:, 1] == Kind.TOOL_END][:, 0] / 1e12)
    assert ends == pytest.approx([2000 * 1134 / 1024, 4000], abs=2)
    started = rows[rows[:, 1] == Kind.TOOL_START]
    assert started[:, 7:9].tolist() == [[0, 0], [10, 500_000_000_000]]


@pytest.mark.parametrize("niceness", [Niceness(20), Niceness(-1), Niceness(3, -0.5)])
def test_niceness_that_does_not_exist_stops_the_run_with_one_line(niceness):
    """Out of range: an error that names the policy, the call and the range."""
    with pytest.raises(PolicyError, match=r"Weighing\.niceness: .* 'long'; it must be 0 to 19"):
        run_tools(niceness)


def test_turns_take_time_to_reach_the_engine():
    """A turn is sent when it is ready and scheduled when it is there: 5 ms and 10 tokens of 0.1 ms
    later. Steps of 1 ms: the first turn ends at 6 + 2 = 8 ms; the second, of 12 + 3 = 15 tokens, is
    sent at 18 ms, after 10 ms of tools, and there 5 + 1.5 ms later."""
    log = EventLog()
    tool = ToolCall("ls", "shell_read", 0.01)
    ready = []

    class Noting(SimCore):
        def submit(self, request):
            ready.append(request.ready_ps)
            super().submit(request)

    VirtualEngine(Noting).run(
        CellPlan(
            sessions=(Session("a", (Turn(10, 2, tools=(tool,)), Turn(3, 1))),),
            arrivals=ArrivalPlan(times_ps=(0,), closed_loop=None),
            policies=Policies(),
            flags=EngineConfig(num_blocks=64),
            cost=MILLISECOND,
            tools=Recorded(),
            turn_cost=TurnCost(fixed_ps=5 * MS, prompt_token_ps=MS // 10),
        ),
        log,
    )
    times = {
        kind: [row[0] for row in log.to_numpy().tolist() if row[1] == kind]
        for kind in (Kind.GPU_SUBMIT, Kind.GPU_SCHED_FIRST, Kind.GPU_END)
    }
    assert times[Kind.GPU_SUBMIT] == [0, 18 * MS]
    assert times[Kind.GPU_SCHED_FIRST] == [6 * MS, 24 * MS + MS // 2]
    assert times[Kind.GPU_END] == [8 * MS, 25 * MS + MS // 2]
    assert ready == times[Kind.GPU_SCHED_FIRST], "the engine's order is that of arrival there"
