"""Runs one cell: sessions arrive, turns go through an engine core, tools run, events are logged.

The driver owns time and the life of sessions and decides nothing: admission, scheduling,
retention and tool dispatch belong to the policies, memory and batching to the core. External
events (arrivals, tool results, ticks) are handled at their own times, in order; the engine sees
them at its next step, as a real one does.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from marsbench.admission.base import FirstReplica, Oversubscribe, Unlimited
from marsbench.core import PS_PER_S, Session, plan_turns, to_ps
from marsbench.engine.base import CoreListener, CoreStats, EngineCore, Request
from marsbench.engine.sessions import CallState, SessionState
from marsbench.errors import EngineError, PolicyError
from marsbench.events import FIELDS, Event, Kind, Status
from marsbench.records import EventLog, pack_row
from marsbench.scheduler.base import EngineOrder, NoRetention
from marsbench.system import Policies
from marsbench.tools.base import ToolAssumptions, ToolModel, demand_of

if TYPE_CHECKING:
    from marsbench.arrival.base import ArrivalPlan

FOREVER = 1 << 62
SAMPLE_PS = 5 * PS_PER_S
"""Least time between two telemetry samples in the log."""
HIT_WINDOW = 64
"""Turns over which the prefix cache hit rate of the telemetry is taken."""
MAX_IDLE_TICKS = 100_000
"""Ticks in a row with nothing running, due or admitted after which a policy is stuck."""
NULL_POLICIES = (EngineOrder, NoRetention, Unlimited, Oversubscribe, FirstReplica)

Timer = tuple[int, int, int, SessionState | None]
"""(time_ps, sequence, what, session)."""
ARRIVE, RESUME, TICK = 0, 1, 2


def run_cell(
    *,
    sessions: Sequence[Session],
    arrivals: ArrivalPlan,
    core_factory: Callable[[CoreListener], EngineCore],
    policies: Policies,
    tools: ToolModel,
    log: EventLog,
    tool_cores: int = 0,
    tool_speed: float = 1.0,
    assumptions: ToolAssumptions | None = None,
    priority: str = "none",
    progress: Callable[[int, int], None] | None = None,
) -> CoreStats:
    """Run a cell to its end and fill ``log``.

    ``progress`` is called with (finished sessions, now in picoseconds) now and then. Raises
    PolicyError if a policy stops the run, EngineError if the core cannot go on.
    """
    driver = Driver(
        sessions=sessions,
        arrivals=arrivals,
        policies=policies,
        tools=tools,
        log=log,
        tool_cores=tool_cores,
        tool_speed=tool_speed,
        assumptions=assumptions or ToolAssumptions(),
        priority=priority,
        progress=progress,
    )
    return driver.run(core_factory(driver))


class Telemetry:
    """Engine and tools as a gateway sees them (``admission.base.SystemView``)."""

    def __init__(self, driver: Driver, core: EngineCore, tool_cores: int) -> None:
        self._driver = driver
        self._core = core
        self.block_size = core.view.block_size
        self.num_blocks = core.view.num_blocks
        self.tool_cores = tool_cores

    @property
    def free_blocks(self) -> int:
        """Unreferenced blocks."""
        return self._core.view.free_blocks

    @property
    def pinned_blocks(self) -> int:
        """Blocks held by retention."""
        return self._core.view.pinned_blocks

    @property
    def num_running(self) -> int:
        """Turns running in the engine."""
        return len(self._core.view.running)

    @property
    def num_waiting(self) -> int:
        """Turns waiting in the engine."""
        return len(self._core.view.waiting)

    @property
    def active(self) -> Sequence[SessionState]:
        """Admitted, unfinished sessions in order of admission."""
        return list(self._driver.active.values())

    @property
    def tools_running(self) -> int:
        """Calls that run."""
        return self._driver.tools.running

    @property
    def tools_queued(self) -> int:
        """Calls that wait for a slot."""
        return len(self._driver.tool_queue)

    @property
    def prefix_cache_hit_rate(self) -> float:
        """Token-weighted, over the last turns scheduled."""
        cached, prompt = self._driver.recent_hits()
        return cached / prompt if prompt else 1.0


class Driver:
    """State of one run; see ``run_cell``. It is the core's listener."""

    def __init__(
        self,
        *,
        sessions: Sequence[Session],
        arrivals: ArrivalPlan,
        policies: Policies,
        tools: ToolModel,
        log: EventLog,
        tool_cores: int,
        tool_speed: float,
        assumptions: ToolAssumptions,
        priority: str,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.tools = tools
        self.log = log
        self._write = log.rows.frombytes
        self.tool_queue: list[CallState] = []
        self.active: dict[int, SessionState] = {}
        self._policies = policies
        self._tool_cores = tool_cores
        self._speed = tool_speed
        self._assumptions = assumptions
        self._priority = priority
        self._progress = progress
        self._states: list[SessionState] = []
        self._children: dict[tuple[int, int], list[SessionState]] = {}
        self._top = [self._register(session, None) for session in sessions]
        for state in list(self._top):
            self._register_children(state)
        log.session_ids = [state.recorded.session_id for state in self._states]
        self._prefixes: dict[str, int] = {}
        self._timers: list[Timer] = []
        self._timer_order = 0
        self._next_closed = 0
        self._start(arrivals)
        self._calls: dict[int, CallState] = {}
        self._handle = 0
        self._pending: list[SessionState] = []
        self._finished: list[tuple[Request, int, int]] = []
        self._hits: deque[tuple[int, int]] = deque(maxlen=HIT_WINDOW)
        self._done = 0
        self._idle_ticks = 0
        self._tick_at = -1
        self._sampled_ps = -SAMPLE_PS
        self._sample_referenced = 0
        self._sample_evicted = 0
        self._gated = type(policies.admission) is not Unlimited
        self._slotted = type(policies.tools) is not Oversubscribe
        self._listeners = _listeners(policies)

    # --- set-up ----------------------------------------------------------------------------

    def _register(self, session: Session, parent: SessionState | None) -> SessionState:
        state = SessionState(len(self._states), session, parent)
        self._states.append(state)
        return state

    def _register_children(self, parent: SessionState) -> None:
        # The session ends with its last turn's last token: what that turn asks for never runs.
        for index, turn in enumerate(parent.recorded.turns[:-1]):
            if turn.children:
                spawned = [self._register(child, parent) for child in turn.children]
                self._children[parent.session, index] = spawned
                for child in spawned:
                    self._register_children(child)

    def _start(self, arrivals: ArrivalPlan) -> None:
        self._closed = arrivals.closed_loop is not None
        if arrivals.closed_loop is not None:
            for _ in range(min(arrivals.closed_loop, len(self._top))):
                self._arrive_next(0)
            return
        assert arrivals.times_ps is not None
        assert len(arrivals.times_ps) == len(self._top), "one arrival time per session"
        for state, at_ps in zip(self._top, arrivals.times_ps, strict=True):
            self._at(at_ps, ARRIVE, state)

    def _arrive_next(self, at_ps: int) -> None:
        if self._next_closed < len(self._top):
            self._at(at_ps, ARRIVE, self._top[self._next_closed])
            self._next_closed += 1

    def _at(self, at_ps: int, what: int, state: SessionState | None) -> None:
        heapq.heappush(self._timers, (at_ps, self._timer_order, what, state))
        self._timer_order += 1

    # --- the loop --------------------------------------------------------------------------

    def run(self, core: EngineCore) -> CoreStats:
        """Run to the end."""
        self._core = core
        self._view = Telemetry(self, core, self._tool_cores)
        now = 0
        while True:
            external = self._next_external()
            if external <= now:
                self._handle_external(external)
                continue
            if self._finished:
                self._handle_finished(now)
                continue
            if now - self._sampled_ps >= SAMPLE_PS:
                self._sample(now)
            if core.idle():
                if external < FOREVER:
                    now = external
                elif self._pending:
                    now = self._wait_for_admission(now)
                else:
                    break
                continue
            after = core.advance(now, external)
            if after >= FOREVER:
                raise EngineError(
                    "the engine has work it can never schedule (a core invariant broke)"
                )
            now = after
        self._sample(now)
        self._end(now)
        return core.stats

    def _next_external(self) -> int:
        timer = self._timers[0][0] if self._timers else FOREVER
        tool = self.tools.next_completion_ps()
        return timer if tool is None or timer <= tool else tool

    def _handle_external(self, at_ps: int) -> None:
        """Everything that happens outside the engine at exactly this time."""
        timers = self._timers
        while timers and timers[0][0] == at_ps:
            _, _, what, state = heapq.heappop(timers)
            if what == ARRIVE:
                assert state is not None
                self._arrive(state, at_ps)
            elif what == RESUME:
                assert state is not None
                self._ready(state, at_ps)
            else:
                self._count_idle_tick(at_ps)
        tool = self.tools.next_completion_ps()
        if tool is not None and tool <= at_ps:
            for handle in self.tools.pop_completed(at_ps):
                self._tool_done(handle, at_ps)
            if self._slotted:
                self._dispatch(at_ps)
        if self._pending:
            self._admit(at_ps)

    def _handle_finished(self, now: int) -> None:
        finished, self._finished = self._finished, []
        for request, at_ps, prefilled in finished:
            self._turn_done(self._states[request.session], at_ps, prefilled)
        if self._slotted and self.tool_queue:
            self._dispatch(now)
        if self._pending:
            self._admit(now)

    # --- sessions --------------------------------------------------------------------------

    def _arrive(self, state: SessionState, at_ps: int) -> None:
        state.begin(at_ps)
        parent = state.parent
        self._emit(
            at_ps,
            Kind.SESSION_ARRIVE,
            state.session,
            -1,
            -1,
            state.plans[0].prompt_tokens,
            -1 if parent is None else parent.session,
            -1 if parent is None else parent.turn_index,
        )
        if parent is None and not self._fits(state):
            self._end_session(state, at_ps, Status.TOO_LARGE)
            return
        prefix = state.recorded.shared_prefix
        if prefix is not None:
            known = self._prefixes
            state.prefix_id = known.setdefault(prefix.prefix_id, len(known))
        if self._priority == "session_arrival":
            top = state
            while top.parent is not None:
                top = top.parent
            state.priority = top.arrival_ps // 1_000_000
        self._ready(state, at_ps)

    def _fits(self, state: SessionState) -> bool:
        """Whether the engine can ever run every turn of a session and of its sub-agents."""
        plans = state.plans or plan_turns(state.recorded)
        if not all(self._core.fits(plan.prompt_tokens, plan.output_tokens) for plan in plans):
            return False
        return all(
            self._fits(child)
            for index in range(len(state.recorded.turns))
            for child in self._children.get((state.session, index), ())
        )

    def _ready(self, state: SessionState, at_ps: int) -> None:
        """The current turn could be sent to the engine."""
        state.ready_ps = at_ps
        state.enter("pending", at_ps)
        plan = state.plans[state.turn_index]
        self._emit(at_ps, Kind.TURN_READY, state.session, state.turn_index, -1, plan.prompt_tokens)
        if self._gated and (
            (not state.admitted and state.parent is None)
            or self._policies.admission.gates_continuations
        ):
            self._pending.append(state)
        else:
            self._submit(state, at_ps)

    def _submit(self, state: SessionState, at_ps: int) -> None:
        plan = state.plans[state.turn_index]
        if not state.admitted:
            state.admitted = True
            self.active[state.session] = state
            self._emit(at_ps, Kind.SESSION_ADMIT, state.session, 0, -1, len(self.active))
        recorded = state.recorded
        turn = recorded.turns[state.turn_index]
        prefix = recorded.shared_prefix
        priority = state.priority
        if self._priority == "continuation_first":
            priority = 0 if state.turn_index else 1
        request = Request(
            session=state.session,
            turn_index=state.turn_index,
            prompt_tokens=plan.prompt_tokens,
            reused_tokens=plan.reused_tokens,
            output_tokens=plan.output_tokens,
            prefix_id=state.prefix_id,
            prefix_tokens=prefix.tokens if prefix is not None else 0,
            session_arrival_ps=state.arrival_ps,
            ready_ps=at_ps,
            priority=priority,
            is_last=state.turn_index + 1 == len(recorded.turns),
            tool_names=tuple([call.name for call in turn.tools]),
        )
        state.enter("engine", at_ps)
        blocks = -(-plan.prompt_tokens // self._view.block_size)
        self._emit(
            at_ps, Kind.GPU_SUBMIT, state.session, state.turn_index, -1, plan.prompt_tokens, blocks
        )
        self._core.submit(request)

    def _turn_done(self, state: SessionState, at_ps: int, prefilled: int) -> None:
        """The engine made the turn's last token: run its tools and sub-agents."""
        index = state.turn_index
        plan = state.plans[index]
        state.context_tokens = plan.prompt_tokens + plan.output_tokens
        state.served_tokens += prefilled + plan.output_tokens
        turn = state.recorded.turns[index]
        if index + 1 == len(state.plans):
            self._end_session(state, at_ps, Status.OK)
            return
        state.enter("tool", at_ps)
        children = self._children.get((state.session, index), ())
        state.outstanding = len(turn.tools) + len(children)
        for number, call in enumerate(turn.tools):
            demand = demand_of(call, speed=self._speed, assumptions=self._assumptions)
            waiting = CallState(
                state,
                number,
                demand,
                queued_ps=at_ps,
                name_code=self.log.intern(call.name),
                tool_class_code=self.log.intern(call.tool_class),
            )
            self._emit_tool(at_ps, Kind.TOOL_ENQUEUED, waiting, 0, 0)
            if self._slotted:
                self.tool_queue.append(waiting)
            else:
                self._start_tool(waiting, at_ps)
        for child in children:
            self._arrive(child, at_ps)
        if state.outstanding == 0:
            self._tools_back(state, at_ps)

    def _tools_back(self, state: SessionState, at_ps: int) -> None:
        """All calls and sub-agents of the turn are back: the next turn follows."""
        think_ps = to_ps(state.recorded.turns[state.turn_index].think_s)
        state.turn_index += 1
        if think_ps:
            self._at(at_ps + think_ps, RESUME, state)
        else:
            self._ready(state, at_ps)

    def _end_session(self, state: SessionState, at_ps: int, status: Status) -> None:
        state.enter("done", at_ps)
        self.active.pop(state.session, None)
        self._emit(at_ps, Kind.SESSION_END, state.session, -1, -1, int(status))
        self._core.session_ended(state.session)
        state.plans = []
        parent = state.parent
        if parent is not None:
            self._returned(parent, at_ps)
            return
        self._done += 1
        if self._closed:
            self._arrive_next(at_ps)
        if self._progress is not None:
            self._progress(self._done, at_ps)

    def _returned(self, state: SessionState, at_ps: int) -> None:
        state.outstanding -= 1
        if state.outstanding == 0:
            self._tools_back(state, at_ps)

    # --- admission -------------------------------------------------------------------------

    def _admit(self, at_ps: int) -> None:
        policy = self._policies.admission
        chosen = policy.admit(list(self._pending), self._view, at_ps / PS_PER_S)
        for view in chosen:
            state = self._states[view.session]
            if state not in self._pending:
                raise PolicyError(
                    f"admission let session {state.recorded.session_id!r} in, which is not pending"
                )
            self._pending.remove(state)
            self._submit(state, at_ps)
        if self._pending and policy.tick_s is not None and self._tick_at <= at_ps:
            self._tick_at = at_ps + max(to_ps(policy.tick_s), 1)
            self._at(self._tick_at, TICK, None)

    def _count_idle_tick(self, at_ps: int) -> None:
        """A policy that only ticks while nothing runs and nothing can change must not go on."""
        idle = self._core.idle() and not self.tools.running and not self._timers
        self._idle_ticks = self._idle_ticks + 1 if idle else 0
        if self._idle_ticks > MAX_IDLE_TICKS:
            raise self._stalled(at_ps)

    def _stalled(self, at_ps: int) -> PolicyError:
        return PolicyError(
            f"admission held {len(self._pending)} turns back while nothing was active "
            f"at {at_ps / PS_PER_S:.3f} s; it must admit at least one then"
        )

    def _wait_for_admission(self, now: int) -> int:
        """Nothing runs anywhere and turns are pending: ask again, or stop with an error."""
        self._admit(now)
        if not self._core.idle() or self._timers:
            return now
        raise self._stalled(now)

    # --- tools -----------------------------------------------------------------------------

    def _dispatch(self, at_ps: int) -> None:
        """Start queued calls while there are slots."""
        policy = self._policies.tools
        now_s = at_ps / PS_PER_S
        while self.tool_queue:
            slots = policy.slots(self._view, now_s)
            if slots is not None and self.tools.running >= max(slots, 1):
                return
            index = policy.next_call(self.tool_queue, self._view, now_s)
            self._start_tool(self.tool_queue.pop(index), at_ps)

    def _start_tool(self, call: CallState, at_ps: int) -> None:
        handle = self._handle
        self._handle += 1
        self._calls[handle] = call
        self._emit_tool(at_ps, Kind.TOOL_START, call, 0, 0)
        self.tools.start(handle, call.demand, at_ps)

    def _tool_done(self, handle: int, at_ps: int) -> None:
        call = self._calls.pop(handle)
        outcome = self.tools.outcome(handle)
        state = call.state
        recorded = state.recorded.turns[state.turn_index].tools[call.call_index]
        error = int(recorded.error or outcome.timed_out)
        self._emit_tool(at_ps, Kind.TOOL_END, call, error, outcome.cpu_ps)
        self._returned(state, at_ps)

    # --- the core's listener ---------------------------------------------------------------

    def on_scheduled_first(self, request: Request, at_ps: int, cached: int, uncached: int) -> None:
        """See CoreListener."""
        self._hits.append((cached, request.prompt_tokens))
        self._emit(
            at_ps, Kind.GPU_SCHED_FIRST, request.session, request.turn_index, -1, cached, uncached
        )

    def on_preempted(self, request: Request, at_ps: int, lost_tokens: int, blocks: int) -> None:
        """See CoreListener."""
        self._emit(
            at_ps, Kind.GPU_PREEMPT, request.session, request.turn_index, -1, lost_tokens, blocks
        )

    def on_resumed(self, request: Request, at_ps: int, cached: int, uncached: int) -> None:
        """See CoreListener."""
        self._emit(
            at_ps, Kind.GPU_RESUME, request.session, request.turn_index, -1, cached, uncached
        )

    def on_first_token(self, request: Request, at_ps: int) -> None:
        """See CoreListener."""
        self._emit(at_ps, Kind.GPU_FIRST_TOKEN, request.session, request.turn_index)

    def on_finished(
        self, request: Request, at_ps: int, *, prefilled: int, recomputed: int, cached: int
    ) -> None:
        """See CoreListener."""
        self._emit(
            at_ps,
            Kind.GPU_END,
            request.session,
            request.turn_index,
            -1,
            request.output_tokens,
            cached,
            prefilled,
            recomputed,
            len(request.tool_names),
            int(request.is_last),
        )
        self._finished.append((request, at_ps, prefilled))

    def on_pin(self, session: int, turn_index: int, at_ps: int, blocks: int, until_ps: int) -> None:
        """See CoreListener."""
        self._emit(at_ps, Kind.KV_PIN, session, turn_index, -1, blocks, until_ps)

    def on_unpin(
        self, session: int, turn_index: int, at_ps: int, blocks: int, reason: int, held_ps: int
    ) -> None:
        """See CoreListener."""
        self._emit(at_ps, Kind.KV_UNPIN, session, turn_index, -1, blocks, int(reason), held_ps)

    # --- events ----------------------------------------------------------------------------

    def recent_hits(self) -> tuple[int, int]:
        """Cached and prompt tokens of the last turns scheduled."""
        return sum(hit[0] for hit in self._hits), sum(hit[1] for hit in self._hits)

    def _emit(
        self,
        at_ps: int,
        kind: Kind,
        session: int,
        turn: int = -1,
        call: int = -1,
        a: int = 0,
        b: int = 0,
        c: int = 0,
        d: int = 0,
        e: int = 0,
        f: int = 0,
    ) -> None:
        self._write(pack_row(at_ps, kind, session, turn, call, a, b, c, d, e, f))
        if self._listeners:
            args = (a, b, c, d, e, f)[: len(FIELDS[kind])]
            self._tell(Event(at_ps / PS_PER_S, kind, session, turn, call, args))

    def _emit_tool(self, at_ps: int, kind: Kind, call: CallState, error: int, cpu_ps: int) -> None:
        state = call.state
        session, turn, index = state.session, state.turn_index, call.call_index
        name, tool_class = call.name_code, call.tool_class_code
        self._write(
            pack_row(at_ps, kind, session, turn, index, name, tool_class, error, cpu_ps, 0, 0)
        )
        if self._listeners:
            payload = (name, tool_class, error, cpu_ps)
            self._tell(
                Event(
                    at_ps / PS_PER_S,
                    kind,
                    session,
                    turn,
                    index,
                    payload[: len(FIELDS[kind])],
                    call.name,
                    call.tool_class,
                )
            )

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            listener(event)

    def _sample(self, now: int) -> None:
        """Telemetry of engine and tools since the last sample."""
        stats = self._core.stats
        view = self._core.view
        span = now - max(self._sampled_ps, 0)
        referenced = stats.referenced_block_ps - self._sample_referenced
        evicted = stats.evicted_blocks - self._sample_evicted
        free = view.free_blocks
        held = view.num_blocks - free
        pinned = min(view.pinned_blocks, held)
        self._emit(
            now,
            Kind.KV_STATS,
            -1,
            -1,
            -1,
            free,
            held - pinned,
            pinned,
            self._core.cached_blocks(),
            referenced * 1000 // span if span > 0 else 0,
            evicted,
        )
        self._emit(
            now,
            Kind.CPU_STATS,
            -1,
            -1,
            -1,
            self.tools.running,
            len(self.tool_queue),
            self.tools.busy_core_ps(now),
            stats.busy_ps,
        )
        self._sampled_ps = now
        self._sample_referenced = stats.referenced_block_ps
        self._sample_evicted = stats.evicted_blocks

    def _end(self, now: int) -> None:
        self._core.check_integrity()
        if self._progress is not None:
            self._progress(self._done, now)
        stats = self._core.stats
        self._emit(
            now,
            Kind.RUN_END,
            -1,
            -1,
            -1,
            stats.steps,
            stats.evicted_blocks,
            stats.preemptions,
            stats.busy_ps,
            self._view.num_blocks,
            self._tool_cores,
        )


def _listeners(policies: Policies) -> list[Callable[[Event], None]]:
    """``on_event`` of each distinct policy object that is not a null policy."""
    parts: Iterable[object] = (
        policies.admission,
        policies.scheduling,
        policies.retention,
        policies.tools,
        policies.routing,
    )
    found: list[Callable[[Event], None]] = []
    seen: set[int] = set()
    for part in parts:
        if type(part) in NULL_POLICIES or id(part) in seen:
            continue
        seen.add(id(part))
        found.append(part.on_event)  # type: ignore[attr-defined]
    return found
