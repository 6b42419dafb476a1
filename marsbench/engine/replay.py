"""Recorded sessions, played against an engine: what each of them does next, and when.

A ``Replay`` knows the trace. It makes sessions arrive, sends their turns, runs their tools and
starts their sub-agents, and calls ``engine.life`` for each transition. It decides nothing: admission
and tool dispatch belong to the policies, order and memory to the engine. It has no clock either:
``engine.loop`` and ``engine.live.wall`` tell it what time it is.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from marsbench.core import Session, TurnPlan, plan_turns, to_ps
from marsbench.engine.agenda import ARRIVE, DELIVER, FOREVER, PLANNED, RESUME, Agenda, Planned
from marsbench.engine.base import EngineCore, Request
from marsbench.engine.gate import Gate
from marsbench.engine.life import CallState, Life, SessionState
from marsbench.engine.plan import CellPlan, Progress
from marsbench.engine.priority import request_priority
from marsbench.engine.slots import ToolQueue
from marsbench.engine.telemetry import SAMPLE_PS, Alone, Replicas, Telemetry
from marsbench.events import Kind, Status
from marsbench.system import is_null
from marsbench.tools.base import ToolDemand, ToolModel, demand_of


class Script:
    """What one session is going to do. Policies never see it; they see ``state``."""

    __slots__ = (
        "outstanding",
        "parent",
        "plans",
        "prefix_id",
        "recorded",
        "state",
    )

    def __init__(self, session: int, recorded: Session, parent: Script | None) -> None:
        self.recorded = recorded
        self.parent = parent
        above = None if parent is None else parent.state
        self.state: SessionState = SessionState(session, recorded.session_id, above)
        self.plans: list[TurnPlan] = []
        """Of all its turns, from its arrival to its end."""
        self.outstanding = 0
        """Tool calls and sub-agents that the current turn still waits for."""
        self.prefix_id = -1

    def request(self, ready_ps: int, due_ps: int, priority: int) -> Request:
        """Return the current turn in the form in which an engine is asked for it."""
        recorded, state = self.recorded, self.state
        index = state.turn_index
        plan = self.plans[index]
        prefix = recorded.shared_prefix
        return Request(
            session=state.session,
            turn_index=index,
            prompt_tokens=plan.prompt_tokens,
            reused_tokens=plan.reused_tokens,
            output_tokens=plan.output_tokens,
            prefix_id=self.prefix_id,
            prefix_tokens=prefix.tokens if prefix is not None else 0,
            session_arrival_ps=state.arrival_ps,
            ready_ps=ready_ps,
            due_ps=due_ps,
            priority=priority,
            is_last=index + 1 == len(recorded.turns),
            tool_names=tuple([call.name for call in recorded.turns[index].tools]),
        )


class Cast:
    """All sessions of a cell, numbered: top-level ones first, then sub-agents."""

    def __init__(self, sessions: Sequence[Session]) -> None:
        self.scripts: list[Script] = []
        self.top = [self._enter(session, None) for session in sessions]
        self._spawned: dict[tuple[int, int], list[Script]] = {}
        for script in list(self.top):
            self._enter_children(script)

    def children(self, session: int, turn_index: int) -> Sequence[Script]:
        """Return the sub-agents that a turn starts."""
        return self._spawned.get((session, turn_index), ())

    def _enter(self, session: Session, parent: Script | None) -> Script:
        script = Script(len(self.scripts), session, parent)
        self.scripts.append(script)
        return script

    def _enter_children(self, parent: Script) -> None:
        # NOTE: a session ends with its last turn's last token, so what that turn asks for never runs.
        for index, turn in enumerate(parent.recorded.turns[:-1]):
            if turn.children:
                spawned = [self._enter(child, parent) for child in turn.children]
                self._spawned[parent.state.session, index] = spawned
                for child in spawned:
                    self._enter_children(child)


class Replay:
    """One cell in progress. Whoever drives it calls ``external`` and ``engine_finished``."""

    def __init__(
        self,
        plan: CellPlan,
        life: Life,
        core: EngineCore,
        tools: ToolModel,
        progress: Progress | None = None,
        stamp: Callable[[int], int] | None = None,
        replicas: Replicas | None = None,
    ) -> None:
        """``core`` reports to ``life``; ``replicas`` are the engines it is made of, if several. ``stamp`` turns the time at which something was due into
        the time at which it is done, where a driver can be late (None: it never is).
        """
        cast = Cast(plan.sessions)
        self.life = life
        self.core = core
        self.tools = tools
        self.states = [script.state for script in cast.scripts]
        """Of all sessions, by index."""
        life.log.session_ids = [state.session_id for state in self.states]
        self._plan = plan
        self._cast = cast
        self._scripts = cast.scripts
        self._stamp = stamp
        self._progress = progress
        self._done = 0
        self._agenda = Agenda(cast.top, plan.arrivals)
        self._timers = self._agenda.timers
        self._gate = Gate(plan.policies.admission, self._admitted, self._agenda.tick_at)
        self._pending = self._gate.pending
        self._prefixes: dict[str, int] = {}
        self._on_way: dict[int, Request] = {}
        """Turns that were sent and have not reached the engine, by session."""
        self._calls: dict[int, CallState] = {}
        """Calls that run, by handle."""
        self._demands: dict[CallState, ToolDemand] = {}
        """Of calls that wait for a slot."""
        self._handle = 0
        self._queue = ToolQueue(plan.policies.tools, self._slot_given)
        self._slotted = not is_null(plan.policies.tools)
        self._sampled_ps = -SAMPLE_PS
        self.view = Telemetry(
            life, core, tools, self._queue.waiting, plan.tool_cores, replicas or Alone()
        )

    # --- what a driver asks and tells --------------------------------------------------------

    def next_external_ps(self) -> int:
        """Return when something happens outside the engine next; FOREVER if nothing will."""
        timer = self._timers[0][0] if self._timers else FOREVER
        tool = self.tools.next_completion_ps()
        return timer if tool is None or timer <= tool else tool

    def external(self, at_ps: int) -> None:
        """Let everything happen that is due outside the engine at exactly this time."""
        timers = self._timers
        while timers and timers[0][0] == at_ps:
            _, _, what, script, planned = heapq.heappop(timers)
            if what == ARRIVE:
                assert script is not None
                self._arrive(script, at_ps)
            elif what == RESUME:
                assert script is not None
                self._ready(script, at_ps)
            elif what == DELIVER:
                assert script is not None
                self.core.submit(self._on_way.pop(script.state.session))
            elif what == PLANNED:
                assert planned is not None
                again_ps = planned(at_ps)
                if again_ps is not None:
                    self._agenda.plan(again_ps, planned)
            else:
                idle = self.core.idle() and not self.tools.running and not timers
                self._gate.ticked(at_ps, idle=idle)
        tool = self.tools.next_completion_ps()
        if tool is not None and tool <= at_ps:
            for handle in self.tools.pop_completed(at_ps):
                self._tool_done(handle, at_ps)
            if self._slotted:
                self._dispatch(at_ps)
        if self._pending:
            self._gate.ask(self.view, at_ps)

    def engine_finished(self, now_ps: int) -> None:
        """Go on with the sessions whose turns the engine has finished."""
        life = self.life
        finished, life.finished = life.finished, []
        for request, at_ps, prefilled in finished:
            self._turn_done(self._scripts[request.session], at_ps, prefilled)
        if self._slotted and self._queue.waiting:
            self._dispatch(now_ps)
        if self._pending:
            self._gate.ask(self.view, now_ps)

    def failed(self, request: Request, at_ps: int, status: Status) -> None:
        """Fail a session whose turn will not finish."""
        self._end_session(self._scripts[request.session], at_ps, status)
        if self._pending:
            self._gate.ask(self.view, at_ps)

    @property
    def waits_for_admission(self) -> bool:
        """Turns are held back by the admission policy."""
        return bool(self._pending)

    def nothing_runs(self, now_ps: int) -> None:
        """Ask the policy again while turns are held back and nothing runs or is due. PolicyError if
        it lets nobody in even then.
        """
        self._gate.ask(self.view, now_ps)
        if self.core.idle() and not self._timers:
            raise self._gate.stalled(now_ps)

    def plan(self, at_ps: int, planned: Planned) -> None:
        """Do something at a time, unless all sessions are over by then."""
        self._agenda.plan(at_ps, planned)

    def number_prefixes(self) -> None:
        """Number shared prefixes by session, not by arrival, whose order may differ between runs."""
        for script in self._scripts:
            prefix = script.recorded.shared_prefix
            if prefix is not None:
                self._prefixes.setdefault(prefix.prefix_id, len(self._prefixes))

    def sample_if_due(self, now_ps: int) -> None:
        """Write telemetry to the log if it is due, which it is a few times a minute."""
        if now_ps - self._sampled_ps >= SAMPLE_PS:
            self.sample(now_ps)

    def next_sample_ps(self) -> int:
        """Return when telemetry is due again."""
        return self._sampled_ps + SAMPLE_PS

    def sample(self, now_ps: int) -> None:
        """Write telemetry of engine and tools since the last sample to the log."""
        for kind, values in self.view.samples(now_ps):
            self.life.emit(now_ps, kind, -1, -1, -1, *values)
        self._sampled_ps = now_ps

    def end(self, now_ps: int) -> None:
        """Write the last sample and the totals to the log, since nothing more will happen."""
        self.sample(now_ps)
        self.core.check_integrity()
        if self._progress is not None:
            self._progress(self._done, now_ps)
        stats = self.core.stats
        self.life.emit(
            now_ps,
            Kind.RUN_END,
            -1,
            -1,
            -1,
            stats.steps,
            stats.evicted_blocks,
            stats.preemptions,
            stats.busy_ps,
            self.view.num_blocks,
            self._plan.tool_cores,
        )

    # --- sessions --------------------------------------------------------------------------

    def _arrive(self, script: Script, at_ps: int) -> None:
        script.plans = plan_turns(script.recorded)
        parent = script.parent
        parent_turn = -1 if parent is None else parent.state.turn_index
        self.life.arrive(script.state, at_ps, script.plans[0].prompt_tokens, parent_turn)
        if parent is None and not self._fits(script):
            self._end_session(script, at_ps, Status.TOO_LARGE)
            return
        prefix = script.recorded.shared_prefix
        if prefix is not None:
            known = self._prefixes
            script.prefix_id = known.setdefault(prefix.prefix_id, len(known))
        self._ready(script, at_ps)

    def _fits(self, script: Script) -> bool:
        """Whether the engine can ever run every turn of a session and of its sub-agents."""
        plans = script.plans or plan_turns(script.recorded)
        if not all(self.core.fits(plan.prompt_tokens, plan.output_tokens) for plan in plans):
            return False
        return all(
            self._fits(child)
            for index in range(len(script.recorded.turns))
            for child in self._cast.children(script.state.session, index)
        )

    def _ready(self, script: Script, at_ps: int) -> None:
        state = script.state
        self.life.ready(state, at_ps, script.plans[state.turn_index].prompt_tokens)
        if self._gate.holds(state):
            self._pending.append(state)
        else:
            self._submit(script, at_ps)

    def _admitted(self, state: SessionState, at_ps: int) -> None:
        self._submit(self._scripts[state.session], at_ps)

    def _submit(self, script: Script, at_ps: int) -> None:
        due_ps = at_ps
        if self._stamp is not None:
            at_ps = self._stamp(at_ps)
        state = script.state
        self.life.submit(state, at_ps, -(-state.prompt_tokens // self.view.block_size))
        priority = request_priority(self._plan.priority, state)
        cost = self._plan.turn_cost
        delay_ps = 0 if cost is None else cost.delay_ps(state.prompt_tokens)
        request = script.request(at_ps + delay_ps, due_ps, priority)
        if delay_ps:
            self._on_way[state.session] = request
            self._agenda.add(at_ps + delay_ps, DELIVER, script)
        else:
            self.core.submit(request)

    def _turn_done(self, script: Script, at_ps: int, prefilled: int) -> None:
        """The engine made the turn's last token: run its tools and sub-agents."""
        state = script.state
        index = state.turn_index
        output_tokens = script.plans[index].output_tokens
        self.life.returned(state, at_ps, output_tokens=output_tokens, prefilled=prefilled)
        if index + 1 == len(script.plans):
            self._end_session(script, at_ps, Status.OK)
            return
        turn = script.recorded.turns[index]
        children = self._cast.children(state.session, index)
        script.outstanding = len(turn.tools) + len(children)
        plan, life = self._plan, self.life
        for number, recorded in enumerate(turn.tools):
            demand = demand_of(recorded, speed=plan.tool_speed, assumptions=plan.assumptions)
            call = CallState(
                state,
                number,
                name=recorded.name,
                tool_class=recorded.tool_class,
                name_code=life.log.intern(recorded.name),
                class_code=life.log.intern(recorded.tool_class),
            )
            life.tool_queued(call, at_ps)
            if self._slotted:
                self._demands[call] = demand
                self._queue.waiting.append(call)
            else:
                self._start_tool(call, demand, at_ps)
        for child in children:
            self._arrive(child, at_ps)
        if script.outstanding == 0:
            self._tools_back(script, at_ps)

    def _tools_back(self, script: Script, at_ps: int) -> None:
        """All calls and sub-agents of the turn are back: the next turn follows."""
        state = script.state
        think_ps = to_ps(script.recorded.turns[state.turn_index].think_s)
        state.turn_index += 1
        if think_ps:
            self._agenda.add(at_ps + think_ps, RESUME, script)
        else:
            self._ready(script, at_ps)

    def _end_session(self, script: Script, at_ps: int, status: Status) -> None:
        self.life.end(script.state, at_ps, status)
        self.core.session_ended(script.state.session)
        script.plans = []
        if script.parent is not None:
            self._one_back(script.parent, at_ps)
            return
        self._done += 1
        if self._done == len(self._cast.top):
            self._agenda.drop_planned()
        self._agenda.session_over(at_ps)
        if self._progress is not None:
            self._progress(self._done, at_ps)

    def _one_back(self, script: Script, at_ps: int) -> None:
        """One call or sub-agent of the current turn is back."""
        script.outstanding -= 1
        if script.outstanding == 0:
            self._tools_back(script, at_ps)

    # --- tools -----------------------------------------------------------------------------

    def _dispatch(self, at_ps: int) -> None:
        self._queue.dispatch(self.view, at_ps, lambda: self.tools.running)

    def _slot_given(self, call: CallState, at_ps: int, nice: int, nice_after_ps: int) -> None:
        demand = self._demands.pop(call)
        demand.nice, demand.nice_after_ps = nice, nice_after_ps
        self._start_tool(call, demand, at_ps)

    def _start_tool(self, call: CallState, demand: ToolDemand, at_ps: int) -> None:
        if self._stamp is not None:
            at_ps = self._stamp(at_ps)
        handle = self._handle
        self._handle += 1
        self._calls[handle] = call
        self.life.tool_started(call, at_ps, demand.nice, demand.nice_after_ps)
        self.tools.start(handle, demand, at_ps)

    def _tool_done(self, handle: int, at_ps: int) -> None:
        call = self._calls.pop(handle)
        outcome = self.tools.outcome(handle)
        script = self._scripts[call.session]
        recorded = script.recorded.turns[call.turn_index].tools[call.call_index]
        error = recorded.error or outcome.timed_out
        self.life.tool_ended(call, at_ps, error=error, cpu_ps=outcome.cpu_ps)
        self._one_back(script, at_ps)
