"""The two ends of a one-way stream: neither ever blocks, waits for the other, or outlives its owner."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import zmq

from marsbench.engine.link.wire import TOPIC_PREFIX, Message, decode, encode
from marsbench.errors import ConfigError, EngineError

HIGH_WATER = 100_000
"""Messages queued for a slow reader before further ones go missing (it sees the gap)."""
MAX_BYTES = 16 << 20
MAX_MESSAGES = 1000
"""Read at once; the rest waits for the next poll."""


class Outlet:
    """The writing end. Without readers sending costs next to nothing."""

    def __init__(self, address: str) -> None:
        self.boot = secrets.token_hex(8)
        self.seq = 0
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.LINGER, 100)
        self._socket.setsockopt(zmq.SNDHWM, HIGH_WATER)
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(f"event stream {address!r}: cannot bind: {error}") from error
        if address.startswith("ipc://"):
            with contextlib.suppress(OSError):  # an abstract socket has no file
                Path(address.removeprefix("ipc://")).chmod(0o600)

    def begin(self) -> None:
        """Begin a new run: what is sent from now on belongs to it."""
        self.boot = secrets.token_hex(8)
        self.seq = 0

    def send(self, message: Message) -> None:
        """Send a message made with the current ``boot`` and ``seq``."""
        self.seq += 1
        with contextlib.suppress(zmq.Again):
            self._socket.send_multipart(encode(message), zmq.NOBLOCK)

    def close(self) -> None:
        """Send what is queued and close."""
        self._socket.close()
        self._context.term()


class Inlet:
    """The reading end; ZeroMQ reconnects by itself.

    ``lost`` counts messages that never came, ``restarts`` writers that began anew, ``damaged``
    messages that could not be read (``problem`` says why, of the last).
    """

    def __init__(self, address: str, now_s: Callable[[], float] = time.monotonic) -> None:
        self.boot = ""
        self.lost = 0
        self.restarts = 0
        self.damaged = 0
        self.problem = ""
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

    def poll(self) -> list[Message]:
        """Return the messages that have come, in order. It never waits and never raises for what
        came.
        """
        found: list[Message] = []
        if not int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            return found  # cheaper to ask than to be told by an exception
        for _ in range(MAX_MESSAGES):
            # To ask first is cheap. To receive gives up the interpreter's lock, and in a server
            # another thread may then keep it from a scheduler that found nothing.
            if not int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                break
            parts = self._socket.recv_multipart(zmq.NOBLOCK)
            try:
                message = decode(parts)
            except EngineError as error:
                self.damaged += 1
                self.problem = str(error)
                continue
            self._account(message)
            found.append(message)
        return found

    @property
    def age_s(self) -> float:
        """Time since the last message; infinite before the first."""
        return self._now_s() - self._heard_s if self._heard_s >= 0 else float("inf")

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


class RemoteClock:
    """Turns times of another process into ours.

    A message is never here before it was sent, so the smallest difference seen so far between our
    clock at receipt and its time is the best estimate of the clocks' offset.
    """

    def __init__(self) -> None:
        self._offset_ps: int | None = None

    def seen(self, remote_ps: int, here_ps: int) -> None:
        """Learn from a message that has just come how far the other's clock is from ours."""
        offset_ps = here_ps - remote_ps
        if self._offset_ps is None or offset_ps < self._offset_ps:
            self._offset_ps = offset_ps

    def here(self, remote_ps: int, now_ps: int) -> int:
        """Convert a past time of the other's clock to ours; the result is never after ``now_ps``."""
        return min(now_ps, self.later(remote_ps))

    def later(self, remote_ps: int) -> int:
        """Convert a time of the other's clock that is still to come to ours."""
        assert self._offset_ps is not None, "no message has been seen"
        return remote_ps + self._offset_ps
