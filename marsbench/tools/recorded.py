"""Tool cores that never run out: every call takes its recorded wall time."""

from __future__ import annotations

from heapq import heappop, heappush

from marsbench.tools.base import MILLI, CallOutcome, ToolDemand


class Recorded:
    """Uncontended tool calls, as every replayer with constant gaps has them."""

    def __init__(self, cores: int = 0) -> None:
        """``cores`` is taken for one signature with other models and changes nothing."""
        self._queue: list[tuple[int, int, int]] = []
        self._calls: dict[int, tuple[int, ToolDemand]] = {}
        self._outcomes: dict[int, CallOutcome] = {}
        self._started = 0
        self._done_core_ps = 0

    def start(self, handle: int, demand: ToolDemand, now_ps: int) -> None:
        assert handle not in self._calls, f"tool call {handle} runs already"
        self._calls[handle] = (now_ps, demand)
        heappush(self._queue, (now_ps + demand.alone_ps(), self._started, handle))
        self._started += 1

    def next_completion_ps(self) -> int | None:
        return self._queue[0][0] if self._queue else None

    def pop_completed(self, now_ps: int) -> list[int]:
        self._outcomes = {}
        handles: list[int] = []
        while self._queue and self._queue[0][0] <= now_ps:
            at_ps, _, handle = heappop(self._queue)
            start_ps, demand = self._calls.pop(handle)
            cpu_ps = _used_ps(demand, at_ps - start_ps)
            self._done_core_ps += cpu_ps
            full_ps = -(-demand.cpu_ps * MILLI // demand.cores_milli) + demand.io_ps
            self._outcomes[handle] = CallOutcome(at_ps, cpu_ps, full_ps > at_ps - start_ps)
            handles.append(handle)
        return handles

    def outcome(self, handle: int) -> CallOutcome:
        return self._outcomes[handle]

    @property
    def running(self) -> int:
        return len(self._calls)

    def busy_core_ps(self, now_ps: int) -> int:
        live = sum(
            _used_ps(demand, min(now_ps - start_ps, demand.alone_ps()))
            for start_ps, demand in self._calls.values()
        )
        return self._done_core_ps + live


def _used_ps(demand: ToolDemand, elapsed_ps: int) -> int:
    return min(demand.cpu_ps, elapsed_ps * demand.cores_milli // MILLI)
