"""Turns through the gateway: admission, the backend, the reply as it comes, and what was learned."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import aiohttp

from marsbench.core import to_s
from marsbench.gateway.backends import Backend, Pool
from marsbench.gateway.classify import classify
from marsbench.gateway.control import ControlPlane, TurnEnd
from marsbench.gateway.exchange import (
    PATHS,
    EngineHints,
    Exchange,
    Receive,
    downstream_headers,
    upstream_body,
    upstream_headers,
)
from marsbench.gateway.meters import Meters
from marsbench.gateway.problems import ApiProblem, as_openai, error_body
from marsbench.gateway.reply import EventSplitter, Reply, event_data
from marsbench.gateway.sessions import LiveSession, OpenCall
from marsbench.gateway.settings import GatewaySettings

logger = logging.getLogger(__name__)

MAX_ERROR_BYTES = 1 << 20
LARGE_BYTES = 1 << 20
STREAM_TYPE = "text/event-stream"
CLOSED_BY_CLIENT = 499
WORTH_RETRYING = frozenset((408, 409, 425, 429, CLOSED_BY_CLIENT))
"""Client errors after which a session may go on; after others a session that has just begun ends."""


class TurnObserver(Protocol):
    """Sees every turn beside the control plane: the recorder."""

    def sent(self, exchange: Exchange, at_ps: int) -> None:
        """The turn goes to a backend."""
        ...

    def done(self, exchange: Exchange, reply: Reply, end: TurnEnd, at_ps: int) -> None:
        """The turn has ended."""
        ...


class Proxy:
    """Carries requests of sessions to backends and back."""

    def __init__(
        self,
        settings: GatewaySettings,
        control: ControlPlane,
        pool: Pool,
        meters: Meters,
        *,
        priority: Callable[[LiveSession], int | None],
        observers: Sequence[TurnObserver] = (),
    ) -> None:
        self.in_flight: dict[asyncio.Task[None], Exchange] = {}
        self._settings = settings
        self._control = control
        self._pool = pool
        self._meters = meters
        self._priority = priority
        self._observers = observers

    async def run(self, exchange: Exchange, receive: Receive) -> None:
        """Serve one request; if its client goes away, so does the request upstream.

        ``exchange.session`` must be in phase pending (``ControlPlane.ready``).
        """
        work = asyncio.create_task(self._turn(exchange))
        gone = asyncio.create_task(_disconnected(receive))
        self.in_flight[work] = exchange
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self._meters.disconnects.inc()
                work.cancel()
                await asyncio.wait({work})
            if not work.cancelled():
                work.result()
        finally:
            gone.cancel()
            if not work.done():
                work.cancel()
                await asyncio.wait({work})
            del self.in_flight[work]

    def drop_stalled(self, send_s: float) -> None:
        """Cancel turns whose client has not taken a byte for ``send_s``."""
        now_s = self._control.bus.clock.now_s()
        for work, exchange in list(self.in_flight.items()):
            since = exchange.stalled_since_s
            if since is not None and now_s - since > send_s:
                self._meters.stalled.inc()
                work.cancel()
                if exchange.abort is not None:
                    exchange.abort()

    async def _turn(self, exchange: Exchange) -> None:
        """Admission, then the backend. Whatever happens, the control plane hears of the end."""
        session = exchange.session
        control = self._control
        reply = Reply()
        status = CLOSED_BY_CLIENT
        try:
            await control.wait(session)
            control.table.remember(session, exchange.prompt)
            for observer in self._observers:
                observer.sent(exchange, control.bus.clock.now_ps())
            status = await self._exchange(exchange, reply)
        except ApiProblem as problem:
            status = problem.status
            if exchange.started:
                raise
            await exchange.whole(problem.status, problem.headers(), problem.body())
        finally:
            self._meters.requests.labels(exchange.api, str(status)).inc()
            if session.phase == "engine":
                self._finish(exchange, reply, status)
            elif session.phase == "pending":
                control.withdraw(session)

    def _finish(self, exchange: Exchange, reply: Reply, status: int) -> None:
        session = exchange.session
        ok = status < 400 and exchange.finished and not reply.error
        output = reply.output_tokens
        if output is None:
            output = estimate_output(reply, session)
            self._meters.estimated.inc(ok)
        hopeless = 400 <= status < 500 and status not in WORTH_RETRYING and session.turns_sent == 1
        calls = tuple(
            OpenCall(index, call.call_id, call.name, classify(call.name, call.arguments))
            for index, call in enumerate(reply.calls.values())
        )
        end = TurnEnd(
            ok=ok,
            output_tokens=output,
            prompt_tokens=reply.prompt_tokens,
            cached_tokens=reply.cached_tokens,
            calls=calls if ok else (),
            is_last=exchange.identity.is_last or hopeless,
        )
        self._control.table.replied(session, reply.print() if ok else None, reply.response_id)
        at_ps = self._control.bus.clock.now_ps()
        for observer in self._observers:
            observer.done(exchange, reply, end, at_ps)
        self._meters.turn_s.observe(to_s(at_ps - session.phase_since_ps))
        self._control.finished(session, exchange.prompt, end)

    async def _exchange(self, exchange: Exchange, reply: Reply) -> int:
        """Send the request upstream and the answer back; returns the status."""
        response, backend = await self._open(exchange)
        try:
            if response.status >= 500:
                self._pool.failed(backend.index, f"answers {response.status}", answered=True)
            else:
                self._pool.succeeded(backend.index)
            if response.status != 200:
                return await self._pass_error(exchange, response)
            if response.headers.get("content-type", "").startswith(STREAM_TYPE):
                await self._pass_stream(exchange, response, reply, backend)
            else:
                await self._pass_whole(exchange, response, reply)
        finally:
            response.close()  # keeps the connection if the answer was read to its end
        return 200

    async def _open(self, exchange: Exchange) -> tuple[aiohttp.ClientResponse, Backend]:
        """The backend's response head. Only what was never sent is tried elsewhere."""
        session = exchange.session
        tried: set[int] = set()
        while True:
            assert session.backend is not None
            backend = self._pool.backends[session.backend]
            try:
                return await self._post(exchange, backend), backend
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                self._pool.failed(backend.index, type(error).__name__)
                tried.add(backend.index)
                other = self._pool.reroute(session, tried)
                if other is None:
                    raise ApiProblem(
                        503,
                        "no backend can be reached",
                        code="no_backend",
                        retry_after_s=self._settings.waits.health_s,
                    ) from error
                self._meters.retries.inc()
                self._control.moved(session, other)
            except TimeoutError as error:
                self._pool.failed(backend.index, type(error).__name__)
                raise ApiProblem(
                    504, "the backend did not answer in time", code="timeout"
                ) from error
            except aiohttp.ClientError as error:
                self._pool.failed(backend.index, type(error).__name__)
                raise ApiProblem(
                    502, "the backend closed the connection before it answered", code="upstream"
                ) from error

    async def _post(self, exchange: Exchange, backend: Backend) -> aiohttp.ClientResponse:
        settings = self._settings
        hints = EngineHints(self._priority(exchange.session))
        content = upstream_body(
            exchange, is_vllm=backend.is_vllm, ask_usage=settings.ask_usage, hints=hints
        )
        headers = upstream_headers(
            exchange.headers, settings.upstream_key, own_auth=bool(settings.tokens)
        )
        # a file is sent in pieces, so that a long prompt does not hold up other streams
        data = content if len(content) < LARGE_BYTES else io.BytesIO(content)
        return await backend.client.post(
            backend.url + PATHS[exchange.api], data=data, headers=headers, allow_redirects=False
        )

    async def _pass_error(self, exchange: Exchange, response: aiohttp.ClientResponse) -> int:
        try:
            data = await _read(response, MAX_ERROR_BYTES)
        except (aiohttp.ClientError, TimeoutError):
            data = b""
        status = response.status if response.status >= 400 else 502
        headers = [(b"content-type", b"application/json")]
        if "retry-after" in response.headers:
            headers.append((b"retry-after", response.headers["retry-after"].encode()))
        await exchange.whole(status, headers, as_openai(status, data))
        return status

    async def _pass_whole(
        self, exchange: Exchange, response: aiohttp.ClientResponse, reply: Reply
    ) -> None:
        try:
            data = await _read(response, self._settings.limits.body_bytes)
        except TimeoutError as error:
            raise ApiProblem(504, "the backend stopped answering", code="timeout") from error
        except aiohttp.ClientError as error:
            raise ApiProblem(502, "the backend broke off its answer", code="upstream") from error
        reply.feed(data)
        if reply.garbage:
            self._meters.garbage.inc()
            raise ApiProblem(502, "the backend's answer is not JSON", code="bad_upstream_json")
        self._control.first_token(exchange.session)
        self._meters.ttft_s.observe(self._since(exchange))
        await exchange.whole(200, downstream_headers(response.raw_headers), data)

    async def _pass_stream(
        self, exchange: Exchange, response: aiohttp.ClientResponse, reply: Reply, backend: Backend
    ) -> None:
        await exchange.start(200, downstream_headers(response.raw_headers))
        splitter = EventSplitter()
        seen = False
        try:
            async for chunk in response.content.iter_any():
                events = splitter.feed(chunk)
                out = b"".join([e for e in events if not self._hidden(exchange, reply, e)])
                if not seen and reply.events:
                    seen = True
                    self._control.first_token(exchange.session)
                    self._meters.ttft_s.observe(self._since(exchange))
                if out:
                    await exchange.write(out)
        except (aiohttp.ClientError, TimeoutError) as error:
            self._pool.failed(backend.index, type(error).__name__)
            late = isinstance(error, TimeoutError)
            await self._break_off(exchange, reply, 504 if late else 502)
            return
        if reply.garbage:
            self._meters.garbage.inc()
        await exchange.write(splitter.flush(), more=False)

    async def _break_off(self, exchange: Exchange, reply: Reply, status: int) -> None:
        """The stream cannot go on: say so in it, as the OpenAI API does, and end it."""
        self._meters.broken.inc()
        reply.error = "the backend broke off its answer"
        event = b"data: " + error_body(status, reply.error, "upstream") + b"\n\n"
        await exchange.write(event, more=False)

    def _hidden(self, exchange: Exchange, reply: Reply, event: bytes) -> bool:
        """Read an event; True if only we asked for it."""
        data = event_data(event)
        return bool(data) and reply.feed(data) and exchange.added_usage

    def _since(self, exchange: Exchange) -> float:
        """Seconds since the turn went upstream."""
        return self._control.bus.clock.now_s() - exchange.session.phase_since_s


def estimate_output(reply: Reply, session: LiveSession) -> int:
    """Output tokens where the backend did not count them: one a stream event, or by length."""
    if not reply.output_bytes:
        return 0
    by_length = round(reply.output_bytes / (session.bytes_per_token or 4.0))
    return max(1, reply.events if reply.events > 1 else by_length)


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > limit:
            raise ApiProblem(502, "the backend's answer is too large", code="upstream_too_large")
    return b"".join(parts)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
