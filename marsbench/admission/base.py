"""Protocols of the control plane: which turns enter the engine, and tool slots.

The control plane sits in front of the engine. It sees sessions and telemetry, never the future.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from marsbench.core import HostView, Phase
from marsbench.events import Event


class SessionView(Protocol):
    """A session, as the control plane knows it."""

    @property
    def session(self) -> int: ...
    @property
    def arrival_s(self) -> float: ...
    @property
    def turn_index(self) -> int:
        """Index of the current turn: pending, in the engine, or whose tools are running."""
        ...

    @property
    def prompt_tokens(self) -> int:
        """Prompt of the current turn."""
        ...

    @property
    def context_tokens(self) -> int:
        """Tokens of the session's context now: last prompt plus last output."""
        ...

    @property
    def served_tokens(self) -> int:
        """Prefill + decode tokens the engine has computed for it so far."""
        ...

    @property
    def phase(self) -> Phase:
        """Where it stands: pending, engine, tool or done."""
        ...

    @property
    def phase_since_s(self) -> float: ...
    @property
    def is_child(self) -> bool:
        """A sub-agent: its parent is active and waits for it."""
        ...


class SystemView(Protocol):
    """Telemetry of engine and tools, as a gateway can poll it."""

    @property
    def block_size(self) -> int: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def free_blocks(self) -> int: ...
    @property
    def pinned_blocks(self) -> int: ...
    @property
    def host(self) -> HostView | None:
        """Host memory for KV; None where there is none, or the engine does not tell."""
        ...

    @property
    def num_running(self) -> int:
        """Turns running in the engine."""
        ...

    @property
    def num_waiting(self) -> int:
        """Turns waiting in the engine."""
        ...

    @property
    def active(self) -> Sequence[SessionView]:
        """Admitted, unfinished sessions (in order of admission)."""
        ...

    @property
    def tool_cores(self) -> int:
        """0 = unlimited."""
        ...

    @property
    def tools_running(self) -> int: ...
    @property
    def tools_queued(self) -> int: ...
    @property
    def replicas(self) -> Sequence[SystemView]:
        """The engines behind the front door one by one; empty where there is one."""
        ...

    @property
    def prefix_cache_hit_rate(self) -> float:
        """Of the last 64 scheduled turns, token-weighted; 1.0 before there are any."""
        ...


class AdmissionPolicy(Protocol):
    """Chooses which pending turns go to the engine now."""

    gates_continuations: bool
    """False: only first turns are ever pending, continuations of admitted sessions pass at once.
    True: every turn is pending first (a policy that pauses sessions at turn boundaries)."""
    tick_s: float | None
    """Also ask at least this often while anything is pending; None = on events only."""

    def on_event(self, event: Event) -> None: ...

    def admit(
        self, pending: Sequence[SessionView], view: SystemView, now_s: float
    ) -> Sequence[SessionView]:
        """Those of ``pending`` (in order of arrival there) to submit now, in that order.

        Asked after every arrival, return, turn end, session end and tick while ``pending`` is
        not empty. Must admit at least one when nothing is active, or the run could stop.
        """
        ...


class ToolCallView(Protocol):
    """A tool call that waits for a slot."""

    @property
    def session(self) -> int: ...
    @property
    def turn_index(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def tool_class(self) -> str: ...
    @property
    def queued_s(self) -> float:
        """When it was enqueued."""
        ...


MAX_NICE = 19
"""The niceness of nice(2) that yields most."""


class Niceness(NamedTuple):
    """How much of the tool cores a call leaves to others while they are contended."""

    nice: int = 0
    """0 (an equal share) to ``MAX_NICE``, as in nice(2)."""
    after_s: float = 0.0
    """CPU time the call may use at niceness 0 first, core-seconds."""


class ToolDispatchPolicy(Protocol):
    """Orders the tool queue and weighs the calls that run. With ``slots`` None every call starts at
    once; the operating system shares the cores among those that run, by their niceness.
    """

    def on_event(self, event: Event) -> None: ...

    def slots(self, view: SystemView, now_s: float) -> int | None:
        """Most calls that may run at once; None = no limit."""
        ...

    def next_call(self, queue: Sequence[ToolCallView], view: SystemView, now_s: float) -> int:
        """Index in ``queue`` (order of arrival) of the call to start."""
        ...

    def niceness(self, call: ToolCallView, view: SystemView, now_s: float) -> Niceness:
        """What the call that starts now leaves to others; decided once, at its start."""
        ...


class Unlimited:
    """The null admission policy: everything goes to the engine at once."""

    gates_continuations = False
    tick_s: float | None = None

    def on_event(self, event: Event) -> None:
        """Nothing to learn."""

    def admit(
        self, pending: Sequence[SessionView], view: SystemView, now_s: float
    ) -> Sequence[SessionView]:
        """All of them, in order of arrival."""
        return pending


class Oversubscribe:
    """The null tool dispatch: start every call at once."""

    def on_event(self, event: Event) -> None:
        """Nothing to learn."""

    def slots(self, view: SystemView, now_s: float) -> int | None:
        """No limit."""
        return None

    def next_call(self, queue: Sequence[ToolCallView], view: SystemView, now_s: float) -> int:
        """First come, first served."""
        return 0

    def niceness(self, call: ToolCallView, view: SystemView, now_s: float) -> Niceness:
        """Equal shares."""
        return Niceness()
