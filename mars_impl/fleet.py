"""MARS before several replicas: one control plane over all, a scheduler and retention in each.

Placement at admission, re-placement at turn boundaries and the sharing of what is learnt are ours; the
paper (arXiv:2604.26963) has one engine. Each replica has its own packing (packing.py), so a session
has a place in one replica's memory:

- a new session goes where most memory is left by those that have a place there, and only if its
  working set fits; the order of entry, the window of tool pressure, tool slots and niceness are one
  for all replicas;
- a sub-agent stays with its root, whose prefix it shares;
- a session that has lost its place waits at the gate for room in its replica. Once it has waited for
  as long as computing its context elsewhere would take, it is placed anew if it fits there: whoever
  rents for the price of buying pays at most twice what foresight would (ski rental);
- sessions of a replica that died are placed like new ones, those with a turn in flight at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mars_impl.estimate import reload_s
from mars_impl.packing import Memory
from mars_impl.scheduler import Mars
from mars_impl.stream import LEAST_SPARE, SessionInfo
from marsbench.admission.base import Niceness, SessionView, SystemView, ToolCallView
from marsbench.core import PolicyContext
from marsbench.events import Event, Kind
from marsbench.routing.base import RoutableReplica
from marsbench.system import FleetPolicies, Policies


class MarsFleet:
    """Admission, tool dispatch and routing of MARS before several replicas."""

    gates_continuations = True

    def __init__(self, context: PolicyContext, num_replicas: int) -> None:
        """``num_replicas``: all that will ever be; ``context`` is that of each."""
        self.whole = Mars(context, admits=True)
        """Knows every session; those without a replica are its alone."""
        self.replicas = [Mars(context, admits=True) for _ in range(num_replicas)]
        for mars in self.replicas:
            mars.state.learns_with(self.whole.state)
        self.params = self.whole.params
        self.tick_s: float | None = self.params.tick_s
        self._context = context
        self._homes: dict[int, int] = {}
        self._live: list[int] = []
        self._memory: dict[int, Memory] = {}
        """Of each living replica, as of when it was last looked at."""
        self._changed: set[int] = set()
        """Replicas of which something was heard since."""
        self._looked_s = -math.inf
        """When all were looked at."""
        self._queued: dict[tuple[int, int, int], float] = {}

    # --- the stream ------------------------------------------------------------------------

    def on_event(self, event: Event) -> None:
        """Each session's events go to its replica's state, and to that alone."""
        kind, session = event.kind, event.session
        if session < 0:
            self._told_of_all(event)
            return
        if kind == Kind.SESSION_ARRIVE and event.args[1] in self._homes:
            self._homes[session] = self._homes[event.args[1]]
        home = self._homes.get(session)
        state = self.whole.state if home is None else self.replicas[home].state
        state.on_event(event)
        if home is None:
            return
        self._changed.add(home)
        if kind == Kind.SESSION_ARRIVE:
            self.whole.state.sessions[session] = state.sessions[session]
        elif kind == Kind.SESSION_END:
            del self._homes[session]
            self.whole.state.sessions.pop(session, None)
        elif kind == Kind.TOOL_ENQUEUED:
            self._queued[session, event.turn, event.call] = event.time_s
        elif kind == Kind.TOOL_START:
            key = (session, event.turn, event.call)
            self.whole.state.waited_for_slot(event.time_s - self._queued.pop(key, event.time_s))

    def _told_of_all(self, event: Event) -> None:
        if event.kind == Kind.REPLICA_UP:
            replica = event.get("replica")
            self._live.append(replica)
            self._look(replica, event.time_s)
        elif event.kind == Kind.REPLICA_DOWN:
            self._died(event.get("replica"))
        else:
            self.whole.state.on_event(event)

    def _died(self, replica: int) -> None:
        """Its sessions have no replica, and no place, any more."""
        self._live.remove(replica)
        del self._memory[replica]
        self._changed.discard(replica)
        state = self.replicas[replica].state
        for session in list(state.sessions):
            info = state.release(session)
            info.resident = False  # and of no replica's residents
            self._homes.pop(session, None)

    # --- admission -------------------------------------------------------------------------

    def admit(
        self, pending: Sequence[SessionView], view: SystemView, now_s: float
    ) -> Sequence[SessionView]:
        """Admit continuations that have a place or get one, then new sessions where they fit."""
        if not self.params.control_plane:
            return pending
        control = self.whole.control
        tops = sum(self.replicas[replica].state.num_admitted for replica in self._live)
        control.adapt(view, now_s, tops)
        flip = bool(self.params.longest_first) and control.cpu.on
        waiting: dict[int, list[SessionView]] = {}
        new: list[SessionView] = []
        for turn in pending:
            home = self._homes.get(turn.session)
            if home is None:
                new.append(turn)
            else:
                waiting.setdefault(home, []).append(turn)
        full = now_s - self._looked_s >= self.params.tick_s
        if full:
            self._looked_s = now_s
        chosen: list[SessionView] = []
        for replica in self._live if full else sorted(self._changed):
            chosen += self._continue(replica, waiting.get(replica, ()), now_s, flip=flip)
        self._changed.clear()
        if new:
            chosen += self._enter(new, now_s, places=control.limit() - tops, flip=flip)
        return chosen

    def _look(self, replica: int, now_s: float) -> Memory:
        """Who keeps a place at a replica, and what is left of its memory."""
        packing = self.replicas[replica].control.packing
        memory = self._memory[replica] = packing.suspend(self._context.num_blocks, now_s)
        return memory

    def _continue(
        self, replica: int, turns: Sequence[SessionView], now_s: float, *, flip: bool
    ) -> list[SessionView]:
        """The turns of a replica's sessions that go on, there or, if that pays, elsewhere."""
        memory = self._look(replica, now_s)
        if not turns:
            return []
        mars = self.replicas[replica]
        sessions = mars.state.sessions
        chosen: list[SessionView] = []
        others: list[SessionView] = []
        for turn in turns:
            (chosen if sessions[turn.session].top.resident else others).append(turn)
        chosen.sort(key=lambda turn: (sessions[turn.session].rank, turn.session))
        entered = mars.control.packing.enter(others, memory, now_s, places=math.inf, flip=flip)
        chosen += entered
        inside = {turn.session for turn in entered}
        for turn in others:
            if turn.session not in inside and self._moves(turn, replica, now_s):
                chosen.append(turn)
        return chosen

    def _moves(self, turn: SessionView, replica: int, now_s: float) -> bool:
        """Place a session anew that has waited for as long as the move costs, if it fits elsewhere."""
        info = self.replicas[replica].state.sessions[turn.session]
        if info.top is not info or info.children:
            return False
        roomiest = self._roomiest()
        if roomiest in (None, replica):
            return False
        assert roomiest is not None
        mars, memory = self.replicas[roomiest], self._memory[roomiest]
        need = mars.control.packing.need(info, self.params.entry_turns)
        spare = max(mars.state.spare, LEAST_SPARE)
        cost_s = reload_s(info.private, self._context) / spare
        if now_s - info.since_s < cost_s or not memory.fits(need):
            return False
        self._place(info, roomiest, need)
        return True

    def _roomiest(self) -> int | None:
        """The living replica with the most memory left."""
        if not self._live:
            return None
        return max(self._live, key=lambda replica: (room(self._memory[replica]), -replica))

    def _place(self, info: SessionInfo, replica: int, need: float) -> None:
        """The session has a place at a replica."""
        home = self._homes.get(info.session)
        if home is not None:
            self.replicas[home].state.release(info.session)
        state = self.replicas[replica].state
        state.adopt(info)
        state.seat(info)
        self._homes[info.session] = replica
        self._memory[replica].resident += need

    def _enter(
        self, new: Sequence[SessionView], now_s: float, *, places: float, flip: bool
    ) -> list[SessionView]:
        """Sessions without a replica that fit where most memory is left, soonest done first."""
        chosen: list[SessionView] = []
        packing, limited = self.whole.control.packing, bool(self.params.kv_signal)
        sessions = self.whole.state.sessions
        replica = self._roomiest()
        if replica is None or (limited and not self._any_fits(new, replica)):
            return chosen
        for candidate in packing.by_time_left(new, now_s, flip=flip):
            info = candidate.info
            memory = self._memory[replica]
            alone = not memory.resident
            fresh = math.isinf(info.rank)
            if fresh and places < 1 and not alone:
                continue
            need = packing.need(info, self.params.entry_turns)
            if limited and not alone and not memory.fits(need):
                if candidate.starves:
                    break
                continue
            self._place(sessions[info.session], replica, need)
            chosen.append(candidate.view)
            places -= fresh
            replica = self._roomiest()
            assert replica is not None
        return chosen

    def _any_fits(self, new: Sequence[SessionView], replica: int) -> bool:
        """Whether the roomiest replica could take any of them."""
        memory = self._memory[replica]
        if not memory.resident:
            return True
        sessions, packing = self.whole.state.sessions, self.whole.control.packing
        return any(
            memory.fits(packing.need(sessions[turn.session], self.params.entry_turns))
            for turn in new
        )

    # --- routing ---------------------------------------------------------------------------

    def route(self, turn: SessionView, replicas: Sequence[RoutableReplica], now_s: float) -> int:
        """Return the replica where the session has its place; without one it goes where most memory
        is left.
        """
        home = self._homes.get(turn.session)
        if home is None:
            home = self._roomiest()
            assert home is not None
            info = self.whole.state.sessions[turn.session]
            need = self.whole.control.packing.need(info, self.params.headroom_turns)
            self._place(info, home, need)
        return self._live.index(home)

    # --- tools -----------------------------------------------------------------------------

    def slots(self, view: SystemView, now_s: float) -> int | None:
        """See MarsControlPlane.slots."""
        return self.whole.control.slots(view)

    def next_call(self, queue: Sequence[ToolCallView], view: SystemView, now_s: float) -> int:
        """See MarsControlPlane.next_call."""
        return self.whole.control.next_call(queue, now_s)

    def niceness(self, call: ToolCallView, view: SystemView, now_s: float) -> Niceness:
        """See MarsControlPlane.niceness."""
        return self.whole.control.niceness(call, view)


def room(memory: Memory) -> float:
    """Return how many tokens of KV nobody with a place, and no turn, needs."""
    return memory.capacity - memory.resident - memory.borrowed


def build_fleet(context: PolicyContext, num_replicas: int) -> FleetPolicies:
    """Build one MarsFleet in front of all replicas, with its Mars of each replica inside that."""
    fleet = MarsFleet(context, num_replicas)
    inside = tuple(Policies(scheduling=mars, retention=mars) for mars in fleet.replicas)
    return FleetPolicies(Policies(admission=fleet, tools=fleet, routing=fleet), inside, told=False)
