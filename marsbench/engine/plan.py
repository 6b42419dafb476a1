"""What an engine is asked to run: one cell, complete and frozen, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, Self

from marsbench.arrival.base import ArrivalPlan
from marsbench.core import Session
from marsbench.engine.base import CoreStats, EngineConfig
from marsbench.engine.cost import StepCost, TurnCost
from marsbench.records import EventLog
from marsbench.system import Policies
from marsbench.tools.base import ToolAssumptions, ToolModel
from marsbench.tools.executor import ToolExecutor

if TYPE_CHECKING:
    from marsbench.engine.hardware import Model

Progress = Callable[[int, int], None]
"""Told now and then: finished sessions, and the engine's time in picoseconds."""

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


@dataclass(frozen=True, slots=True)
class Identity:
    """The system by name: what another process needs in order to build the same policies."""

    system: str
    """Dotted path of the ``System``."""
    profile: str
    params: tuple[tuple[str, float], ...] = ()
    tool_cores: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ReplicaChange:
    """A replica dies, or so many are added, while a cell runs."""

    at_ps: int
    dies: int = -1
    """Number of the replica that dies."""
    added: int = 0


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """Several engines behind one front door, each with the plan's flags and cost."""

    num_replicas: int
    """At the start."""
    inside: tuple[Policies, ...]
    """Scheduling and retention of each replica, in order of number, added ones included."""
    told: bool = True
    """See ``system.FleetPolicies.told``."""
    changes: tuple[ReplicaChange, ...] = ()


@dataclass(frozen=True, slots=True)
class CellPlan:
    """One cell. Policies and tools are fresh objects that belong to this plan alone."""

    sessions: tuple[Session, ...]
    arrivals: ArrivalPlan
    policies: Policies
    flags: EngineConfig
    tools: ToolModel | ToolExecutor
    cost: StepCost | None = None
    """How long steps take in virtual time; an engine on the wall clock takes its own time."""
    turn_cost: TurnCost | None = None
    """How long turns take to reach an engine in virtual time; None: no time."""
    model: Model | None = None
    """Shape of the model, where the profile says: a server that is started without weights gets one
    with as many layers."""
    tool_cores: int = 0
    """0 = unlimited."""
    tool_speed: float = 1.0
    assumptions: ToolAssumptions = field(default_factory=ToolAssumptions)
    fleet: FleetPlan | None = None
    """None: one engine, with the plan's own policies inside."""
    priority: str = "none"
    """What clients send as request priority: see ``System.priority``."""
    identity: Identity | None = None
    """None where no other process could build these policies (an oracle, a test's own)."""


@dataclass(frozen=True, slots=True)
class CellOutcome:
    """What a run gave beside the events in its log."""

    stats: CoreStats
    measured: Mapping[str, Json] = field(default_factory=dict)
    """Further entries of the cell in ``summary.json``: what only this engine can tell."""
    warnings: tuple[str, ...] = ()
    """What makes the numbers doubtful, one line each."""


class Engine(Protocol):
    """Runs cells, one after the other. Entered before the first and left after the last.

    A new engine is one folder with a class like this and one line in ``marsbench.engine``.
    """

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...

    def run(self, plan: CellPlan, log: EventLog, progress: Progress | None = None) -> CellOutcome:
        """Run a cell to its end and append its events to ``log``, which is empty.

        Raises PolicyError if a policy stops the run and EngineError if the engine cannot go on.
        """
        ...

    def described(self) -> Mapping[str, Json]:
        """Say for ``environment.json`` what ran, as flags or an address. It may grow with each
        cell.
        """
        ...
