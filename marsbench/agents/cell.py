"""A cell of live agents: what is to be run, and how it went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marsbench.agents.front import Upstream
from marsbench.agents.relay import RequestNote
from marsbench.agents.task import Task
from marsbench.arrival import ArrivalPlan
from marsbench.core import PolicyContext
from marsbench.events import Status
from marsbench.system import System


@dataclass(frozen=True, slots=True)
class AgentCell:
    """What is to be run."""

    session_ids: Sequence[str]
    tasks: Sequence[Task]
    """One for each session."""
    arrivals: ArrivalPlan
    system: System
    context: PolicyContext
    upstream: Upstream
    params: Mapping[str, float] = field(default_factory=dict)
    salt: str = ""
    """Names the run: sessions of two runs have different names for an engine."""


@dataclass(slots=True)
class Result:
    """How one session went."""

    session_id: str
    task_id: str
    name: str
    arrival_ns: int = 0
    end_ns: int = 0
    done: bool = False
    """The agent says that it is done."""
    passed: bool = False
    """The task's tests say so."""
    timed_out: bool = False
    reason: str = ""
    """What went wrong; empty if nothing did."""
    turns: int = 0
    cpu_s: float = 0.0
    peak_bytes: int = 0
    prepare_s: float = 0.0
    judge_output: str = ""
    tools: list[dict[str, Any]] = field(default_factory=list)
    trajectory: Path | None = None

    @property
    def status(self) -> Status:
        """As the event log has it."""
        if self.passed:
            return Status.OK
        return Status.TIMEOUT if self.timed_out else Status.ERROR


@dataclass(slots=True)
class AgentOutcome:
    """What a cell gave beside its event log."""

    results: list[Result]
    requests: list[RequestNote]
    versions: Mapping[str, str]
    startup_s: float
    same_path: bool
    wrong_lengths: int
    left_behind: list[str]
    """What could not be removed."""
    wall_s: float
    trace: Path
    """What ran through the gateway, as it recorded it; sessions have the names they gave it."""
    others_cpu_share: float | None
    """Share of this machine's cores that other programs used while the cell was measured."""
    start_ns: int
    """When the cell began."""
