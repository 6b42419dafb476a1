"""Runs one cell: sessions arrive, turns go through an engine core, tools run, events are logged.

The driver owns time and the life of sessions and decides nothing: admission, scheduling,
retention and tool dispatch belong to the policies, memory and batching to the core. External
events (arrivals, tool results, ticks) are handled at their own times, in order; the engine sees
them at its next step, as a real one does.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from marsbench.admission.base import Oversubscribe
from marsbench.core import Session, plan_turns, to_ps, to_s
from marsbench.engine.agenda import ARRIVE, DELIVER, FOREVER, RESUME, Agenda
from marsbench.engine.base import CoreListener, CoreStats, EngineCore, Request
from marsbench.engine.cost import TurnCost
from marsbench.engine.gate import Gate
from marsbench.engine.recorder import Recorder, listeners_of
from marsbench.engine.sessions import CallState, Roll, SessionState
from marsbench.engine.telemetry import SAMPLE_PS, Telemetry
from marsbench.errors import EngineError
from marsbench.events import Kind, Status
from marsbench.records import EventLog
from marsbench.system import Policies
from marsbench.tools.base import ToolAssumptions, ToolModel, demand_of

if TYPE_CHECKING:
    from marsbench.arrival.base import ArrivalPlan


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
    turn_cost: TurnCost | None = None,
) -> CoreStats:
    """Run a cell to its end and fill ``log``.

    ``turn_cost`` is how long turns take to reach the engine (None: no time). ``progress`` is called
    with (finished sessions, now in picoseconds) now and then. Raises PolicyError if a policy stops
    the run, EngineError if the core cannot go on.
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
        turn_cost=turn_cost,
    )
    return driver.run(core_factory(driver))


class Driver(Recorder):
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
        turn_cost: TurnCost | None = None,
    ) -> None:
        parts = (policies.scheduling, policies.retention, policies.tools, policies.routing)
        super().__init__(log, listeners_of((policies.admission, *parts)))
        self.tools = tools
        self.tool_queue: list[CallState] = []
        self.active: dict[int, SessionState] = {}
        self._policies = policies
        self._tool_cores = tool_cores
        self._speed = tool_speed
        self._assumptions = assumptions
        self._priority = priority
        self._progress = progress
        self._turn_cost = turn_cost
        self._on_way: dict[int, Request] = {}
        """Turns that were sent and have not reached the engine, by session."""
        self._roll = Roll(sessions)
        self._states = self._roll.states
        log.session_ids = [state.recorded.session_id for state in self._states]
        self._agenda = Agenda(self._roll.top, arrivals)
        self._timers = self._agenda.timers
        self._gate = Gate(policies.admission, self._states, self._submit, self._agenda.tick_at)
        self._pending = self._gate.pending
        self._prefixes: dict[str, int] = {}
        self._calls: dict[int, CallState] = {}
        self._handle = 0
        self._done = 0
        self._sampled_ps = -SAMPLE_PS
        self._slotted = type(policies.tools) is not Oversubscribe

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
            elif what == DELIVER:
                assert state is not None
                self._core.submit(self._on_way.pop(state.session))
            else:
                idle = self._core.idle() and not self.tools.running and not timers
                self._gate.ticked(at_ps, idle=idle)
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
            for child in self._roll.children(state.session, index)
        )

    def _ready(self, state: SessionState, at_ps: int) -> None:
        """The current turn could be sent to the engine."""
        state.ready_ps = at_ps
        state.enter("pending", at_ps)
        plan = state.plans[state.turn_index]
        self._emit(at_ps, Kind.TURN_READY, state.session, state.turn_index, -1, plan.prompt_tokens)
        if self._gate.holds(state):
            self._pending.append(state)
        else:
            self._submit(state, at_ps)

    def _submit(self, state: SessionState, at_ps: int) -> None:
        plan = state.plans[state.turn_index]
        if not state.admitted:
            state.admitted = True
            self.active[state.session] = state
            self._emit(at_ps, Kind.SESSION_ADMIT, state.session, 0, -1, len(self.active))
        priority = state.priority
        if self._priority == "continuation_first":
            priority = 0 if state.turn_index else 1
        cost = self._turn_cost
        delay_ps = 0 if cost is None else cost.delay_ps(plan.prompt_tokens)
        request = state.request(at_ps + delay_ps, priority)
        state.enter("engine", at_ps)
        blocks = -(-plan.prompt_tokens // self._view.block_size)
        self._emit(
            at_ps, Kind.GPU_SUBMIT, state.session, state.turn_index, -1, plan.prompt_tokens, blocks
        )
        if delay_ps:
            self._on_way[state.session] = request
            self._agenda.add(at_ps + delay_ps, DELIVER, state)
        else:
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
        children = self._roll.children(state.session, index)
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
            self._emit_tool(at_ps, Kind.TOOL_ENQUEUED, waiting)
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
            self._agenda.add(at_ps + think_ps, RESUME, state)
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
        self._agenda.session_over(at_ps)
        if self._progress is not None:
            self._progress(self._done, at_ps)

    def _returned(self, state: SessionState, at_ps: int) -> None:
        state.outstanding -= 1
        if state.outstanding == 0:
            self._tools_back(state, at_ps)

    # --- admission -------------------------------------------------------------------------

    def _admit(self, at_ps: int) -> None:
        self._gate.ask(self._view, at_ps)

    def _wait_for_admission(self, now: int) -> int:
        """Nothing runs anywhere and turns are pending: ask again, or stop with an error."""
        self._admit(now)
        if not self._core.idle() or self._timers:
            return now
        raise self._gate.stalled(now)

    # --- tools -----------------------------------------------------------------------------

    def _dispatch(self, at_ps: int) -> None:
        """Start queued calls while there are slots."""
        policy = self._policies.tools
        now_s = to_s(at_ps)
        while self.tool_queue:
            slots = policy.slots(self._view, now_s)
            if slots is not None and self.tools.running >= max(slots, 1):
                return
            index = policy.next_call(self.tool_queue, self._view, now_s)
            call = self.tool_queue.pop(index)
            call.weigh(policy.niceness(call, self._view, now_s), type(policy).__name__)
            self._start_tool(call, at_ps)

    def _start_tool(self, call: CallState, at_ps: int) -> None:
        handle = self._handle
        self._handle += 1
        self._calls[handle] = call
        demand = call.demand
        self._emit_tool(at_ps, Kind.TOOL_START, call, demand.nice, demand.nice_after_ps)
        self.tools.start(handle, demand, at_ps)

    def _tool_done(self, handle: int, at_ps: int) -> None:
        call = self._calls.pop(handle)
        outcome = self.tools.outcome(handle)
        state = call.state
        recorded = state.recorded.turns[state.turn_index].tools[call.call_index]
        error = int(recorded.error or outcome.timed_out)
        self._emit_tool(at_ps, Kind.TOOL_END, call, error, outcome.cpu_ps)
        self._returned(state, at_ps)

    # --- the log's frame -------------------------------------------------------------------

    def _sample(self, now: int) -> None:
        """Telemetry of engine and tools since the last sample."""
        kv, cpu = self._view.sample(now)
        self._emit(now, Kind.KV_STATS, -1, -1, -1, *kv)
        self._emit(now, Kind.CPU_STATS, -1, -1, -1, *cpu)
        self._sampled_ps = now

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
