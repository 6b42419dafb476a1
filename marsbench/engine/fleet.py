"""Several engines behind one front door, as one engine core in virtual time.

Each replica has its own clock and is run only as far as nothing that happens elsewhere can concern
it: it says up to when it is quiet (``ReplicaCore.quiet_until_ps``), and a heap has the one that is
not quiet for longest. What it reports beyond the present is kept until the others have come so far,
so that events are told in order of time, whichever replica they come from. Nothing is done for
all replicas at each step.

Routing belongs to the policy, order and memory to the engines; sessions, arrivals and tools stay in
``Replay``. A session whose turn goes to another replica than the one before leaves its KV behind,
unpinned, until it is evicted. A replica that dies does so between two steps: its turns begin again
elsewhere, after the tokens they had were lost.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from marsbench.admission.base import SystemView
from marsbench.core import to_s
from marsbench.engine.agenda import FOREVER
from marsbench.engine.base import CoreStats, LostTurn, ReplicaCore, Request, StepTrace
from marsbench.engine.inside import InsideStreams
from marsbench.engine.life import Life, SessionState
from marsbench.engine.plan import CellPlan, FleetPlan, Progress, ReplicaChange
from marsbench.engine.replay import Replay
from marsbench.engine.replica import CombinedView, Replica, Reports
from marsbench.engine.telemetry import Sample
from marsbench.errors import EngineError, PolicyError
from marsbench.events import Kind
from marsbench.tools.base import ToolModel

CoreFactory = Callable[..., Any]


@dataclass(slots=True)
class Retried:
    """A turn whose replica died: what was told of it, and done for it, before."""

    scheduled: bool
    cached: int
    first_token: bool
    prefilled: int
    recomputed: int


class Fleet:
    """Replicas as one ``engine.base.EngineCore``."""

    def __init__(
        self, plan: CellPlan, fleet: FleetPlan, life: Life, make_core: CoreFactory
    ) -> None:
        self.life = life
        self.trace: StepTrace | None = None
        self.replicas: list[Replica] = []
        """By number, dead ones included."""
        self.live: list[Replica] = []
        self.now_ps = 0
        self._plan = plan
        self._fleet = fleet
        self._make_core = make_core
        self._router = plan.policies.routing
        self._states: list[SessionState] = []
        self._asked: Request
        self.telemetry: SystemView
        """Of the whole system; there once it is played."""
        self._homes: dict[int, int] = {}
        """Where each unfinished session's last turn went."""
        self._elsewhere: dict[int, dict[int, int]] = {}
        """Session -> replicas it has been at, and leading tokens of its context unchanged since."""
        self._due: list[tuple[int, int, int]] = []
        """Heap of (quiet until, number, version); old versions are passed over."""
        self._told: list[tuple[int, int, Callable[[], None]]] = []
        """Heap of what was reported ahead of time."""
        self._order = 0
        self._horizon_ps = 0
        """Reports before this time are in order and are told at once."""
        self._busy = 0
        self._retried: dict[int, Retried] = {}
        self._homeless: list[Request] = []
        """Turns sent while no replica lived."""
        self._inside: InsideStreams | None = None
        if fleet.told:
            self._inside = InsideStreams(fleet.inside)
            if self._inside.anybody:
                life.listeners.append(self._inside.on_event)
        self.view = CombinedView(self)
        for _ in range(fleet.num_replicas):
            self._add()

    def replay(self, tools: ToolModel, progress: Progress | None) -> Replay:
        """Make the replay that plays the cell's sessions against these replicas, planned changes
        included.
        """
        replay = Replay(self._plan, self.life, self, tools, progress, replicas=self)
        self._states = replay.states
        self.telemetry = replay.view
        for replica in self.replicas:
            self._up(replica, 0)
        for change in self._fleet.changes:
            replay.plan(change.at_ps, partial(self._change, change))
        return replay

    # --- EngineCore ------------------------------------------------------------------------

    @property
    def stats(self) -> CoreStats:
        """Of all replicas, dead ones included."""
        found = CoreStats()
        for replica in self.replicas:
            stats = replica.core.stats
            found.steps += stats.steps
            found.busy_ps += stats.busy_ps
            found.preemptions += stats.preemptions
            found.evicted_blocks += stats.evicted_blocks
            found.referenced_block_ps += stats.referenced_block_ps
        return found

    def fits(self, prompt_tokens: int, output_tokens: int) -> bool:
        """Whether a turn of this size can ever run. Replicas are alike, so one of them answers for
        all.
        """
        return self._plan.flags.fits(prompt_tokens, output_tokens)

    def idle(self) -> bool:
        """Whether nothing waits or runs at any replica, and no event of theirs is still to be told."""
        return not (self._busy or self._told or self._homeless)

    def cached_blocks(self) -> int:
        """Return how many blocks of the living replicas are cached and unreferenced."""
        return sum(replica.core.cached_blocks() for replica in self.live)

    def check_integrity(self) -> None:
        """Assert the books of every living replica, and that no turn is left over in the fleet's
        own.
        """
        assert not self._told, "something was never told"
        for replica in self.live:
            replica.core.check_integrity()
            assert not replica.in_flight, f"replica {replica.index} still has turns"

    def session_ended(self, session: int) -> None:
        """Drop what its last replica keeps for it."""
        home = self._homes.pop(session, None)
        self._elsewhere.pop(session, None)
        if home is not None:
            replica = self.replicas[home]
            replica.bound.pop(session, None)
            if replica.alive:
                self.synchronise(replica)
                replica.core.session_ended(session)
                self._settle(replica)

    def submit(self, request: Request) -> None:
        """Route a turn and put it into the queue of the replica it was routed to."""
        at_ps = request.ready_ps
        self.now_ps = max(self.now_ps, at_ps)
        if not self.live:
            self._homeless.append(request)
            return
        session = request.session
        state = self._states[session]
        self._asked = request
        position = self._router.route(state, self.live, to_s(self.now_ps))
        if not 0 <= position < len(self.live):
            raise PolicyError(
                f"{type(self._router).__name__}.route: {position}, but there are "
                f"{len(self.live)} replicas"
            )
        replica = self.live[position]
        previous = self._homes.get(session, -1)
        if previous not in (-1, replica.index):
            self._leave(self.replicas[previous], session)
        self._homes[session] = replica.index
        replica.bound[session] = state
        self._note_context(request, replica)
        self.life.routed(state, self.now_ps, replica.index, previous)
        self.synchronise(replica)
        new_tokens = request.prompt_tokens - replica.core.cached_tokens(request)
        replica.sent(request, new_tokens)
        replica.clock_ps = max(replica.clock_ps, self.now_ps)
        replica.core.submit(request)
        self._settle(replica)

    def advance(self, now_ps: int, limit_ps: int) -> int:
        """Run whoever is not quiet, up to a finished turn or the limit."""
        self.now_ps = max(self.now_ps, now_ps)
        told = self._told
        while True:
            next_ps = self._next_due_ps()
            if told and told[0][0] <= min(next_ps, limit_ps):
                self.now_ps = max(self.now_ps, told[0][0])
                self._tell(self.now_ps)
                if self.life.finished:
                    return self.now_ps
                continue
            if next_ps >= limit_ps:
                if limit_ps < FOREVER:
                    self.now_ps = max(self.now_ps, limit_ps)
                return limit_ps
            self.now_ps = max(self.now_ps, next_ps)
            replica = self.replicas[heapq.heappop(self._due)[1]]
            until_ps = min(limit_ps, self._next_due_ps(), told[0][0] if told else FOREVER)
            self._run(replica, until_ps)
            if self.life.finished:
                self.now_ps = max(self.now_ps, self.life.finished[-1][1])
                return self.now_ps

    # --- Replicas (``engine.telemetry``) -----------------------------------------------------

    @property
    def views(self) -> list[Replica]:
        """Those that live."""
        return self.live

    def samples(self) -> list[Sample]:
        """Return a REPLICA_STATS sample of each living replica."""
        return [(Kind.REPLICA_STATS, replica.sample()) for replica in self.live]

    # --- time ------------------------------------------------------------------------------

    def synchronise(self, replica: Replica) -> None:
        """Run a replica's steps that begin before now."""
        if replica.busy and replica.clock_ps < self.now_ps:
            self._run(replica, self.now_ps)

    def synchronise_all(self) -> None:
        """Bring every replica up to now, for whoever asks for the sum over all of them."""
        for replica in self.live:
            self.synchronise(replica)

    def _run(self, replica: Replica, until_ps: int) -> None:
        core = replica.core
        self._horizon_ps = until_ps
        replica.clock_ps = core.advance(replica.clock_ps, max(until_ps, replica.clock_ps + 1))
        while replica.clock_ps < until_ps and not core.idle() and not self.life.finished:
            replica.clock_ps = core.advance(replica.clock_ps, until_ps)
        self._horizon_ps = 0
        self._settle(replica)

    def _settle(self, replica: Replica) -> None:
        """Something changed at a replica: when is it to be run next?"""
        replica.version += 1
        busy = replica.alive and not replica.core.idle()
        self._busy += busy - replica.busy
        replica.busy = busy
        if busy:
            due_ps = replica.core.quiet_until_ps(replica.clock_ps)
            heapq.heappush(self._due, (due_ps, replica.index, replica.version))

    def _next_due_ps(self) -> int:
        due = self._due
        while due and due[0][2] != self.replicas[due[0][1]].version:
            heapq.heappop(due)
        return due[0][0] if due else FOREVER

    @property
    def told_from_ps(self) -> int:
        """The earliest time that something can still be told of: while a replica runs, any of its."""
        return 0 if self._horizon_ps else self.now_ps

    def report(self, at_ps: int, tell: Callable[[], None]) -> None:
        """Tell something now if nothing elsewhere can come before it, else in its turn."""
        if at_ps < self._horizon_ps:
            tell()
            return
        heapq.heappush(self._told, (at_ps, self._order, tell))
        self._order += 1

    def _tell(self, until_ps: int) -> None:
        told = self._told
        while told and told[0][0] <= until_ps:
            heapq.heappop(told)[2]()

    # --- sessions --------------------------------------------------------------------------

    def _leave(self, replica: Replica, session: int) -> None:
        """The session's next turn is elsewhere."""
        replica.bound.pop(session, None)
        if replica.alive:
            self.synchronise(replica)
            replica.core.session_moved(session)
            self._settle(replica)

    def _note_context(self, request: Request, replica: Replica) -> None:
        """How much of the session's context its new replica can still have from an earlier visit."""
        been = self._elsewhere.setdefault(request.session, {})
        for number, tokens in been.items():
            if tokens > request.reused_tokens:
                been[number] = request.reused_tokens
        request.here_tokens = min(been.get(replica.index, FOREVER), request.reused_tokens)
        been[replica.index] = FOREVER

    def here_tokens(self, session: int, replica: Replica) -> int | None:
        """Return how many tokens a turn that is not sent yet could find of its session at a
        replica; None if the session never was there.
        """
        return self._elsewhere.get(session, {}).get(replica.index)

    def cached_tokens(self, session: int, replica: Replica) -> int:
        """Return the prefix hit, tokens, that the turn being routed would have at a replica."""
        request = self._asked
        assert request.session == session, "only the turn that is routed can be asked about"
        kept = self.here_tokens(session, replica)
        if kept is None and request.prefix_id not in replica.prefixes:
            return 0
        self.synchronise(replica)
        shared = request.prefix_tokens if request.prefix_id >= 0 else 0
        request.here_tokens = min(shared if kept is None else kept, request.reused_tokens)
        return replica.core.cached_tokens(request)

    # --- what replicas report ----------------------------------------------------------------

    def scheduled_first(self, request: Request, at_ps: int, cached: int, uncached: int) -> None:
        """Pass on that a turn runs: for the first time, unless it ran before on a replica that
        died.
        """
        before = self._retried.get(request.session)
        if before is not None and before.scheduled:
            self.life.on_resumed(request, at_ps, cached, uncached)
        else:
            self.life.on_scheduled_first(request, at_ps, cached, uncached)

    def first_token(self, replica: Replica, request: Request, at_ps: int) -> None:
        """Pass on a turn's first token, once for each turn, however often a replica dies under it."""
        replica.began(request)
        before = self._retried.get(request.session)
        if before is None or not before.first_token:
            self.life.on_first_token(request, at_ps)

    def finished(
        self,
        replica: Replica,
        request: Request,
        at_ps: int,
        prefilled: int,
        recomputed: int,
        cached: int,
    ) -> None:
        """Pass on that a turn is done. What a dead replica computed for it counts as well."""
        replica.answered(request)
        before = self._retried.pop(request.session, None)
        if before is not None:
            prefilled += before.prefilled
            recomputed += before.recomputed + max(before.prefilled - before.recomputed, 0)
            cached = before.cached if before.scheduled else cached
        self.life.on_finished(
            request, at_ps, prefilled=prefilled, recomputed=recomputed, cached=cached
        )

    # --- replicas come and go ----------------------------------------------------------------

    def _add(self) -> Replica:
        index = len(self.replicas)
        replica = Replica(self, index)
        assert self._plan.cost is not None
        core = self._make_core(
            self._plan.flags, self._plan.cost, self._fleet.inside[index], Reports(self, replica)
        )
        if not isinstance(core, ReplicaCore):
            raise EngineError(
                f"{type(core).__name__} cannot be one of several replicas: use --replicas 1, or engine "
                "sim or vllm-core with a system of vLLM's"
            )
        if self.replicas:
            core.joins(self.replicas[0].core)
        replica.join(core)
        self.replicas.append(replica)
        self.live.append(replica)
        return replica

    def _up(self, replica: Replica, at_ps: int) -> None:
        num_blocks = replica.core.view.num_blocks
        self.life.emit(at_ps, Kind.REPLICA_UP, -1, -1, -1, replica.index, num_blocks)

    def _change(self, change: ReplicaChange, at_ps: int) -> int | None:
        """What the experiment planned for now; later if the dying replica is in a step."""
        self.now_ps = max(self.now_ps, at_ps)
        for _ in range(change.added):
            replica = self._add()
            replica.clock_ps = at_ps
            self._up(replica, at_ps)
        waiting, self._homeless = (self._homeless, []) if self.live else ([], self._homeless)
        for request in waiting:
            request.ready_ps = at_ps
            self.submit(request)
        if change.dies < 0 or not self.replicas[change.dies].alive:
            return None
        replica = self.replicas[change.dies]
        self.synchronise(replica)
        if replica.busy and replica.clock_ps > at_ps:
            return replica.clock_ps
        self._kill(replica, at_ps)
        return None

    def _kill(self, replica: Replica, at_ps: int) -> None:
        """The replica is gone, and what it held; its turns go elsewhere."""
        core = replica.core
        self.life.emit(at_ps, Kind.REPLICA_STATS, -1, -1, -1, *replica.sample())
        lost, blocks = core.lost_turns(), core.lost_blocks()
        replica.alive = False
        self.live.remove(replica)
        self._settle(replica)
        self.life.emit(
            at_ps, Kind.REPLICA_DOWN, -1, -1, -1,
            replica.index, len(replica.bound), len(lost), blocks,
        )  # fmt: skip
        running = {turn.request.session for turn in lost}
        for session in replica.bound:
            if session not in running:
                core.session_moved(session)
        self._tell(at_ps)
        for turn in lost:
            self._retry(replica, turn, at_ps)

    def _retry(self, replica: Replica, turn: LostTurn, at_ps: int) -> None:
        request = turn.request
        before = self._retried.get(request.session)
        scheduled = turn.cached >= 0
        if turn.running:
            self.life.on_preempted(request, at_ps, turn.computed, turn.blocks)
        again = Retried(
            scheduled,
            turn.cached,
            request.session not in replica.prefilling,
            turn.prefilled,
            turn.recomputed,
        )
        if before is not None:
            again.scheduled |= before.scheduled
            again.cached = before.cached if before.scheduled else again.cached
            again.first_token |= before.first_token
            again.prefilled += before.prefilled
            again.recomputed += before.recomputed
        self._retried[request.session] = again
        request.ready_ps = at_ps
        self.submit(request)
