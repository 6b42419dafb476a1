"""Tool calls that nobody announced: a reply asked for them, and the next request shows they ended.

Such a call is a guess. Its client may run it, may have lost interest, or may be dead. It therefore
counts as running work only for as long as calls of that client are known to take: the smoothed time
plus four times its mean deviation, as TCP bounds the wait for an acknowledgement (RFC 6298). A call
that is not back by then is overdue: it stays open, but no policy is told that it runs.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable

from marsbench.core import to_ps, to_s
from marsbench.gateway.control.bus import EventBus
from marsbench.gateway.control.sessions import LiveSession, OpenCall
from marsbench.gateway.messages.classify import FINAL_CALLS

START_S = 30.0
"""Bound on the first calls of a client, about which nothing is known."""
LEAST_S = 2.0
"""A bound is never shorter: a harness and a network also take their time."""
MEAN_WEIGHT, DEVIATION_WEIGHT, DEVIATIONS = 1 / 8, 1 / 4, 4
"""RFC 6298's constants."""
MAX_KNOWN = 10_000


class ExpectedReturns:
    """How long tool calls take, learned for each client and tool name."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()
        """(client, tool; "" for all its tools) -> smoothed seconds and their mean deviation."""

    def observe(self, client: str, name: str, took_s: float) -> None:
        """Learn from a call of the client that has come back after so long."""
        for key in ((client, name), (client, "")):
            known = self._known.pop(key, None)
            if known is None:
                self._known[key] = took_s, took_s / 2
            else:
                mean, deviation = known
                deviation += DEVIATION_WEIGHT * (abs(took_s - mean) - deviation)
                self._known[key] = mean + MEAN_WEIGHT * (took_s - mean), deviation
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    def bound_s(self, client: str, name: str) -> float:
        """Return for how many seconds a call of the client may be thought to run."""
        known = self._known.get((client, name)) or self._known.get((client, ""))
        if known is None:
            return START_S
        return max(LEAST_S, known[0] + DEVIATIONS * known[1])


class InferredCalls:
    """The calls that are thought to run, and those that should have been back."""

    def __init__(self, bus: EventBus) -> None:
        self.running = 0
        """Calls thought to run, overdue ones left out."""
        self.overdue = 0
        """Calls that were not back in time, ever."""
        self.returns = ExpectedReturns()
        self._bus = bus
        self._due: list[tuple[int, int, LiveSession, OpenCall]] = []
        self._number = 0

    def start(self, session: LiveSession, calls: Iterable[OpenCall]) -> None:
        """Start the calls that a reply asks for."""
        session.calls = list(calls)
        for call in session.calls:
            now_ps = self._bus.clock.now_ps()
            call.state = self._bus.call(session.state, call.index, call.name, call.tool_class)
            self._bus.life.tool_queued(call.state, now_ps)
            self._bus.life.tool_started(call.state, now_ps, 0, 0)
            if call.name.lower() in FINAL_CALLS:
                continue
            call.counted = True
            self.running += 1
            self._number += 1
            due_ps = now_ps + to_ps(self.returns.bound_s(session.scope, call.name))
            heapq.heappush(self._due, (due_ps, self._number, session, call))

    def back(self, session: LiveSession) -> None:
        """End the session's calls, since its next request has come."""
        for call in list(session.open_calls()):
            if call.state is not None and not call.leased:
                now_ps = self._bus.clock.now_ps()
                self._bus.life.tool_ended(call.state, now_ps, error=False, cpu_ps=0)
                took_s = to_s(now_ps - call.state.queued_ps)
                self.returns.observe(session.scope, call.name, took_s)
        self.forget(session)

    def forget(self, session: LiveSession) -> None:
        """Drop the open calls of a session, without writing down that they ended."""
        for call in session.open_calls():
            self._discount(call)
            call.done = True
        session.calls = []

    def claim(self, session: LiveSession, name: str, tool_class: str) -> OpenCall:
        """Return the call of the last reply that a lease stands for, or a new one that nobody has
        announced.
        """
        for call in session.open_calls():
            if call.name == name and not call.leased:
                self._discount(call)
                call.leased = True
                call.tool_class = tool_class or call.tool_class
                return call
        call = OpenCall(len(session.calls), "", name, tool_class or "shell_other", leased=True)
        session.calls.append(call)
        return call

    def give_up(self, now_ps: int) -> list[LiveSession]:
        """Stop counting calls that should have been back; the sessions of which all are overdue."""
        found: dict[int, LiveSession] = {}
        while self._due and self._due[0][0] <= now_ps:
            session, call = heapq.heappop(self._due)[2:]
            if call.counted:
                self._discount(call)
                self.overdue += 1
                found[session.session] = session
        return [
            session
            for session in found.values()
            if not session.leases and not any(call.counted for call in session.calls)
        ]

    def _discount(self, call: OpenCall) -> None:
        self.running -= call.counted
        call.counted = False
