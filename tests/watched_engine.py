"""An engine for tests: the simulator, with something done before or after each run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from marsbench.engine.plan import CellOutcome, CellPlan, Progress
from marsbench.engine.sim.core import SimCore
from marsbench.engine.virtual import VirtualEngine
from marsbench.records import EventLog


class WatchedEngine:
    """``before(plan)`` may raise instead of the run; ``after(log)`` sees what was logged."""

    def __init__(
        self,
        before: Callable[[CellPlan], None] = lambda _plan: None,
        after: Callable[[EventLog], None] = lambda _log: None,
    ) -> None:
        self._before = before
        self._after = after

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def run(self, plan: CellPlan, log: EventLog, progress: Progress | None = None) -> CellOutcome:
        self._before(plan)
        outcome = VirtualEngine(SimCore).run(plan, log, progress)
        self._after(log)
        return outcome

    def described(self) -> dict[str, object]:
        return {}
