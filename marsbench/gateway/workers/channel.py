"""Messages between the main process and a worker: length and msgpack, over a Unix socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, cast

import msgspec

LENGTH_BYTES = 4


class WorkerChannel(asyncio.Protocol):
    """One end. What is sent in one turn of the event loop goes out in one piece."""

    def __init__(self, kinds: Any, hear: Callable[[Any], None], lost: Callable[[], None]) -> None:
        """``hear`` gets each message (of ``kinds``), in order; ``lost`` is called at the end."""
        self._decode = msgspec.msgpack.Decoder(kinds).decode
        self._encode = msgspec.msgpack.Encoder().encode
        self._hear = hear
        self._lost = lost
        self._in = bytearray()
        self._out: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()

    async def open(self, sock: socket.socket) -> None:
        """Talk over this socket."""
        await self._loop.create_unix_connection(lambda: self, sock=sock)

    def send(self, message: msgspec.Struct) -> None:
        """Send a message; nothing happens if the other end has gone."""
        if self._transport is None or self._transport.is_closing():
            return
        data = self._encode(message)
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out += (len(data).to_bytes(LENGTH_BYTES, "little"), data)

    def close(self) -> None:
        """Send what is still to be sent, and close."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    # --- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        self._in += data
        at = 0
        with memoryview(self._in) as view:
            while at + LENGTH_BYTES <= len(view):
                start = at + LENGTH_BYTES
                end = start + int.from_bytes(self._in[at:start], "little")
                if end > len(view):
                    break
                with view[start:end] as part:
                    message = self._decode(part)
                at = end
                self._hear(message)
        del self._in[:at]

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost()

    def _flush(self) -> None:
        if self._out and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(self._out))
        self._out.clear()
