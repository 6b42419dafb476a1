"""Tools on the wall clock: those that really run, as a tool model; and models, whose time cannot go back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from marsbench.engine.live.clock import Clock
from marsbench.tools.base import CallOutcome, ToolDemand, ToolModel
from marsbench.tools.executor import ToolExecutor


class RunningTools:
    """A ``tools.base.ToolModel`` over a ``ToolExecutor``: calls end when they end.

    ``next_completion_ps`` knows only calls that have ended; ``wake`` is called when one does.
    """

    def __init__(self, executor: ToolExecutor, clock: Clock, wake: Callable[[], None]) -> None:
        self._executor = executor
        self._clock = clock
        self._wake = wake
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._ended: list[tuple[int, CallOutcome]] = []
        self._outcomes: dict[int, CallOutcome] = {}
        self._busy_core_ps = 0
        self.broken: BaseException | None = None
        """What made a call fail in a way that is not the tool's own; the run stops with it."""

    def start(self, handle: int, demand: ToolDemand, now_ps: int) -> None:
        """Begin a call now."""
        assert handle not in self._tasks, f"tool call {handle} runs already"
        self._tasks[handle] = asyncio.create_task(self._run(handle, demand))
        self._tasks[handle].add_done_callback(self._check)

    async def _run(self, handle: int, demand: ToolDemand) -> None:
        execution = await self._executor.run(demand)
        outcome = CallOutcome(self._clock.now_ps(), execution.cpu_ps, execution.timed_out)
        self._busy_core_ps += execution.cpu_ps
        self._ended.append((handle, outcome))
        self._wake()

    def _check(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self.broken = task.exception()
            self._wake()

    def next_completion_ps(self) -> int | None:
        """Return when the first call ended that has not been popped, or None."""
        return self._ended[0][1].at_ps if self._ended else None

    def pop_completed(self, now_ps: int) -> list[int]:
        """Return the handles of the calls that have ended up to now, once each."""
        due = [entry for entry in self._ended if entry[1].at_ps <= now_ps]
        self._ended = [entry for entry in self._ended if entry[1].at_ps > now_ps]
        self._outcomes = dict(due)
        for handle in self._outcomes:
            del self._tasks[handle]
        return list(self._outcomes)

    def outcome(self, handle: int) -> CallOutcome:
        """Return how a call of the latest ``pop_completed`` ended."""
        return self._outcomes[handle]

    @property
    def running(self) -> int:
        """Number of calls that were started and have not been popped."""
        return len(self._tasks)

    def busy_core_ps(self, now_ps: int) -> int:
        """Return the CPU time of the calls that have ended, core-picoseconds. What running calls
        use is counted when they end.
        """
        return self._busy_core_ps

    async def cancel(self) -> None:
        """Break off the calls that still run."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class ModelledTools:
    """A tool model on the wall clock, where events are handled late and at the times they were due.

    The model may have gone past such a time already, because a call started since: it is then asked
    no more, and calls that ended are given out when their own time is handled.
    """

    def __init__(self, model: ToolModel) -> None:
        self._model = model
        self._latest_ps = 0
        self._ended: list[tuple[int, int, CallOutcome]] = []
        self._outcomes: dict[int, CallOutcome] = {}

    def start(self, handle: int, demand: ToolDemand, now_ps: int) -> None:
        """Begin a call now."""
        self._model.start(handle, demand, self._forward(now_ps))

    def next_completion_ps(self) -> int | None:
        """Return when the first call ends that has not been popped, or None."""
        ends = [at_ps for at_ps, _, _ in self._ended]
        if (following := self._model.next_completion_ps()) is not None:
            ends.append(following)
        return min(ends, default=None)

    def pop_completed(self, now_ps: int) -> list[int]:
        """Return the handles of the calls that have ended up to now, once each."""
        for handle in self._model.pop_completed(self._forward(now_ps)):
            outcome = self._model.outcome(handle)
            self._ended.append((outcome.at_ps, handle, outcome))
        self._outcomes = {call: ended for at, call, ended in sorted(self._ended) if at <= now_ps}
        self._ended = [entry for entry in self._ended if entry[0] > now_ps]
        return list(self._outcomes)

    def outcome(self, handle: int) -> CallOutcome:
        """Return how a call of the latest ``pop_completed`` ended."""
        return self._outcomes[handle]

    @property
    def running(self) -> int:
        """Number of calls that were started and have not been popped."""
        return self._model.running + len(self._ended)

    def busy_core_ps(self, now_ps: int) -> int:
        """Return the core time used up to now, core-picoseconds."""
        return self._model.busy_core_ps(self._forward(now_ps))

    def _forward(self, now_ps: int) -> int:
        self._latest_ps = max(self._latest_ps, now_ps)
        return self._latest_ps
