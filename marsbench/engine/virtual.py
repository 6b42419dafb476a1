"""Cells in virtual time: sessions, tools and an engine core in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

from marsbench.engine.base import CoreListener, EngineConfig, EngineCore
from marsbench.engine.cost import StepCost
from marsbench.engine.life import Life, listeners_of
from marsbench.engine.loop import play
from marsbench.engine.plan import CellOutcome, CellPlan, Json, Progress
from marsbench.engine.replay import Replay
from marsbench.records import EventLog
from marsbench.system import Policies
from marsbench.tools.base import ToolModel
from marsbench.tools.executor import ToolExecutor

CoreFactory = Callable[[EngineConfig, StepCost, Policies, CoreListener], EngineCore]
"""Makes the core of one run; the classes of cores are such factories."""


@dataclass(frozen=True)
class VirtualEngine:
    """An ``engine.plan.Engine`` whose steps take modelled time. Plain data: any process can run it."""

    core: CoreFactory

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def run(self, plan: CellPlan, log: EventLog, progress: Progress | None = None) -> CellOutcome:
        """See ``Engine.run``."""
        assert plan.cost is not None, "virtual time needs to know how long steps take"
        assert not isinstance(plan.tools, ToolExecutor), "tools that really run need a real clock"
        life = Life(log, listeners_of(plan.policies.all()))
        tools: ToolModel = plan.tools
        if plan.fleet is not None:
            from marsbench.engine.fleet import Fleet

            fleet = Fleet(plan, plan.fleet, life, self.core)
            return CellOutcome(play(fleet.replay(tools, progress)))
        core = self.core(plan.flags, plan.cost, plan.policies, life)
        return CellOutcome(play(Replay(plan, life, core, tools, progress)))

    def described(self) -> Mapping[str, Json]:
        """Return nothing: the configuration says all there is to say."""
        return {}
