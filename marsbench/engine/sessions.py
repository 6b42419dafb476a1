"""Run-time state of sessions and tool calls, as the driver keeps it and policies may read it."""

from __future__ import annotations

from marsbench.core import PS_PER_S, Session, TurnPlan, plan_turns
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

    @property
    def arrival_s(self) -> float:
        """Arrival, seconds."""
        return self.arrival_ps / PS_PER_S

    @property
    def prompt_tokens(self) -> int:
        """Prompt of the current turn."""
        return self.plans[self.turn_index].prompt_tokens

    @property
    def phase_since_s(self) -> float:
        """When the current phase began, seconds."""
        return self.phase_since_ps / PS_PER_S

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
        return self.queued_ps / PS_PER_S
