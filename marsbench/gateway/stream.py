"""The event stream over ZeroMQ, so that an engine plug-in hears what the gateway knows.

Two-part messages: a topic that carries the version, and msgpack. ``Batch`` holds events, ``Beat``
the sessions that are active, sent about once a second: who joins late or lost messages is up to
date after one beat. Sequence numbers show losses, the boot id shows a restarted gateway. Nothing
here carries prompts or replies.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import zmq

from marsbench.core import PS_PER_S, to_ps
from marsbench.errors import ConfigError, EngineError
from marsbench.events import Event, Kind
from marsbench.gateway.sessions import LiveSession

STREAM_VERSION = 1
TOPIC_PREFIX = b"marsbench.events."
TOPIC = TOPIC_PREFIX + str(STREAM_VERSION).encode()
BEAT_S = 1.0
HIGH_WATER = 100_000
"""Messages queued for a slow subscriber before the oldest go missing (it sees the gap)."""
MAX_BYTES = 16 << 20


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

    def event(self) -> Event:
        """As policies receive it."""
        return Event(
            self.time_ps / PS_PER_S,
            Kind(self.kind),
            self.session,
            self.turn,
            self.call,
            self.args,
            self.name,
            self.tool_class,
        )


class WireSession(msgspec.Struct, array_like=True, frozen=True):
    """An active session, as of a beat."""

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
    seq: int
    events: tuple[WireEvent, ...]


class Beat(msgspec.Struct, array_like=True, frozen=True, tag="beat"):
    """All active sessions now. ``wall_ns`` ties the gateway's clock to the time of day."""

    boot: str
    seq: int
    now_ps: int
    wall_ns: int
    sessions: tuple[WireSession, ...]


Message = Batch | Beat

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> list[bytes]:
    """A message as ZeroMQ parts."""
    return [TOPIC, _ENCODER.encode(message)]


def decode(parts: list[bytes]) -> Message:
    """A message from ZeroMQ parts; EngineError if it is of another version or damaged."""
    if len(parts) != 2 or not parts[0].startswith(TOPIC_PREFIX):
        raise EngineError("event stream: not a message of a marsbench gateway")
    if parts[0] != TOPIC:
        version = parts[0].removeprefix(TOPIC_PREFIX).decode("ascii", "replace")
        raise EngineError(
            f"event stream: version {version}, this reads {STREAM_VERSION}; run the same marsbench "
            "on both sides"
        )
    try:
        message: Message = _DECODER.decode(parts[1])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EngineError(f"event stream: damaged message: {error}") from error
    return message


class Publisher:
    """The gateway's end. Sending never blocks; without subscribers it costs next to nothing."""

    def __init__(
        self,
        address: str,
        active: Mapping[int, LiveSession],
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.boot = secrets.token_hex(8)
        self.seq = 0
        self._active = active
        self._wall_ns = wall_ns
        self._beat_ps = -to_ps(BEAT_S)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.LINGER, 100)
        self._socket.setsockopt(zmq.SNDHWM, HIGH_WATER)
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(f"--publish {address}: cannot bind: {error}") from error
        if address.startswith("ipc://"):
            with contextlib.suppress(OSError):  # an abstract socket has no file
                Path(address.removeprefix("ipc://")).chmod(0o600)

    def event(self, event: Event, session_id: str) -> None:
        """Send one event."""
        wire = WireEvent(
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
        self._send(Batch(self.boot, self.seq, (wire,)))

    def beat(self, now_ps: int) -> None:
        """Send the active sessions, if the last beat is old enough."""
        if now_ps - self._beat_ps < to_ps(BEAT_S):
            return
        self._beat_ps = now_ps
        sessions = tuple(_wire_session(session) for session in self._active.values())
        self._send(Beat(self.boot, self.seq, now_ps, self._wall_ns(), sessions))

    def close(self) -> None:
        """Send what is queued and close."""
        self._socket.close()
        self._context.term()

    def _send(self, message: Message) -> None:
        self.seq += 1
        with contextlib.suppress(zmq.Again):
            self._socket.send_multipart(encode(message), zmq.NOBLOCK)


class Subscriber:
    """The engine's end: polled between steps, never blocks longer than it is told to.

    ZeroMQ reconnects by itself; ``lost`` counts messages that never came, ``restarts`` gateways that
    began anew. After either, the next Beat says which sessions there are.
    """

    def __init__(self, address: str, now_s: Callable[[], float] = time.monotonic) -> None:
        self.boot = ""
        self.lost = 0
        self.restarts = 0
        self._next = -1
        self._now_s = now_s
        self._heard_s = -1.0
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.RCVHWM, HIGH_WATER),
            (zmq.RECONNECT_IVL, 50),
            (zmq.RECONNECT_IVL_MAX, 1000),
            (zmq.MAXMSGSIZE, MAX_BYTES),
        ):
            self._socket.setsockopt(option, value)
        self._socket.setsockopt(zmq.SUBSCRIBE, TOPIC_PREFIX)
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(f"event stream {address!r}: cannot connect: {error}") from error

    def poll(self, timeout_ms: int = 0, max_messages: int = 1000) -> list[Message]:
        """Messages that have come, in order; waits at most ``timeout_ms`` for the first."""
        found: list[Message] = []
        while len(found) < max_messages and self._socket.poll(0 if found else timeout_ms):
            message = decode(self._socket.recv_multipart(zmq.NOBLOCK))
            self._account(message)
            found.append(message)
        return found

    def alive(self, max_age_s: float = 3 * BEAT_S) -> bool:
        """Whether the gateway was heard of lately."""
        return self._heard_s >= 0 and self._now_s() - self._heard_s <= max_age_s

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()
        self._context.term()

    def _account(self, message: Message) -> None:
        self._heard_s = self._now_s()
        if message.boot != self.boot:
            self.restarts += bool(self.boot)
            self.boot = message.boot
        elif message.seq > self._next:
            self.lost += message.seq - self._next
        self._next = message.seq + 1


def _wire_session(session: LiveSession) -> WireSession:
    return WireSession(
        session.session,
        session.session_id,
        -1 if session.parent is None else session.parent.session,
        session.arrival_ps,
        session.turn_index,
        session.prompt_tokens,
        session.context_tokens,
        session.served_tokens,
        session.phase,
    )
