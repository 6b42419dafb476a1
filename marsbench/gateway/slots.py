"""Tool slots: an agent harness asks before it runs a tool, so that a policy can hold calls back.

A slot is a lease: it ends when released, when its time is up, or when the client that waits for it
goes away. The calls and times given here replace those inferred from gaps between turns.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field

from marsbench.admission.base import Niceness, ToolDispatchPolicy
from marsbench.core import PS_PER_S, to_ps
from marsbench.events import Kind
from marsbench.gateway.control import ControlPlane
from marsbench.gateway.problems import ApiProblem
from marsbench.gateway.sessions import LiveSession, OpenCall


@dataclass(slots=True)
class Lease:
    """A tool call that waits for a slot or holds one (``marsbench.admission.base.ToolCallView``)."""

    owner: LiveSession
    call: OpenCall
    turn_index: int
    queued_ps: int
    future: asyncio.Future[None]
    lease_id: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    started_ps: int = -1
    until_ps: int = 0
    niceness: Niceness = field(default_factory=Niceness)
    """What the harness should run the call at."""

    @property
    def session(self) -> int:
        """Session index."""
        return self.owner.session

    @property
    def name(self) -> str:
        """Tool name."""
        return self.call.name

    @property
    def tool_class(self) -> str:
        """Tool class."""
        return self.call.tool_class

    @property
    def queued_s(self) -> float:
        """When it was enqueued, seconds since the gateway started."""
        return self.queued_ps / PS_PER_S


class ToolSlots:
    """The tool queue of a gateway and the leases it has given."""

    def __init__(self, policy: ToolDispatchPolicy, max_lease_s: float) -> None:
        self.held: dict[str, Lease] = {}
        self.expired = 0
        self._policy = policy
        self._max_lease_s = max_lease_s
        self._queue: list[Lease] = []
        self._control: ControlPlane | None = None

    def attach(self, control: ControlPlane) -> None:
        """The control plane whose sessions the calls belong to."""
        self._control = control
        control.ending.append(self._session_ends)

    @property
    def running(self) -> int:
        """Calls that hold a slot, and calls that are only thought to run."""
        return len(self.held) + (self._plane.inferred_calls if self._control else 0)

    @property
    def queued(self) -> int:
        """Calls that wait for a slot."""
        return len(self._queue)

    async def acquire(
        self, session: LiveSession, name: str, tool_class: str, lease_s: float | None
    ) -> Lease:
        """Wait for a slot. Cancelling gives up the place in the queue."""
        plane = self._plane
        if session.phase == "done":
            raise _over()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        call = self._claim(session, name, tool_class)
        now_ps = plane.bus.clock.now_ps()
        lease = Lease(session, call, session.turn_index, now_ps, future)
        session.leases += 1
        self._emit(Kind.TOOL_ENQUEUED, lease)
        self._queue.append(lease)
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
        """The call is over. ApiProblem (404) if the lease is not held (any more)."""
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
        while self._queue:
            now_s = plane.bus.clock.now_s()
            slots = self._policy.slots(plane.fleet, now_s)
            if slots is not None and len(self.held) >= max(slots, 1):
                return
            lease = self._queue.pop(self._policy.next_call(self._queue, plane.fleet, now_s))
            lease.niceness = self._policy.niceness(lease, plane.fleet, now_s)
            lease.started_ps = plane.bus.clock.now_ps()
            lease.until_ps = lease.started_ps + self._lease_ps(None)
            self.held[lease.lease_id] = lease
            nice, after_s = lease.niceness
            self._emit(Kind.TOOL_START, lease, (nice, to_ps(after_s)))
            if not lease.future.done():
                lease.future.set_result(None)

    def _session_ends(self, session: LiveSession) -> None:
        """Its calls end with it: held slots are free, waiting ones get none."""
        for lease in [queued for queued in self._queue if queued.owner is session]:
            self._abandon(lease)
            if not lease.future.done():
                lease.future.set_exception(_over())
        for lease in [held for held in self.held.values() if held.owner is session]:
            self._finish(lease, error=False, cpu_s=0.0)

    @property
    def _plane(self) -> ControlPlane:
        assert self._control is not None, "attach() comes first"
        return self._control

    def _claim(self, session: LiveSession, name: str, tool_class: str) -> OpenCall:
        """The call of the last reply that this is, or a call nobody has announced."""
        for call in session.open_calls():
            if call.name == name and not call.leased:
                call.leased = True
                call.tool_class = tool_class or call.tool_class
                self._plane.inferred_calls -= 1
                return call
        call = OpenCall(len(session.calls), "", name, tool_class or "shell_other", leased=True)
        session.calls.append(call)
        return call

    def _abandon(self, lease: Lease) -> None:
        if lease in self._queue:
            self._queue.remove(lease)
            lease.call.done = True
            self._gone(lease)
        elif lease.lease_id in self.held:
            self._finish(lease, error=True, cpu_s=0.0)

    def _finish(self, lease: Lease, *, error: bool, cpu_s: float) -> None:
        del self.held[lease.lease_id]
        lease.call.done = True
        self._emit(Kind.TOOL_END, lease, (int(error), to_ps(cpu_s)))
        self._gone(lease)
        self.dispatch()

    def _gone(self, lease: Lease) -> None:
        lease.owner.leases -= 1
        lease.owner.seen_ps = self._plane.bus.clock.now_ps()

    def _held(self, lease_id: str) -> Lease:
        lease = self.held.get(lease_id)
        if lease is None:
            raise ApiProblem(404, "lease: not held (released, or its time was up)", code="no_lease")
        return lease

    def _lease_ps(self, lease_s: float | None) -> int:
        return to_ps(min(lease_s or self._max_lease_s, self._max_lease_s))

    def _emit(self, kind: Kind, lease: Lease, payload: tuple[int, ...] = ()) -> None:
        self._plane.bus.emit(
            kind,
            lease.session,
            lease.turn_index,
            lease.call.index,
            payload,
            session_id=lease.owner.session_id,
            name=lease.call.name,
            tool_class=lease.call.tool_class,
        )


def _over() -> ApiProblem:
    return ApiProblem(409, "the session has ended", code="session_ended")
