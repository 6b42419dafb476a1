"""The driver's own rules: what it does with policies that stop a run."""

from __future__ import annotations

import pytest

from marsbench.admission.base import Unlimited
from marsbench.arrival.base import ArrivalPlan
from marsbench.core import Session, Turn
from marsbench.engine import driver, gate
from marsbench.engine.base import EngineConfig
from marsbench.engine.cost import StepCost
from marsbench.engine.sim.core import SimCore
from marsbench.errors import PolicyError
from marsbench.records import EventLog
from marsbench.system import Policies
from marsbench.tools.recorded import Recorded


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
        driver.run_cell(
            sessions=[Session("a", (Turn(10, 2),))],
            arrivals=ArrivalPlan(times_ps=(0,), closed_loop=None),
            core_factory=lambda listener: SimCore(
                EngineConfig(num_blocks=64), cost, policies, listener
            ),
            policies=policies,
            tools=Recorded(),
            log=EventLog(),
        )
