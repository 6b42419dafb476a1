"""Messages between a control plane and a scheduler: msgpack arrays under a versioned topic.

``Batch`` and ``Beat`` are byte for byte what a gateway publishes (``marsbench.gateway.stream``), so a
scheduler that listens to a run's driver understands a gateway too. ``EngineState`` goes the other
way. Nothing here carries prompts or replies.
"""

from __future__ import annotations

import msgspec

from marsbench.errors import EngineError

VERSION = 1
TOPIC_PREFIX = b"marsbench.events."
TOPIC = TOPIC_PREFIX + str(VERSION).encode()
BEAT_S = 1.0


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
    """Events in order."""

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

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> list[bytes]:
    """A message as ZeroMQ parts."""
    return [TOPIC, _ENCODER.encode(message)]


def decode(parts: list[bytes]) -> Message:
    """A message from ZeroMQ parts; EngineError if it is of another version or damaged."""
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
