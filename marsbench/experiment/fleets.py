"""Several replicas of a system: one control plane with a router, and policies inside each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from marsbench.config import ReplicaEvent
from marsbench.core import PolicyContext, to_ps
from marsbench.engine import engine_kind
from marsbench.engine.plan import FleetPlan, ReplicaChange
from marsbench.errors import ConfigError
from marsbench.routing import make_router
from marsbench.system import FleetPolicies, Policies, System


def check_engine(engine: str, replicas: int) -> None:
    """Raise ConfigError for more replicas than the engine runs, before it is opened."""
    if replicas > 1 and not engine_kind(engine).has_replicas:
        raise ConfigError(
            f"--replicas {replicas}: engine {engine} runs one; use --engine sim or vllm-core"
        )


def check_fleet(system: System, engine: str, replicas: int, host_kv_gib: float) -> None:
    """Raise ConfigError where several replicas are not modelled."""
    check_engine(engine, replicas)
    if replicas == 1:
        return
    if system.clairvoyant is not None:
        raise ConfigError(f"system {system.name!r} sees the future of one engine: --replicas 1")
    if host_kv_gib:
        raise ConfigError(
            f"--replicas {replicas} with --host-kv {host_kv_gib:g}: host memory of several replicas "
            "is not modelled; leave one of them out"
        )


def fleet_policies(
    system: System, context: PolicyContext, replicas: int, events: Sequence[ReplicaEvent]
) -> tuple[Policies, FleetPlan]:
    """Return the policies of the front door, and the plan of what stands behind it."""
    most = replicas + sum(event.added for event in events)
    if system.fleet is not None:
        made = system.fleet(context, most)
    else:
        made = _alike(system, context, replicas, most)
    changes = [
        ReplicaChange(to_ps(e.at_s), -1 if e.dies is None else e.dies, e.added) for e in events
    ]
    return made.front, FleetPlan(replicas, made.inside, made.told, tuple(changes))


def _alike(system: System, context: PolicyContext, replicas: int, most: int) -> FleetPolicies:
    """The system's own policies inside each replica, and before all of them as if they were one."""
    whole = dataclasses.replace(
        context,
        num_blocks=context.num_blocks * replicas,
        max_num_seqs=context.max_num_seqs * replicas,
    )
    front = system.build(whole)
    front.routing = make_router(system.router, context)
    return FleetPolicies(front, tuple(system.build(context) for _ in range(most)))
