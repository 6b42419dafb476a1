"""A system under test: engine flags plus the policies around it, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from marsbench.admission.base import (
    AdmissionPolicy,
    Oversubscribe,
    ToolDispatchPolicy,
    Unlimited,
)
from marsbench.core import PolicyContext, Session
from marsbench.routing.base import FirstReplica, RoutingPolicy
from marsbench.scheduler.base import EngineOrder, NoRetention, RetentionPolicy, SchedulingPolicy

NULL_POLICIES = (EngineOrder, NoRetention, Unlimited, Oversubscribe, FirstReplica)


def is_null(policy: object) -> bool:
    """Whether a policy decides nothing and needs to hear nothing.

    Only the null policies themselves are: a class that extends one may decide anything.
    """
    return type(policy) in NULL_POLICIES


@dataclass(slots=True)
class Policies:
    """The policy objects of one cell. Those left out are the null policies (stock behaviour)."""

    scheduling: SchedulingPolicy = field(default_factory=EngineOrder)
    retention: RetentionPolicy = field(default_factory=NoRetention)
    admission: AdmissionPolicy = field(default_factory=Unlimited)
    tools: ToolDispatchPolicy = field(default_factory=Oversubscribe)
    routing: RoutingPolicy = field(default_factory=FirstReplica)

    def all(self) -> tuple[object, ...]:
        """Every policy, in the order in which they hear of events."""
        return (self.admission, self.scheduling, self.retention, self.tools, self.routing)

    def stock_engine(self) -> bool:
        """True if the engine runs without any policy of ours inside."""
        return is_null(self.scheduling) and is_null(self.retention)


@dataclass(frozen=True, slots=True)
class FleetPolicies:
    """The policy objects of a cell with several replicas: one control plane, and what is in each."""

    front: Policies
    """Admission, tool dispatch and routing; nothing else of it is used."""
    inside: tuple[Policies, ...]
    """Scheduling and retention of each replica, those that are added later included."""
    told: bool = True
    """Whether a replica's policies are told of what happens to the sessions there, as they are in
    a server. False: the front tells them itself."""


def stock(context: PolicyContext) -> Policies:
    """Null policies everywhere."""
    return Policies()


@dataclass(frozen=True, slots=True)
class System:
    """A named system. ``build`` is called once per cell."""

    name: str
    summary: str
    """One line for ``marsbench list`` (with the paper, where there is one)."""
    build: Callable[[PolicyContext], Policies] = stock
    engine: Mapping[str, int | str | bool] = field(default_factory=dict)
    """Overrides of EngineConfig fields, e.g. {"policy": "priority"}."""
    engines: tuple[str, ...] = ()
    """Engines it means something on, the one it is tuned on first; empty: all, tuned on ``sim``."""
    tunable: Mapping[str, Sequence[float | str]] = field(default_factory=dict)
    """Parameter grid searched by the ``NAME-tuned`` variant on the tuning split: names of engine
    fields or of ``PolicyContext.params``."""
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Least and greatest value that makes sense for a parameter of the grid; 0 and infinity where
    none is given. Tuning widens a grid whose best value lies on its edge, up to these."""
    priority: str = "none"
    """What the client sends as vLLM's per-request priority: none | session_arrival |
    continuation_first. Only used with engine policy "priority"."""
    router: str = "least-loaded"
    """The router in front of several replicas, by name; ``SYSTEM@ROUTER`` replaces it."""
    fleet: Callable[[PolicyContext, int], FleetPolicies] | None = None
    """Builds the policies of so many replicas, the context being one replica's. None: ``build`` for
    each replica, and once more with the memory of all of them for the front door."""
    clairvoyant: Callable[[PolicyContext, Sequence[Session]], Policies] | None = None
    """Used instead of ``build``: sees the sessions of the cell. Labelled as an oracle."""
    tuned_on: str = ""
    """If not empty: this system is ``tuned_on``'s tuned variant."""
