"""Tool cores shared by processor sharing: tool time stretches when calls compete for cores.

The cores are divided max-min fairly among the calls that compute, by the weight of their
niceness, none getting more than its own parallelism (water-filling). A call computes first,
then waits for its I/O as a plain delay.

Calls of equal parallelism and weight get equal service, so they form one class whose members'
service since the class began is one number ("virtual time" of processor sharing); a call ends a
CPU phase when that number reaches its target. An event costs O(K + log n) for n calls in K classes.
Rates are fixed-point integers, so service adds up exactly however time is cut into pieces, and a
call that is not slowed takes exactly its own time; a rate that is not a fixed-point number is
rounded down by less than 2^-40 of a millicore.
"""

from __future__ import annotations

from bisect import insort
from heapq import heappop, heappush

from marsbench.errors import ConfigError
from marsbench.tools.base import MILLI, WEIGHTS, CallOutcome, ToolDemand

SHIFT = 40
UNIT = MILLI << SHIFT
"""Service units per core-picosecond."""


class Modelled:
    """Processor sharing on ``cores`` tool cores; 0 = unlimited."""

    def __init__(self, cores: int = 0) -> None:
        if cores < 0:
            raise ConfigError(f"tool cores: {cores} is negative; 0 means unlimited")
        self._capacity = (cores * MILLI) << SHIFT
        self._now_ps = 0
        self._classes: dict[tuple[float, int, int], _Class] = {}
        """By (width / weight, width in millicores, weight)."""
        self._keys: list[tuple[float, int, int]] = []
        """Keys of ``_classes``: those that need least for their weight first."""
        self._demand = 0
        """Sum of parallelism of the calls that compute, millicores."""
        self._rate = 0
        """Sum of their rates, service units per picosecond."""
        self._busy = 0
        """Service given so far, service units."""
        self._calls: dict[int, _Call] = {}
        self._io: list[tuple[int, int, _Call]] = []
        self._deadlines: list[tuple[int, int, _Call]] = []
        self._ended: list[tuple[int, int, int, CallOutcome]] = []
        self._outcomes: dict[int, CallOutcome] = {}
        self._started = 0
        self._next_ps: int | None = None

    def start(self, handle: int, demand: ToolDemand, now_ps: int) -> None:
        assert handle not in self._calls, f"tool call {handle} runs already"
        self._advance(now_ps)
        call = _Call(handle, self._started, demand)
        self._started += 1
        self._calls[handle] = call
        if demand.timeout_ps is not None:
            heappush(self._deadlines, (now_ps + demand.timeout_ps, call.order, call))
        if demand.cpu_ps:
            self._join(call)
            self._rebalance()
        else:
            heappush(self._io, (now_ps + demand.io_ps, call.order, call))
        self._plan()

    def next_completion_ps(self) -> int | None:
        return self._ended[0][0] if self._ended else self._next_ps

    def pop_completed(self, now_ps: int) -> list[int]:
        self._advance(now_ps)
        self._outcomes = {}
        handles: list[int] = []
        for _, _, handle, outcome in sorted(self._ended):
            self._outcomes[handle] = outcome
            handles.append(handle)
            del self._calls[handle]
        self._ended = []
        return handles

    def outcome(self, handle: int) -> CallOutcome:
        return self._outcomes[handle]

    @property
    def running(self) -> int:
        return len(self._calls)

    def busy_core_ps(self, now_ps: int) -> int:
        self._advance(now_ps)
        return self._busy // UNIT

    def _advance(self, now_ps: int) -> None:
        """Serve up to now, through every change of rates on the way."""
        assert now_ps >= self._now_ps, f"time goes back from {self._now_ps} to {now_ps} ps"
        while self._next_ps is not None and self._next_ps <= now_ps:
            self._serve(self._next_ps)
            self._handle_due()
            self._plan()
        self._serve(now_ps)

    def _serve(self, until_ps: int) -> None:
        elapsed_ps = until_ps - self._now_ps
        if elapsed_ps and self._rate:
            for group in self._classes.values():
                group.served += group.rate * elapsed_ps
            self._busy += self._rate * elapsed_ps
        self._now_ps = until_ps

    def _handle_due(self) -> None:
        """Everything that is due now: CPU phases, then I/O waits, then timeouts."""
        now_ps = self._now_ps
        changed = False
        for group in list(self._classes.values()):
            while group.queue and group.queue[0][0] <= group.served:
                call = heappop(group.queue)[2]
                if call.group is not group:
                    continue
                changed = True
                self._leave(call)
                if call.rest_ps:
                    self._join(call)
                    continue
                heappush(self._io, (now_ps + call.demand.io_ps, call.order, call))
        while self._io and self._io[0][0] <= now_ps:
            call = heappop(self._io)[2]
            if not call.ended:
                self._end(call, call.demand.cpu_ps, timed_out=False)
        while self._deadlines and self._deadlines[0][0] <= now_ps:
            call = heappop(self._deadlines)[2]
            if call.ended:
                continue
            used_ps = call.demand.cpu_ps
            if call.group is not None:
                used_ps -= call.rest_ps - (call.group.served - call.target) // UNIT
                changed = True
                self._leave(call)
            self._end(call, used_ps, timed_out=True)
        if changed:
            self._rebalance()

    def _end(self, call: _Call, cpu_ps: int, *, timed_out: bool) -> None:
        call.ended = True
        outcome = CallOutcome(self._now_ps, cpu_ps, timed_out)
        heappush(self._ended, (self._now_ps, call.order, call.handle, outcome))

    def _join(self, call: _Call) -> None:
        """Begin the next CPU phase: at niceness 0 while that lasts, then at the call's own."""
        demand = call.demand
        work_ps, nice = call.rest_ps, demand.nice
        if nice and work_ps == demand.cpu_ps and demand.nice_after_ps > 0:
            work_ps, nice = min(work_ps, demand.nice_after_ps), 0
        call.rest_ps -= work_ps
        width, weight = demand.cores_milli, WEIGHTS[nice]
        call.key = key = (width / weight, width, weight)
        group = self._classes.get(key)
        if group is None:
            group = self._classes[key] = _Class()
            insort(self._keys, key)
        group.members += 1
        self._demand += width
        call.group = group
        call.target = group.served + work_ps * UNIT
        heappush(group.queue, (call.target, call.order, call))

    def _leave(self, call: _Call) -> None:
        assert call.group is not None
        call.group.members -= 1
        self._demand -= call.demand.cores_milli
        if call.group.members == 0:
            del self._classes[call.key]
            self._keys.remove(call.key)
        call.group = None

    def _rebalance(self) -> None:
        """Water-filling: those that need least for their weight first, each call the smaller of
        its own width and its share by weight of what is left.
        """
        self._rate = 0
        if not self._capacity or (self._demand << SHIFT) <= self._capacity:
            for (_, width, _), group in self._classes.items():
                group.rate = width << SHIFT
                self._rate += group.rate * group.members
            return
        left = self._capacity
        weights = sum(key[2] * group.members for key, group in self._classes.items())
        for key in self._keys:
            group = self._classes[key]
            _, width, weight = key
            group.rate = min(width << SHIFT, left * weight // weights)
            given = group.rate * group.members
            left -= given
            weights -= weight * group.members
            self._rate += given

    def _plan(self) -> None:
        """Find the next due time, dropping queue heads of calls that have ended."""
        times: list[int] = []
        for group in self._classes.values():
            while group.queue[0][2].group is not group:
                heappop(group.queue)
            times.append(self._now_ps - (group.served - group.queue[0][0]) // group.rate)
        for queue in (self._io, self._deadlines):
            while queue and queue[0][2].ended:
                heappop(queue)
            if queue:
                times.append(queue[0][0])
        self._next_ps = min(times) if times else None


class _Class:
    """Calls of equal parallelism and weight that compute."""

    __slots__ = ("members", "queue", "rate", "served")

    def __init__(self) -> None:
        self.members = 0
        self.rate = 0
        """Of each member, service units per picosecond."""
        self.served = 0
        """Given to each member since the class began, service units."""
        self.queue: list[tuple[int, int, _Call]] = []


class _Call:
    """A call that runs. ``group`` is None outside its CPU phase."""

    __slots__ = ("demand", "ended", "group", "handle", "key", "order", "rest_ps", "target")

    def __init__(self, handle: int, order: int, demand: ToolDemand) -> None:
        self.handle = handle
        self.order = order
        self.demand = demand
        self.group: _Class | None = None
        self.key = (0.0, 0, 0)
        """Of its class."""
        self.rest_ps = demand.cpu_ps
        """CPU work of the phases that have not begun, core-picoseconds."""
        self.target = 0
        """Service of its class at which its CPU work is done, service units."""
        self.ended = False
