"""Views and event sequences for MARS, with defaults for what a test ignores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from policy_views import Engine, Pin, Sess, Sys, Turn, context

from marsbench.core import PolicyContext
from marsbench.events import FIELDS, Event, Kind


@dataclass(frozen=True)
class Call:
    """A tool call that waits for a slot."""

    session: int = 0
    turn_index: int = 0
    name: str = "bash"
    tool_class: str = "script"
    queued_s: float = 0.0


class Story:
    """Tells listeners what happens to sessions, one line per step of a session's life."""

    def __init__(self, *listeners: Callable[[Event], None]) -> None:
        self._listeners = listeners

    def tell(self, kind: Kind, at_s: float, session: int, turn: int = 0, call: int = -1,
             name: str = "", **payload: int) -> Story:  # fmt: skip
        names = FIELDS[kind]
        assert set(payload) <= set(names), f"{kind.name} has {names}"
        args = tuple(payload.get(field_, -1 if "parent" in field_ else 0) for field_ in names)
        event = Event(at_s, kind, session, turn, call, args, name)
        for listener in self._listeners:
            listener(event)
        return self

    def arrive(self, session: int, at_s: float, prompt: int = 1000, parent: int = -1) -> Story:
        self.tell(Kind.SESSION_ARRIVE, at_s, session, -1, prompt_tokens=prompt, parent=parent)
        return self.ready(session, at_s, prompt, turn=0)

    def ready(self, session: int, at_s: float, prompt: int, turn: int) -> Story:
        return self.tell(Kind.TURN_READY, at_s, session, turn, prompt_tokens=prompt)

    def submit(self, session: int, at_s: float, turn: int = 0) -> Story:
        return self.tell(Kind.GPU_SUBMIT, at_s, session, turn)

    def start(self, session: int, at_s: float, turn: int = 0, cached: int = 0) -> Story:
        return self.tell(Kind.GPU_SCHED_FIRST, at_s, session, turn, cached_tokens=cached)

    def end(self, session: int, at_s: float, turn: int = 0, **payload: int) -> Story:
        return self.tell(Kind.GPU_END, at_s, session, turn, **payload)

    def enqueue(self, session: int, at_s: float, name: str = "bash", call: int = 0) -> Story:
        return self.tell(Kind.TOOL_ENQUEUED, at_s, session, 0, call, name)

    def start_tool(self, session: int, at_s: float, name: str = "bash", call: int = 0) -> Story:
        return self.tell(Kind.TOOL_START, at_s, session, 0, call, name)

    def end_tool(self, session: int, at_s: float, name: str = "bash", call: int = 0) -> Story:
        return self.tell(Kind.TOOL_END, at_s, session, 0, call, name)

    def cores(self, at_s: float, busy_core_s: float) -> Story:
        """Telemetry: what calls have used of the tool cores since the start."""
        busy_core_ps = int(busy_core_s * 10**12)
        return self.tell(Kind.CPU_STATS, at_s, -1, -1, busy_core_ps=busy_core_ps)

    def done(self, session: int, at_s: float) -> Story:
        return self.tell(Kind.SESSION_END, at_s, session, -1)


@dataclass(frozen=True)
class Build:
    """All builders under one name."""

    turn: Callable[..., Any] = Turn
    engine: Callable[..., Any] = Engine
    pin: Callable[..., Any] = Pin
    session: Callable[..., Any] = Sess
    system: Callable[..., Any] = Sys
    call: Callable[..., Any] = Call
    story: Callable[..., Story] = Story
    context: Callable[..., PolicyContext] = field(default_factory=lambda: context)


@pytest.fixture
def build() -> Build:
    return Build()
