"""HTTP/1.1 to a backend on asyncio's protocols: a body is handed on inside the read that brought it.

Parsing is httptools' (llhttp, as in Node.js and uvicorn), sockets and TLS are the event loop's; what
stands here is the pool of connections and the life of one request. No task wakes up and no queue is
passed for a stream's event, which is most of what a general client costs.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import Callable, Iterable
from typing import cast
from urllib.parse import urlsplit

import httptools

from marsbench.gateway.problems import ApiProblem

KEEP_ALIVE_S = 3.0
"""Of idle connections to backends; uvicorn, which vLLM runs on, closes its own after 5 s."""
SMALL_BYTES = 1 << 16
"""A request's body up to this goes out in one piece with its head."""
logger = logging.getLogger(__name__)
_UNSAFE = re.compile(r"[\r\n\0]")

Sink = Callable[[bytes], None]


class UpstreamError(Exception):
    """A backend did not answer as HTTP has it."""


class NotSentError(UpstreamError):
    """No connection: nothing of the request has reached the backend."""


class SilentError(UpstreamError):
    """Not a byte for as long as the operator allows."""


class BrokenOffError(UpstreamError):
    """The connection ended before the answer did, or what came is no HTTP."""


class Connection(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.idle_since_s = 0.0
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._head: asyncio.Future[None] | None = None
        self._end: asyncio.Future[None] | None = None
        """While a request is under way."""
        self._sink: Sink | None = None
        self._early: list[bytes] = []
        """Of the body, before anybody asked for it."""
        self._until_close = False
        """The body has no length: it ends with the connection."""
        self._informational = False
        self._excess = False
        """More has come than was asked for; the connection is of no use."""
        self._reusable = True
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._heard_s = 0.0
        self._silence_s = 0.0

    # --- a request ---------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """Another request may be sent."""
        return (
            self._reusable
            and not self._paused
            and self._transport is not None
            and not self._transport.is_closing()
        )

    async def ask(self, head: bytes, content: bytes, silence_s: float) -> None:
        """Send a request and wait for the head of its answer (``status``, ``headers``)."""
        assert self._transport is not None
        self._reusable = False  # until the answer has been read to its end
        self._early.clear()
        self._sink = None
        self._head, self._end = self._loop.create_future(), self._loop.create_future()
        self._heard_s, self._silence_s = self._loop.time(), silence_s
        self._timer = self._loop.call_later(silence_s, self._look)
        if len(content) <= SMALL_BYTES:
            self._transport.write(head + content)
        else:
            self._transport.write(head)
            self._transport.write(content)
        await self._head

    async def body(self, sink: Sink) -> None:
        """Hand each part of the body to ``sink``, at once; returns at its end."""
        assert self._end is not None
        for part in self._early:
            sink(part)
        self._early.clear()
        self._sink = sink
        await self._end

    def pause(self) -> None:
        """Read no more for now: whom the answer is for does not take it."""
        if self._transport is not None and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()
            self._silence_s = float("inf")

    def resume(self, silence_s: float) -> None:
        """Read on."""
        if self._transport is not None and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()
            self._heard_s, self._silence_s = self._loop.time(), silence_s
            self._watch()

    def close(self) -> None:
        """End the connection at once."""
        self._fail(BrokenOffError("closed"))

    # --- asyncio's callbacks -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        self._heard_s = self._loop.time()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            logger.exception("an answer could not be passed on")
            self._fail(BrokenOffError(type(error).__name__))
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(BrokenOffError(f"no HTTP: {type(error).__name__}"))

    def eof_received(self) -> None:
        if self._until_close:
            self.on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(BrokenOffError("the connection ended"))

    # --- httptools' callbacks ----------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._end is None or self._end.done():
            self._excess = True
            self._fail(BrokenOffError("an answer that nobody asked for"))
            return
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._informational = 100 <= self.status < 200
        if self._informational or self._excess or self._head is None:
            return
        names = {name for name, _ in self.headers}
        bodiless = self.status in {204, 304}
        self._until_close = not bodiless and not names & {b"content-length", b"transfer-encoding"}
        if not self._head.done():
            self._head.set_result(None)

    def on_body(self, body: bytes) -> None:
        if self._excess:
            return
        if self._sink is not None:
            self._sink(body)
        else:
            self._early.append(body)

    def on_message_complete(self) -> None:
        if self._informational or self._excess or self._end is None or self._end.done():
            return
        self._stop_watching()
        self._reusable = not self._until_close and self._parser.should_keep_alive()
        self._end.set_result(None)

    # --- its own -----------------------------------------------------------------------------

    def _fail(self, error: UpstreamError) -> None:
        """Nothing more will come; whoever waits hears why."""
        self._reusable = False
        self._stop_watching()
        for future in (self._head, self._end):
            if future is not None and not future.done():
                future.set_exception(error)
                future.exception()  # it may be that nobody waits for both
        if self._transport is not None and not self._transport.is_closing():
            self._transport.abort()

    def _look(self) -> None:
        """A timer that is set anew for each event would cost more than the event."""
        self._timer = None
        if self._loop.time() - self._heard_s >= self._silence_s:
            self._fail(SilentError(f"no byte for {self._silence_s:g} s"))
        else:
            self._watch()

    def _watch(self) -> None:
        if self._timer is None and self._silence_s != float("inf"):
            left_s = self._heard_s + self._silence_s - self._loop.time()
            self._timer = self._loop.call_later(max(left_s, 0.001), self._look)

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class UpstreamPool:
    """The connections to one backend."""

    def __init__(self, url: str, *, connect_s: float, silence_s: float) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._prefix = parts.path.rstrip("/")
        self._netloc = parts.netloc
        self._connect_s = connect_s
        self.silence_s = silence_s
        """Longest time without a byte of an answer."""
        self._idle: list[Connection] = []

    async def ask(
        self, path: str, headers: Iterable[tuple[str, str]], content: bytes
    ) -> Connection:
        """Send a POST and wait for the head of the answer. ``give_back`` or ``close`` what is
        returned.

        Raises NotSentError, SilentError or BrokenOffError.
        """
        head = self._request_head(path, headers, len(content))
        connection = self._reused() or await self._connect()
        try:
            await connection.ask(head, content, self.silence_s)
        except BaseException:
            connection.close()
            raise
        return connection

    def give_back(self, connection: Connection) -> None:
        """Take back a connection whose answer has been read, or of which nobody wants the rest."""
        if connection.usable:
            connection.idle_since_s = asyncio.get_running_loop().time()
            self._idle.append(connection)
        else:
            connection.close()

    def tidy(self) -> None:
        """Close connections that have been idle for too long."""
        oldest_s = asyncio.get_running_loop().time() - KEEP_ALIVE_S
        for connection in self._idle:
            if connection.idle_since_s < oldest_s:
                connection.close()
        self._idle = [connection for connection in self._idle if connection.usable]

    def close(self) -> None:
        """Close what is idle."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def _reused(self) -> Connection | None:
        oldest_s = asyncio.get_running_loop().time() - KEEP_ALIVE_S
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.idle_since_s >= oldest_s:
                return connection
            connection.close()
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(loop), self._host, self._port, ssl=self._tls
                )
        except (OSError, TimeoutError) as error:  # TLS errors are OSErrors
            raise NotSentError(type(error).__name__) from error
        return connection

    def _request_head(self, path: str, headers: Iterable[tuple[str, str]], num_bytes: int) -> bytes:
        lines = [f"POST {self._prefix}{path} HTTP/1.1", f"host: {self._netloc}"]
        lines += [f"{name}: {value}" for name, value in headers]
        lines.append(f"content-length: {num_bytes}")
        if any(_UNSAFE.search(line) for line in lines):
            raise ApiProblem(400, "a header holds a line break", code="invalid_header")
        return "\r\n".join([*lines, "\r\n"]).encode("latin-1", "replace")
