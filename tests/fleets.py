"""Cells with several replicas for tests: the small engine of ``cells``, behind one front door."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import cells
from cells import BLOCK_SIZE, CONTEXT, NUM_BLOCKS

from marsbench.core import Session
from marsbench.engine.base import EngineConfig
from marsbench.engine.plan import FleetPlan, ReplicaChange
from marsbench.engine.sim.core import SimCore
from marsbench.engine.virtual import CoreFactory
from marsbench.experiment.fleets import fleet_policies
from marsbench.experiment.wiring import system_named
from marsbench.records import EventLog
from marsbench.system import Policies

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
    return cells.play(
        sessions, arrivals_s, policies=front, flags=flags, core=core, priority=priority,
        fleet=FleetPlan(num_replicas, tuple(inside), told, tuple(changes)),
    )  # fmt: skip


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
