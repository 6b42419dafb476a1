"""Messages between a control plane and a scheduler: msgpack arrays under a versioned topic.

A run's driver and a gateway (``marsbench.gateway.monitoring.publisher``) send the same ``Batch`` and ``Beat``, so a
scheduler can listen to either. ``EngineState`` goes the other way. Nothing here carries prompts or
replies.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from marsbench.core import to_ps
from marsbench.errors import EngineError
from marsbench.events import Event

VERSION = 1
TOPIC_PREFIX = b"marsbench.events."
TOPIC = TOPIC_PREFIX + str(VERSION).encode()
BEAT_S = 1.0
STATE_S = 0.05
"""Least time between two states of the engine."""


class WireEvent(msgspec.Struct, array_like=True, frozen=True):
    """One event; ``session_id`` is the name the engine knows the session by."""

    time_ps: int
    kind: int
    session: int
    turn: int
    call: int
    args: tuple[int, ...]
    name: str
    tool_class: str
    session_id: str


class WireSession(msgspec.Struct, array_like=True, frozen=True):
    """An unfinished session, as of a beat."""

    session: int
    session_id: str
    parent: int
    arrival_ps: int
    turn_index: int
    prompt_tokens: int
    context_tokens: int
    served_tokens: int
    phase: str


class Batch(msgspec.Struct, array_like=True, frozen=True, tag="batch"):
    """Events in the order in which they happened."""

    boot: str
    """Names the run of the sender; another one means that it began anew."""
    seq: int
    """Number of the message within the boot: a gap shows losses."""
    events: tuple[WireEvent, ...]


class Beat(msgspec.Struct, array_like=True, frozen=True, tag="beat"):
    """All unfinished sessions now: who joins late or lost messages is up to date after one."""

    boot: str
    seq: int
    now_ps: int
    wall_ns: int
    sessions: tuple[WireSession, ...]


class EngineState(msgspec.Struct, array_like=True, frozen=True, tag="engine"):
    """KV cache and queues of an engine now."""

    boot: str
    seq: int
    now_ps: int
    num_blocks: int
    free_blocks: int
    pinned_blocks: int
    running: int
    waiting: int


Message = Batch | Beat | EngineState


class Numbered(Protocol):
    """Whatever has the index that events give a session."""

    @property
    def session(self) -> int: ...


class Streamed(Numbered, Protocol):
    """What a beat says of a session."""

    @property
    def parent(self) -> Numbered | None: ...
    @property
    def arrival_ps(self) -> int: ...
    @property
    def turn_index(self) -> int: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def context_tokens(self) -> int: ...
    @property
    def served_tokens(self) -> int: ...
    @property
    def phase(self) -> str: ...


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Message)


def wire_event(event: Event, session_id: str) -> WireEvent:
    """Return the message that carries an event."""
    return WireEvent(
        to_ps(event.time_s),
        int(event.kind),
        event.session,
        event.turn,
        event.call,
        event.args,
        event.name,
        event.tool_class,
        session_id,
    )


def wire_session(state: Streamed, session_id: str) -> WireSession:
    """Return the message that carries what is known of a session."""
    return WireSession(
        state.session,
        session_id,
        -1 if state.parent is None else state.parent.session,
        state.arrival_ps,
        state.turn_index,
        state.prompt_tokens,
        state.context_tokens,
        state.served_tokens,
        state.phase,
    )


def encode(message: Message) -> list[bytes]:
    """Pack a message into the parts that ZeroMQ sends."""
    return [TOPIC, _ENCODER.encode(message)]


def decode(parts: list[bytes]) -> Message:
    """Unpack a message from ZeroMQ parts; EngineError if it is of another version or damaged."""
    if len(parts) != 2 or not parts[0].startswith(TOPIC_PREFIX):
        raise EngineError("event stream: not a message of marsbench")
    if parts[0] != TOPIC:
        version = parts[0].removeprefix(TOPIC_PREFIX).decode("ascii", "replace")
        raise EngineError(
            f"event stream: version {version}, this reads {VERSION}; run the same marsbench on "
            "both sides"
        )
    try:
        message: Message = _DECODER.decode(parts[1])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EngineError(f"event stream: damaged message: {error}") from error
    return message
