"""Turns through the gateway: when the desk lets them in, to the backend, and the reply as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from marsbench.gateway.backends.carry import UpstreamOrder, carry
from marsbench.gateway.backends.exchange import PATHS, Exchange, upstream_body
from marsbench.gateway.backends.lines import BackendLine
from marsbench.gateway.backends.messages import Receive, upstream_headers
from marsbench.gateway.backends.upstream import NotSentError, SilentError, UpstreamError
from marsbench.gateway.control.desk import (
    CLOSED_BY_CLIENT,
    TRACE_HEADERS,
    Carried,
    DeskTurn,
    Ticket,
)
from marsbench.gateway.messages.reply import Reply
from marsbench.gateway.monitoring.meters import Tally
from marsbench.gateway.problems import ApiProblem
from marsbench.gateway.settings import GatewaySettings


class Proxy:
    """Carries requests of sessions to backends and back."""

    def __init__(
        self,
        settings: GatewaySettings,
        lines: Sequence[BackendLine],
        tally: Tally,
        now_s: Callable[[], float],
    ) -> None:
        """``lines`` by the index that tickets have."""
        self.in_flight: dict[asyncio.Task[None], Exchange] = {}
        self._settings = settings
        self._lines = lines
        self._tally = tally
        self._now_s = now_s

    async def run(self, exchange: Exchange, receive: Receive) -> None:
        """Serve one request; if its client goes away, so does the request upstream."""
        work = asyncio.create_task(self._turn(exchange))
        exchange.turn.give_up = work.cancel
        gone = asyncio.create_task(_disconnected(receive))
        self.in_flight[work] = exchange
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self._tally("client_disconnects")
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
            self._tally("broken_streams")
            await exchange.client.break_off(503, "the gateway is shutting down")
        finally:
            gone.cancel()
            await _cancel(work)
            del self.in_flight[work]

    def drop_stalled(self, send_s: float) -> None:
        """Cancel turns whose client has not taken a byte for ``send_s``."""
        now_s = self._now_s()
        for work, exchange in list(self.in_flight.items()):
            since = exchange.client.stalled_since_s
            if since is not None and now_s - since > send_s:
                self._tally("client_stalls")
                work.cancel()
                exchange.client.wire.abort()

    async def _turn(self, exchange: Exchange) -> None:
        """Admission, then the backend. Whatever happens, the desk hears of the end."""
        turn, client = exchange.turn, exchange.client
        reply = Reply()
        status = CLOSED_BY_CLIENT
        try:
            ticket = await turn.admitted()
            status = await self._exchange(exchange, ticket, reply)
        except ApiProblem as problem:
            status = problem.status
            if client.started:
                raise
            await client.whole(problem.status, problem.headers(), problem.body())
        finally:
            turn.ended(Carried(status, client.finished, reply.facts()))

    async def _exchange(self, exchange: Exchange, ticket: Ticket, reply: Reply) -> int:
        """Send the request upstream and the answer back; returns the status.

        Only what was never sent is tried elsewhere.
        """
        turn = exchange.turn
        while True:
            upstream = self._lines[ticket.backend].upstream
            order = self._order(exchange, ticket)
            try:
                return await carry(upstream, order, exchange.client, reply, _Ear(turn))
            except NotSentError as error:
                ticket = await turn.elsewhere(str(error))
            except SilentError as error:
                turn.unanswered(str(error))
                raise ApiProblem(
                    504, "the backend did not answer in time", code="timeout"
                ) from error
            except UpstreamError as error:
                turn.unanswered(str(error))
                raise ApiProblem(
                    502, "the backend closed the connection before it answered", code="upstream"
                ) from error

    def _order(self, exchange: Exchange, ticket: Ticket) -> UpstreamOrder:
        settings = self._settings
        content = upstream_body(exchange, ticket, ask_usage=settings.ask_usage)
        headers = exchange.headers
        if ticket.trace_headers is not None:
            kept = [header for header in headers if header[0] not in TRACE_HEADERS]
            headers = [*kept, *ticket.trace_headers]
        headers = upstream_headers(headers, settings.upstream_key, own_auth=bool(settings.tokens))
        path, most = PATHS[exchange.api], settings.limits.body_bytes
        return UpstreamOrder(path, headers, content, exchange.added_usage, most)


@dataclass(frozen=True, slots=True)
class _Ear:
    """What a turn's way through a backend tells (``marsbench.gateway.backends.carry.Heard``)."""

    turn: DeskTurn

    def status(self, status: int) -> None:
        self.turn.answered(status)

    def first(self) -> None:
        self.turn.first()

    def broke(self, error: UpstreamError) -> None:
        self.turn.broke(str(error))


async def _cancel(work: asyncio.Task[None]) -> None:
    """End a task, and wait until it has."""
    if not work.done():
        work.cancel()
        await asyncio.wait({work})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
