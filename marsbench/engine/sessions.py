"""Run-time state of sessions and tool calls, as the driver keeps it and policies may read it."""

from __future__ import annotations

from collections.abc import Sequence

from marsbench.admission.base import MAX_NICE, Niceness
from marsbench.core import Session, TurnPlan, plan_turns, to_ps, to_s
from marsbench.engine.base import Request
from marsbench.errors import PolicyError
from marsbench.tools.base import ToolDemand


class SessionState:
    """One session of a cell. Policies see it as ``admission.base.SessionView``: the recorded
    future in ``recorded`` and ``plans`` is the driver's and is not part of that protocol.
    """

    __slots__ = (
        "admitted",
        "arrival_ps",
        "context_tokens",
        "outstanding",
        "parent",
        "phase",
        "phase_since_ps",
        "plans",
        "prefix_id",
        "priority",
        "ready_ps",
        "recorded",
        "served_tokens",
        "session",
        "turn_index",
    )

    def __init__(self, session: int, recorded: Session, parent: SessionState | None) -> None:
        self.session = session
        self.recorded = recorded
        self.parent = parent
        self.arrival_ps = 0
        self.ready_ps = 0
        self.turn_index = 0
        self.context_tokens = 0
        self.served_tokens = 0
        self.outstanding = 0
        """Tool calls and sub-agents that the current turn still waits for."""
        self.phase = "pending"
        self.phase_since_ps = 0
        self.plans: list[TurnPlan] = []
        self.prefix_id = -1
        self.priority = 0
        self.admitted = False

    def begin(self, at_ps: int) -> None:
        """The session arrives."""
        self.arrival_ps = at_ps
        self.plans = plan_turns(self.recorded)
        self.context_tokens = self.plans[0].prompt_tokens

    def enter(self, phase: str, at_ps: int) -> None:
        """Change phase."""
        self.phase = phase
        self.phase_since_ps = at_ps

    def request(self, ready_ps: int, priority: int) -> Request:
        """The current turn as an engine is asked for it."""
        recorded = self.recorded
        plan = self.plans[self.turn_index]
        prefix = recorded.shared_prefix
        return Request(
            session=self.session,
            turn_index=self.turn_index,
            prompt_tokens=plan.prompt_tokens,
            reused_tokens=plan.reused_tokens,
            output_tokens=plan.output_tokens,
            prefix_id=self.prefix_id,
            prefix_tokens=prefix.tokens if prefix is not None else 0,
            session_arrival_ps=self.arrival_ps,
            ready_ps=ready_ps,
            priority=priority,
            is_last=self.turn_index + 1 == len(recorded.turns),
            tool_names=tuple([call.name for call in recorded.turns[self.turn_index].tools]),
        )

    @property
    def arrival_s(self) -> float:
        """Arrival, seconds."""
        return to_s(self.arrival_ps)

    @property
    def prompt_tokens(self) -> int:
        """Prompt of the current turn."""
        return self.plans[self.turn_index].prompt_tokens

    @property
    def phase_since_s(self) -> float:
        """When the current phase began, seconds."""
        return to_s(self.phase_since_ps)

    @property
    def is_child(self) -> bool:
        """A sub-agent."""
        return self.parent is not None


class CallState:
    """A tool call that waits for a slot or runs (``admission.base.ToolCallView``)."""

    __slots__ = ("call_index", "demand", "name_code", "queued_ps", "state", "tool_class_code")

    def __init__(
        self,
        state: SessionState,
        call_index: int,
        demand: ToolDemand,
        *,
        queued_ps: int,
        name_code: int,
        tool_class_code: int,
    ) -> None:
        self.state = state
        self.call_index = call_index
        self.demand = demand
        self.queued_ps = queued_ps
        self.name_code = name_code
        self.tool_class_code = tool_class_code

    def weigh(self, niceness: Niceness, policy: str) -> None:
        """Run it at this niceness. PolicyError if there is no such one."""
        nice, after_s = niceness
        if not 0 <= nice <= MAX_NICE or after_s < 0:
            raise PolicyError(
                f"{policy}.niceness: ({nice}, {after_s}) for a call of {self.name!r}; "
                f"it must be 0 to {MAX_NICE}, after 0 or more core-seconds"
            )
        self.demand.nice, self.demand.nice_after_ps = nice, to_ps(after_s)

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
        return self.demand.name

    @property
    def tool_class(self) -> str:
        """Tool class."""
        return self.demand.tool_class

    @property
    def queued_s(self) -> float:
        """When it was enqueued, seconds."""
        return to_s(self.queued_ps)


class Roll:
    """All sessions of a cell, numbered: top-level ones first, then sub-agents."""

    def __init__(self, sessions: Sequence[Session]) -> None:
        self.states: list[SessionState] = []
        self.top = [self._enter(session, None) for session in sessions]
        self._spawned: dict[tuple[int, int], list[SessionState]] = {}
        for state in list(self.top):
            self._enter_children(state)

    def children(self, session: int, turn_index: int) -> Sequence[SessionState]:
        """Sub-agents that a turn starts."""
        return self._spawned.get((session, turn_index), ())

    def _enter(self, session: Session, parent: SessionState | None) -> SessionState:
        state = SessionState(len(self.states), session, parent)
        self.states.append(state)
        return state

    def _enter_children(self, parent: SessionState) -> None:
        # The session ends with its last turn's last token: what that turn asks for never runs.
        for index, turn in enumerate(parent.recorded.turns[:-1]):
            if turn.children:
                spawned = [self._enter(child, parent) for child in turn.children]
                self._spawned[parent.session, index] = spawned
                for child in spawned:
                    self._enter_children(child)
