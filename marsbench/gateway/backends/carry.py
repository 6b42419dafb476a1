"""One request to a backend and its answer to the client, bytes as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from marsbench.gateway.backends.messages import Send, downstream_headers
from marsbench.gateway.backends.upstream import Connection, SilentError, UpstreamError, UpstreamPool
from marsbench.gateway.messages.reply import Reply
from marsbench.gateway.messages.stream import StreamPass
from marsbench.gateway.problems import ApiProblem, as_openai, error_body

MAX_ERROR_BYTES = 1 << 20
STREAM_TYPE = b"text/event-stream"


class Wire(Protocol):
    """A client's connection below ASGI: parts of a body need no coroutine each."""

    def write_part(self, data: bytes) -> None:
        """Send a chunk of the response's body, now; nothing happens if the client has gone."""
        ...

    def when_full(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Call these when the client does not take its bytes, and when it does again."""
        ...

    def abort(self) -> None:
        """Cut the connection without waiting for the client to read."""
        ...


def _nothing() -> None:
    """Nobody waits."""


class ClientSide:
    """Who asked: its side of one turn, and how much of the response it has."""

    def __init__(self, send: Send, wire: Wire, session_id: str, now_s: Callable[[], float]) -> None:
        self.wire = wire
        self.started = False
        """The response's head has gone to the client."""
        self.finished = False
        self.stalled_since_s: float | None = None
        """A byte for the client has been waiting since then."""
        self._now_s = now_s
        self._send = send
        self._session_id = session_id

    async def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Send the response's head."""
        self.started = True
        own = (b"x-session-id", self._session_id.encode("utf-8", "replace"))
        await self._asgi(
            {"type": "http.response.start", "status": status, "headers": [*headers, own]}
        )

    def pass_on(self, data: bytes) -> None:
        """Send some of the response's body, of a response without a length."""
        self.wire.write_part(data)

    async def end(self, data: bytes) -> None:
        """Send the rest of the response's body."""
        self.finished = True
        await self._asgi({"type": "http.response.body", "body": data, "more_body": False})

    async def whole(self, status: int, headers: Iterable[tuple[bytes, bytes]], data: bytes) -> None:
        """Send a complete response."""
        length = (b"content-length", str(len(data)).encode())
        await self.start(status, [*headers, length])
        await self.end(data)

    async def break_off(self, status: int, reason: str) -> None:
        """End a stream that cannot go on, after saying so in it, as the OpenAI API does."""
        await self.end(b"data: " + error_body(status, reason, "upstream") + b"\n\n")

    def read_no_faster(self, connection: Connection, silence_s: float) -> None:
        """Read a backend's connection only as fast as the client reads."""

        def pause() -> None:
            self.stalled_since_s = self._now_s()
            connection.pause()

        def resume() -> None:
            self.stalled_since_s = None
            connection.resume(silence_s)

        self.wire.when_full(pause, resume)

    def read_freely(self) -> None:
        """Stop holding the backend back: nothing is read for the client any more."""
        self.wire.when_full(_nothing, _nothing)

    async def _asgi(self, message: dict[str, object]) -> None:
        self.stalled_since_s = self._now_s()
        await self._send(message)
        self.stalled_since_s = None


@dataclass(frozen=True, slots=True)
class UpstreamOrder:
    """What one turn asks of a backend."""

    path: str
    headers: list[tuple[str, str]]
    content: bytes
    hide_usage: bool
    """The token counts in the stream were asked for by us."""
    max_bytes: int
    """Of an answer that is no stream."""


class Heard(Protocol):
    """What a turn's way through a backend tells while it goes on."""

    def status(self, status: int) -> None:
        """Hear the head of the answer."""
        ...

    def first(self) -> None:
        """Hear that the first output has come."""
        ...

    def broke(self, error: UpstreamError) -> None:
        """Hear that the stream broke off. The client has been told so."""
        ...


async def carry(
    upstream: UpstreamPool, order: UpstreamOrder, client: ClientSide, reply: Reply, heard: Heard
) -> int:
    """Send an order, and its answer to the client; returns the status.

    Raises NotSentError while nothing has been sent; ApiProblem for an answer that cannot be passed
    on, before the client has had a byte of it.
    """
    connection = await upstream.ask(order.path, order.headers, order.content)
    try:
        heard.status(connection.status)
        if connection.status != 200:
            return await _pass_error(connection, client)
        kind = next((v for n, v in connection.headers if n == b"content-type"), b"")
        if kind.startswith(STREAM_TYPE):
            await _pass_stream(connection, client, reply, heard, order, upstream.silence_s)
        else:
            await _pass_whole(connection, client, reply, heard, order.max_bytes)
    finally:
        upstream.give_back(connection)  # which is closed if the answer was not read to its end
    return 200


async def _pass_error(connection: Connection, client: ClientSide) -> int:
    try:
        data = await _read(connection, MAX_ERROR_BYTES)
    except UpstreamError:
        data = b""
    status = connection.status if connection.status >= 400 else 502
    headers = [(b"content-type", b"application/json")]
    headers += [(name, value) for name, value in connection.headers if name == b"retry-after"]
    await client.whole(status, headers, as_openai(status, data))
    return status


async def _pass_whole(
    connection: Connection, client: ClientSide, reply: Reply, heard: Heard, max_bytes: int
) -> None:
    try:
        data = await _read(connection, max_bytes)
    except SilentError as error:
        raise ApiProblem(504, "the backend stopped answering", code="timeout") from error
    except UpstreamError as error:
        raise ApiProblem(502, "the backend broke off its answer", code="upstream") from error
    reply.feed(data)
    if reply.garbage:
        raise ApiProblem(502, "the backend's answer is not JSON", code="bad_upstream_json")
    heard.first()
    await client.whole(200, downstream_headers(connection.headers), data)


async def _pass_stream(
    connection: Connection,
    client: ClientSide,
    reply: Reply,
    heard: Heard,
    order: UpstreamOrder,
    silence_s: float,
) -> None:
    await client.start(200, downstream_headers(connection.headers))
    client.read_no_faster(connection, silence_s)
    passing = StreamPass(reply, hide_usage=order.hide_usage)
    seen = False

    def sink(data: bytes) -> None:
        nonlocal seen
        out = passing.feed(data)
        if not seen and reply.events:
            seen = True
            heard.first()
        if out:
            client.pass_on(out)

    try:
        await connection.body(sink)
    except UpstreamError as error:
        heard.broke(error)
        reply.error = "the backend broke off its answer"
        await client.break_off(504 if isinstance(error, SilentError) else 502, reply.error)
    else:
        client.read_freely()
        await client.end(passing.finish())
    finally:
        client.read_freely()
        passing.finish()  # of a turn that was cancelled, too, what has passed is counted


async def _read(connection: Connection, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0

    def sink(data: bytes) -> None:
        nonlocal size
        parts.append(data)
        size += len(data)
        if size > limit:
            connection.close()

    try:
        await connection.body(sink)
    except UpstreamError:
        if size <= limit:
            raise
    if size > limit:
        raise ApiProblem(502, "the backend's answer is too large", code="upstream_too_large")
    return b"".join(parts)
