"""Views and event sequences for MARS, with defaults for what a test ignores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from marsbench.core import PolicyContext
from marsbench.events import FIELDS, Event, Kind


@dataclass(frozen=True)
class Turn:
    """A turn in an engine."""

    session: int = 0
    turn_index: int = 0
    session_arrival_s: float = 0.0
    ready_s: float = 0.0
    sequence: int = 0
    prompt_tokens: int = 1000
    computed_tokens: int = 0
    generated_tokens: int = 0
    num_blocks: int = 0
    num_preemptions: int = 0
    last_scheduled_s: float = 0.0


@dataclass(frozen=True)
class Engine:
    """An engine of 16,000 tokens; ``cached`` maps a session to its prefix hit."""

    block_size: int = 16
    num_blocks: int = 1000
    free_blocks: int = 1000
    pinned_blocks: int = 0
    waiting: tuple[Turn, ...] = ()
    running: tuple[Turn, ...] = ()
    cached: dict[int, int] = field(default_factory=dict)

    def cached_tokens(self, turn: Turn) -> int:
        return self.cached.get(turn.session, 0)


@dataclass(frozen=True)
class Pin:
    """Retained KV."""

    session: int = 0
    turn_index: int = 0
    num_blocks: int = 10
    context_tokens: int = 1000
    since_s: float = 0.0
    until_s: float = 1e9
    returned: bool = False


@dataclass(frozen=True)
class Sess:
    """A session at the gate."""

    session: int = 0
    arrival_s: float = 0.0
    turn_index: int = 0
    prompt_tokens: int = 1000
    context_tokens: int = 1000
    served_tokens: int = 0
    phase: str = "pending"
    phase_since_s: float = 0.0
    is_child: bool = False


@dataclass(frozen=True)
class Sys:
    """Telemetry of an engine of 16,000 tokens."""

    active: tuple[Sess, ...] = ()
    block_size: int = 16
    num_blocks: int = 1000
    free_blocks: int = 1000
    pinned_blocks: int = 0
    num_running: int = 0
    num_waiting: int = 0
    tool_cores: int = 0
    tools_running: int = 0
    tools_queued: int = 0
    prefix_cache_hit_rate: float = 1.0


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

    def done(self, session: int, at_s: float) -> Story:
        return self.tell(Kind.SESSION_END, at_s, session, -1)


def context(**changes: Any) -> PolicyContext:
    """16,000 tokens of KV, 1000 prompt tokens/s."""
    base: dict[str, Any] = {
        "num_blocks": 1000,
        "block_size": 16,
        "max_num_batched_tokens": 8192,
        "max_num_seqs": 256,
        "tool_cores": 0,
        "prefill_tokens_per_s": 1000.0,
        "decode_step_s": 0.02,
    }
    return PolicyContext(**{**base, **changes})


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
