"""Turns through the gateway: admission, the backend, the reply as it comes, and what was learned."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from marsbench.core import Phase, to_s
from marsbench.gateway.backends.carry import UpstreamOrder, carry
from marsbench.gateway.backends.exchange import (
    PATHS,
    EngineHints,
    Exchange,
    upstream_body,
)
from marsbench.gateway.backends.messages import Receive, upstream_headers
from marsbench.gateway.backends.pool import Backend, BackendPool
from marsbench.gateway.backends.upstream import NotSentError, SilentError, UpstreamError
from marsbench.gateway.control.plane import Plane, TurnEnd
from marsbench.gateway.control.sessions import LiveSession, OpenCall
from marsbench.gateway.messages.classify import classify
from marsbench.gateway.messages.reply import Reply
from marsbench.gateway.monitoring.meters import Meters
from marsbench.gateway.problems import ApiProblem
from marsbench.gateway.settings import GatewaySettings

CLOSED_BY_CLIENT = 499
WORTH_RETRYING = frozenset((408, 409, 425, 429, CLOSED_BY_CLIENT))
"""Client errors after which a session may go on; after others a session that has just begun ends."""


class TurnObserver(Protocol):
    """Sees every turn beside the control plane: the recorder."""

    def sent(self, exchange: Exchange, at_ps: int) -> None:
        """Hear that the turn goes to a backend."""
        ...

    def done(self, exchange: Exchange, reply: Reply, end: TurnEnd, at_ps: int) -> None:
        """Hear that the turn has ended."""
        ...


class Proxy:
    """Carries requests of sessions to backends and back."""

    def __init__(
        self,
        settings: GatewaySettings,
        control: Plane,
        pool: BackendPool,
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

        ``exchange.session`` must be in phase pending (``Plane.ready``).
        """
        work = asyncio.create_task(self._turn(exchange))
        gone = asyncio.create_task(_disconnected(receive))
        self.in_flight[work] = exchange
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self._meters.disconnects.inc()
                await _cancel(work)
            if not work.cancelled():
                work.result()
            elif not gone.done() and not exchange.client.started:
                raise ApiProblem(503, "the turn was given up; send it again", retry_after_s=1)
        except asyncio.CancelledError:
            # The server stops and cuts off what is left. A client in the middle of a stream is
            # told so in it; who has had nothing yet is answered by the guard.
            await _cancel(work)
            if not exchange.client.started:
                raise
            self._meters.broken.inc()
            await exchange.client.break_off(503, "the gateway is shutting down")
        finally:
            gone.cancel()
            await _cancel(work)
            del self.in_flight[work]

    async def cancel(self, session: LiveSession) -> None:
        """End the session's turn, if one is in flight."""
        for work, exchange in list(self.in_flight.items()):
            if exchange.session is session:
                await _cancel(work)

    def drop_stalled(self, send_s: float) -> None:
        """Cancel turns whose client has not taken a byte for ``send_s``."""
        now_s = self._control.bus.clock.now_s()
        for work, exchange in list(self.in_flight.items()):
            since = exchange.client.stalled_since_s
            if since is not None and now_s - since > send_s:
                self._meters.stalled.inc()
                work.cancel()
                exchange.client.wire.abort()

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
            if exchange.client.started:
                raise
            await exchange.client.whole(problem.status, problem.headers(), problem.body())
        finally:
            if session.phase == Phase.ENGINE:
                self._finish(exchange, reply, status)
            elif session.phase == Phase.PENDING:
                control.withdraw(session)

    def _finish(self, exchange: Exchange, reply: Reply, status: int) -> None:
        session = exchange.session
        ok = status < 400 and exchange.client.finished and not reply.error
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
        self._measure(session, end, to_s(at_ps - session.state.phase_since_ps))
        self._control.finished(session, exchange.prompt, end)

    def _measure(self, session: LiveSession, end: TurnEnd, took_s: float) -> None:
        meters, backend = self._meters, str(session.backend)
        meters.turn_s.labels(backend).observe(took_s)
        meters.prompt_tokens.labels(backend).inc(end.prompt_tokens or session.state.prompt_tokens)
        meters.cached_tokens.labels(backend).inc(end.cached_tokens or 0)
        meters.output_tokens.labels(backend).inc(end.output_tokens)

    async def _exchange(self, exchange: Exchange, reply: Reply) -> int:
        """Send the request upstream and the answer back; returns the status.

        Only what was never sent is tried elsewhere.
        """
        session = exchange.session
        tried: set[int] = set()
        try:
            while True:
                assert session.backend is not None
                backend = self._pool.backends[session.backend]
                order = self._order(exchange, backend)
                try:
                    return await carry(
                        backend.upstream, order, exchange.client, reply, _Ear(self, session)
                    )
                except NotSentError as error:
                    self._pool.failed(backend.index, str(error))
                    tried.add(backend.index)
                    self._go_elsewhere(session, tried, error)
                except SilentError as error:
                    self._pool.failed(backend.index, str(error))
                    raise ApiProblem(
                        504, "the backend did not answer in time", code="timeout"
                    ) from error
                except UpstreamError as error:
                    self._pool.failed(backend.index, str(error))
                    raise ApiProblem(
                        502, "the backend closed the connection before it answered", code="upstream"
                    ) from error
        finally:
            if reply.garbage:
                self._meters.garbage.inc()

    def _order(self, exchange: Exchange, backend: Backend) -> UpstreamOrder:
        settings = self._settings
        hints = EngineHints(self._priority(exchange.session))
        content = upstream_body(
            exchange, engine=backend.engine, ask_usage=settings.ask_usage, hints=hints
        )
        headers = upstream_headers(
            exchange.headers, settings.upstream_key, own_auth=bool(settings.tokens)
        )
        path, most = PATHS[exchange.api], settings.limits.body_bytes
        return UpstreamOrder(path, headers, content, exchange.added_usage, most)

    def _go_elsewhere(self, session: LiveSession, tried: set[int], error: NotSentError) -> None:
        other = self._pool.reroute(session, tried)
        if other is None:
            raise ApiProblem(
                503,
                "no backend can be reached",
                code="no_backend",
                retry_after_s=self._settings.timeouts.health_s,
            ) from error
        self._meters.retries.inc()
        self._control.moved(session, other)

    def answered(self, session: LiveSession, status: int) -> None:
        """Note that the head of a backend's answer has come."""
        assert session.backend is not None
        if status >= 500:
            self._pool.failed(session.backend, f"answers {status}", answered=True)
        else:
            self._pool.succeeded(session.backend)

    def began(self, session: LiveSession) -> None:
        """Note that the first output has come."""
        self._control.first_token(session)
        took_s = self._control.bus.clock.now_s() - session.state.phase_since_s
        self._meters.ttft_s.labels(str(session.backend)).observe(took_s)

    def broke(self, session: LiveSession, error: UpstreamError) -> None:
        """Note that a stream broke off."""
        assert session.backend is not None
        self._pool.failed(session.backend, str(error))
        self._meters.broken.inc()


class _Ear:
    """What a turn of one session tells (``marsbench.gateway.backends.carry.Heard``)."""

    def __init__(self, proxy: Proxy, session: LiveSession) -> None:
        self._proxy = proxy
        self._session = session

    def status(self, status: int) -> None:
        self._proxy.answered(self._session, status)

    def first(self) -> None:
        self._proxy.began(self._session)

    def broke(self, error: UpstreamError) -> None:
        self._proxy.broke(self._session, error)


def estimate_output(reply: Reply, session: LiveSession) -> int:
    """Estimate output tokens where the backend did not count them: one a stream event, or by
    length.
    """
    if not reply.output_bytes:
        return 0
    by_length = round(reply.output_bytes / (session.bytes_per_token or 4.0))
    return max(1, reply.events if reply.events > 1 else by_length)


async def _cancel(work: asyncio.Task[None]) -> None:
    """End a task, and wait until it has."""
    if not work.done():
        work.cancel()
        await asyncio.wait({work})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
