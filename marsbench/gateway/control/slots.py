"""Tool slots: an agent harness asks before it runs a tool, so that a policy can hold calls back.

A slot is a lease: it ends when released, when its time is up, or when the client that waits for it
goes away. The calls and times given here replace those inferred from gaps between turns.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from marsbench.admission.base import Niceness, ToolDispatchPolicy
from marsbench.core import Phase, to_ps, to_s
from marsbench.engine.life import CallState
from marsbench.engine.slots import ToolQueue
from marsbench.gateway.control.plane import Plane
from marsbench.gateway.control.sessions import LiveSession, OpenCall
from marsbench.gateway.problems import ApiProblem


@dataclass(slots=True)
class Lease:
    """A tool call that waits for a slot or holds one (``marsbench.admission.base.ToolCallView``)."""

    owner: LiveSession
    call: OpenCall
    state: CallState
    future: asyncio.Future[None]
    lease_id: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    started_ps: int = -1
    until_ps: int = 0
    niceness: Niceness = field(default_factory=Niceness)
    """What the harness should run the call at."""

    @property
    def session(self) -> int:
        """Session index."""
        return self.state.session

    @property
    def turn_index(self) -> int:
        """Turn that made the call."""
        return self.state.turn_index

    @property
    def name(self) -> str:
        """Tool name."""
        return self.call.name

    @property
    def tool_class(self) -> str:
        """Tool class."""
        return self.call.tool_class

    @property
    def queued_ps(self) -> int:
        """When it was enqueued, picoseconds since the gateway started."""
        return self.state.queued_ps

    @property
    def queued_s(self) -> float:
        """When it was enqueued, seconds since the gateway started."""
        return self.state.queued_s


class ToolSlots:
    """The tool queue of a gateway and the leases it has given."""

    def __init__(self, policy: ToolDispatchPolicy, max_lease_s: float) -> None:
        self.held: dict[str, Lease] = {}
        self.expired = 0
        self.waited: list[Callable[[LiveSession, float], None]] = []
        """Told how long each call waited for its slot, seconds."""
        self._max_lease_s = max_lease_s
        self._queue: ToolQueue[Lease] = ToolQueue(policy, self._start)
        self._control: Plane | None = None

    def attach(self, control: Plane) -> None:
        """Set the control plane whose sessions the calls belong to."""
        self._control = control
        control.ending.append(self._session_ends)

    @property
    def running(self) -> int:
        """Calls that hold a slot, and calls that are only thought to run."""
        return len(self.held) + (self._plane.guesses.running if self._control else 0)

    @property
    def queued(self) -> int:
        """Calls that wait for a slot."""
        return len(self._queue.waiting)

    async def acquire(
        self, session: LiveSession, name: str, tool_class: str, lease_s: float | None
    ) -> Lease:
        """Wait for a slot. Cancelling gives up the place in the queue."""
        plane = self._plane
        if session.phase == Phase.DONE:
            raise _over()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        call = plane.guesses.claim(session, name, tool_class)
        state = plane.bus.call(session.state, call.index, call.name, call.tool_class)
        lease = Lease(session, call, state, future)
        session.leases += 1
        plane.bus.life.tool_queued(state, plane.bus.clock.now_ps())
        self._queue.waiting.append(lease)
        try:
            self.dispatch()
            await future
        except BaseException:
            self._abandon(lease)
            raise
        lease.until_ps = plane.bus.clock.now_ps() + self._lease_ps(lease_s)
        return lease

    def renew(self, lease_id: str, lease_s: float | None) -> Lease:
        """Give a lease more time from now."""
        lease = self._held(lease_id)
        lease.until_ps = self._plane.bus.clock.now_ps() + self._lease_ps(lease_s)
        return lease

    def release(self, lease_id: str, *, error: bool = False, cpu_s: float = 0.0) -> Lease:
        """End a call and give its slot back; ApiProblem (404) if the lease is not held (any
        more).
        """
        lease = self._held(lease_id)
        self._finish(lease, error=error, cpu_s=cpu_s)
        return lease

    def expire(self) -> None:
        """Take back slots whose time is up."""
        now_ps = self._plane.bus.clock.now_ps()
        for lease in [held for held in self.held.values() if held.until_ps <= now_ps]:
            self.expired += 1
            self._finish(lease, error=True, cpu_s=0.0)
        self.dispatch()

    def dispatch(self) -> None:
        """Start queued calls while the policy has slots for them."""
        plane = self._plane
        self._queue.dispatch(plane.fleet, plane.bus.clock.now_ps(), lambda: len(self.held))

    def _start(self, lease: Lease, at_ps: int, nice: int, nice_after_ps: int) -> None:
        """The call has its slot."""
        lease.niceness = Niceness(nice, to_s(nice_after_ps))
        lease.started_ps = at_ps
        lease.until_ps = at_ps + self._lease_ps(None)
        self.held[lease.lease_id] = lease
        self._plane.bus.life.tool_started(lease.state, at_ps, nice, nice_after_ps)
        for told in self.waited:
            told(lease.owner, to_s(at_ps - lease.queued_ps))
        if not lease.future.done():
            lease.future.set_result(None)

    def _session_ends(self, session: LiveSession) -> None:
        """Its calls end with it: held slots are free, waiting ones get none."""
        for lease in [queued for queued in self._queue.waiting if queued.owner is session]:
            self._abandon(lease)
            if not lease.future.done():
                lease.future.set_exception(_over())
        for lease in [held for held in self.held.values() if held.owner is session]:
            self._finish(lease, error=False, cpu_s=0.0)

    @property
    def _plane(self) -> Plane:
        assert self._control is not None, "attach() comes first"
        return self._control

    def _abandon(self, lease: Lease) -> None:
        if lease in self._queue.waiting:
            self._queue.waiting.remove(lease)
            lease.call.done = True
            self._gone(lease)
        elif lease.lease_id in self.held:
            self._finish(lease, error=True, cpu_s=0.0)

    def _finish(self, lease: Lease, *, error: bool, cpu_s: float) -> None:
        del self.held[lease.lease_id]
        lease.call.done = True
        bus = self._plane.bus
        bus.life.tool_ended(lease.state, bus.clock.now_ps(), error=error, cpu_ps=to_ps(cpu_s))
        self._gone(lease)
        self.dispatch()

    def _gone(self, lease: Lease) -> None:
        lease.owner.leases -= 1
        lease.owner.touched_ps = self._plane.bus.clock.now_ps()

    def _held(self, lease_id: str) -> Lease:
        lease = self.held.get(lease_id)
        if lease is None:
            raise ApiProblem(404, "lease: not held (released, or its time was up)", code="no_lease")
        return lease

    def _lease_ps(self, lease_s: float | None) -> int:
        return to_ps(min(lease_s or self._max_lease_s, self._max_lease_s))


def _over() -> ApiProblem:
    return ApiProblem(409, "the session has ended", code="session_ended")
