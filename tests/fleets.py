"""Cells with several replicas for tests: the small engine of ``cells``, behind one front door."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from cells import BLOCK_SIZE, CONTEXT, COST, NUM_BLOCKS, TOOL_CORES

from marsbench.arrival.base import ArrivalPlan
from marsbench.core import Session, to_ps
from marsbench.engine.base import EngineConfig
from marsbench.engine.plan import CellPlan, FleetPlan, ReplicaChange
from marsbench.engine.sim.core import SimCore
from marsbench.engine.virtual import CoreFactory, VirtualEngine
from marsbench.experiment.fleets import fleet_policies
from marsbench.experiment.wiring import system_named
from marsbench.records import EventLog
from marsbench.system import Policies
from marsbench.tools import make_tool_model

FLAGS = EngineConfig(
    num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, max_num_batched_tokens=2048, max_num_seqs=64
)


def play(
    sessions: Sequence[Session],
    arrivals_s: Sequence[float],
    *,
    front: Policies,
    inside: Sequence[Policies],
    num_replicas: int,
    changes: Sequence[ReplicaChange] = (),
    told: bool = True,
    flags: EngineConfig = FLAGS,
    core: CoreFactory = SimCore,
    priority: str = "none",
) -> EventLog:
    """One cell of these policies."""
    log = EventLog()
    VirtualEngine(core).run(
        CellPlan(
            sessions=tuple(sessions),
            arrivals=ArrivalPlan(tuple(to_ps(at_s) for at_s in arrivals_s)),
            policies=front,
            flags=flags,
            cost=COST,
            tools=make_tool_model("modelled", TOOL_CORES),
            tool_cores=TOOL_CORES,
            priority=priority,
            fleet=FleetPlan(num_replicas, tuple(inside), told, tuple(changes)),
        ),
        log,
    )
    return log


def play_system(
    name: str,
    sessions: Sequence[Session],
    arrivals_s: Sequence[float],
    *,
    num_replicas: int = 2,
    changes: Sequence[ReplicaChange] = (),
    core: CoreFactory = SimCore,
    wrap=lambda policies: policies,
) -> EventLog:
    """One cell of a system, ``NAME`` or ``NAME@ROUTER``."""
    system = system_named(name)
    added = sum(change.added for change in changes)
    front, plan = fleet_policies(system, CONTEXT, num_replicas + added, ())
    return play(
        sessions,
        arrivals_s,
        front=wrap(front),
        inside=[wrap(each) for each in plan.inside],
        num_replicas=num_replicas,
        changes=changes,
        told=plan.told,
        flags=dataclasses.replace(FLAGS, **system.engine),
        core=core,
        priority=system.priority,
    )
