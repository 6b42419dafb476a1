"""Queueing theory's known answers, where the model reduces to a queue that has one."""

from __future__ import annotations

import numpy as np
import pytest

from marsbench.arrival.base import ArrivalPlan
from marsbench.core import Session, ToolCall, Turn
from marsbench.engine.base import EngineConfig
from marsbench.engine.cost import StepCost
from marsbench.engine.plan import CellPlan
from marsbench.engine.sim.core import SimCore
from marsbench.engine.virtual import VirtualEngine
from marsbench.events import Kind
from marsbench.records import EventLog
from marsbench.system import Policies
from marsbench.tools.modelled import Modelled

MS = 1_000_000_000
COUNT = 20_000
LOAD = 0.7
TOLERANCE = 0.06
"""The standard error of the mean of 20,000 autocorrelated waits at load 0.7 is about 2.5 %."""


def latencies_s(sessions, arrivals_s, step_ps):
    """Seconds from arrival to end of each session, one turn at a time, every step ``step_ps``."""
    config = EngineConfig(num_blocks=4096, block_size=16, max_num_seqs=1)
    cost = StepCost.from_coefficients(
        c_tok=0, c_pair=0, weights=[0], m_ctx=0, o_step=step_ps, o_seq=0
    )
    policies = Policies()
    log = EventLog()
    VirtualEngine(SimCore).run(
        CellPlan(
            sessions=tuple(sessions),
            arrivals=ArrivalPlan(
                times_ps=tuple(int(at * 1000 * MS) for at in arrivals_s), closed_loop=None
            ),
            policies=policies,
            flags=config,
            cost=cost,
            tools=Modelled(1),
            tool_cores=1,
        ),
        log,
    )
    rows = log.to_numpy()
    ends = np.zeros(len(sessions))
    done = rows[rows[:, 1] == Kind.SESSION_END]
    ends[done[:, 2]] = done[:, 0] / (1000 * MS)
    return ends - np.asarray(arrivals_s)


def poisson(rng, rate):
    """Arrival times of COUNT sessions, seconds."""
    return np.cumsum(rng.exponential(1 / rate, COUNT))


def one_turn(outputs):
    """Sessions of a single turn: a token of prompt, so a step per output token."""
    return [Session(str(i), (Turn(1, int(n)),)) for i, n in enumerate(outputs)]


def test_m_d_1_waiting_time():
    """Constant service D = 20 steps of 10 ms: mean wait = rho D / (2 (1 - rho))."""
    rng = np.random.default_rng(1)
    service_s = 0.2
    arrivals = poisson(rng, LOAD / service_s)
    latency = latencies_s(one_turn([20] * COUNT), arrivals, 10 * MS)
    expected = LOAD * service_s / (2 * (1 - LOAD))
    assert (latency - service_s).mean() == pytest.approx(expected, rel=TOLERANCE)


def test_m_m_1_time_in_system():
    """Geometric service, mean 200 steps of 1 ms (nearly exponential): 1 / (mu - lambda)."""
    rng = np.random.default_rng(2)
    outputs = rng.geometric(1 / 200, COUNT)
    arrivals = poisson(rng, LOAD / 0.2)
    latency = latencies_s(one_turn(outputs), arrivals, MS)
    assert latency.mean() == pytest.approx(0.2 / (1 - LOAD), rel=TOLERANCE)


def test_m_g_1_processor_sharing_is_insensitive_to_the_distribution():
    """Tools on one shared core, log-normal work of mean 1 s: mean stay = 1 / (1 - rho) seconds."""
    rng = np.random.default_rng(3)
    sigma = 1.0
    work = rng.lognormal(-sigma * sigma / 2, sigma, COUNT)
    sessions = [
        Session(
            str(i), (Turn(1, 1, tools=(ToolCall("t", "x", float(s), cpu_s=float(s)),)), Turn(1, 1))
        )
        for i, s in enumerate(work)
    ]
    arrivals = poisson(rng, LOAD)
    latency = latencies_s(sessions, arrivals, 1)
    assert latency.mean() == pytest.approx(1 / (1 - LOAD), rel=TOLERANCE)
