"""The client towards backends speaks HTTP/1.1 with whatever answers, and says what went wrong."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from marsbench.gateway.backends.upstream import (
    BrokenOffError,
    NotSentError,
    SilentError,
    UpstreamPool,
)
from marsbench.gateway.problems import ApiProblem

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@contextlib.asynccontextmanager
async def serving(*answers: bytes, close: bool = False, silence_s: float = 5.0):
    """An UpstreamPool to a server that gives these answers in turn, each to a whole request; and the
    requests it got, by connection."""
    seen: list[list[bytes]] = []
    left = list(answers)
    work: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        work.add(asyncio.current_task())
        mine: list[bytes] = []
        seen.append(mine)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
                mine.append(head + await reader.readexactly(size))
                writer.write(left.pop(0))
                await writer.drain()
                if close:
                    break
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    upstream = UpstreamPool(f"http://127.0.0.1:{port}/base", connect_s=2.0, silence_s=silence_s)
    try:
        yield upstream, seen
    finally:
        upstream.close()
        server.close()
        await asyncio.wait_for(asyncio.gather(*work), 10)
        await asyncio.sleep(0)  # for the transports of this side to be told


async def fetch(upstream: UpstreamPool, content: bytes = b"{}") -> tuple[int, bytes]:
    connection = await upstream.ask("/v1/x", [("a", "b")], content)
    parts: list[bytes] = []
    try:
        await connection.body(parts.append)
    finally:
        upstream.give_back(connection)
    return connection.status, b"".join(parts)


def test_a_connection_is_used_again_and_the_request_is_whole():
    """Two requests, one connection; path, host, headers and length are as HTTP wants them."""

    async def story():
        async with serving(OK, OK) as (upstream, seen):
            assert await fetch(upstream) == (200, b"ok")
            assert await fetch(upstream, b"x" * 100_000) == (200, b"ok")
            assert len(seen) == 1
            first, second = seen[0]
            assert first.startswith(b"POST /base/v1/x HTTP/1.1\r\nhost: 127.0.0.1:")
            assert b"\r\na: b\r\n" in first
            assert second.endswith(b"x" * 100_000)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"ok"),
        (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK, b"ok"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    ],
)
def test_answers_of_every_framing_are_read_to_their_end(answer, body):
    """Informational heads are passed over, and the connection stays good."""

    async def story():
        async with serving(answer, OK) as (upstream, seen):
            assert (await fetch(upstream))[1] == body
            assert await fetch(upstream) == (200, b"ok")
            assert len(seen) == 1

    asyncio.run(story())


def test_a_body_without_a_length_ends_with_its_connection():
    """HTTP/1.0's way: all of it comes, and the next request gets a connection of its own."""

    async def story():
        answer = b"HTTP/1.1 200 OK\r\n\r\nall of it"
        async with serving(answer, answer, close=True) as (upstream, seen):
            assert await fetch(upstream) == (200, b"all of it")
            assert await fetch(upstream) == (200, b"all of it")
            assert len(seen) == 2

    asyncio.run(story())


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhal",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_answers_that_break_off_or_are_no_http_are_errors(answer):
    """Never a short body that looks whole."""

    async def story():
        async with serving(answer, close=True) as (upstream, _):
            with pytest.raises(BrokenOffError):
                await fetch(upstream)

    asyncio.run(story())


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"])
def test_silence_ends_a_request_before_and_within_its_answer(answer):
    """Not a byte for silence_s."""

    async def story():
        async with serving(answer, silence_s=0.1) as (upstream, _):
            with pytest.raises(SilentError, match=r"0\.1 s"):
                await fetch(upstream)

    asyncio.run(story())


def test_nobody_listens():
    """It is known that nothing was sent, so another backend may have the turn."""

    async def story():
        async with serving() as (upstream, _):
            pass
        await asyncio.sleep(0.05)
        with pytest.raises(NotSentError, match="Refused"):
            await fetch(upstream)

    asyncio.run(story())


def test_bytes_that_nobody_asked_for_cost_the_connection():
    """A second answer on an idle connection is not the next request's."""

    async def story():
        async with serving(OK + OK.replace(b"ok", b"no"), OK) as (upstream, seen):
            assert await fetch(upstream) == (200, b"ok")
            assert await fetch(upstream) == (200, b"ok")
            assert len(seen) == 2

    asyncio.run(story())


def test_a_header_cannot_bring_another():
    """A line break in a value would be a header of the client's making."""

    async def story():
        async with serving(OK) as (upstream, seen):
            with pytest.raises(ApiProblem, match="line break"):
                await upstream.ask("/v1/x", [("a", "b\r\nx-admin: 1")], b"{}")
            assert seen == []

    asyncio.run(story())


def test_paused_reading_is_no_silence_and_loses_nothing():
    """While the client does not read, the backend waits; all of its bytes come afterwards."""

    async def story():
        body = b"x" * 3_000_000
        answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        async with serving(answer, silence_s=0.2) as (upstream, _):
            connection = await upstream.ask("/v1/x", [], b"{}")
            got: list[bytes] = []
            connection.pause()
            reading = asyncio.create_task(connection.body(got.append))
            await asyncio.sleep(0.5)
            early = sum(map(len, got))
            assert not reading.done()
            assert early < len(body)
            connection.resume(0.2)
            await reading
            assert b"".join(got) == body
            upstream.give_back(connection)

    asyncio.run(story())
