"""Where the HTTP side asks and tells: each point of a turn's way at which the control plane matters.

Whoever carries the bytes of a turn sees a ``Desk`` and its ``DeskTurn``, and nothing of sessions, policies
or the health of backends. ``LocalDesk`` is the control plane in the same process;
``marsbench.gateway.workers.remote`` is the same over a socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from marsbench.core import Phase, to_s
from marsbench.gateway.backends.pool import BackendPool
from marsbench.gateway.control.plane import Plane, TurnEnd
from marsbench.gateway.control.sessions import LiveSession, OpenCall
from marsbench.gateway.http.limits import RETRY_S, RateLimit
from marsbench.gateway.messages.identity import ClientIdentity
from marsbench.gateway.messages.prompt import Prompt
from marsbench.gateway.messages.reply import ReplyFacts
from marsbench.gateway.monitoring.meters import Meters
from marsbench.gateway.problems import ApiProblem
from marsbench.gateway.settings import GatewaySettings

CLOSED_BY_CLIENT = 499
WORTH_RETRYING = frozenset((408, 409, 425, 429, CLOSED_BY_CLIENT))
"""Client errors after which a session may go on; after others a session that has just begun ends."""
TRACE_HEADERS = ("traceparent", "tracestate")
TOLD_HEADERS = frozenset(("x-agent-name", "user-agent", *TRACE_HEADERS))
"""Of a request's headers, those that a desk wants to know."""

HeaderList = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class TurnAsk:
    """A request that wants to be a turn of a session."""

    api: str
    raw: bytes
    """The body, as it came."""
    client: str
    """Whose sessions it may continue."""
    tenant: str
    identity: ClientIdentity
    prompt: Prompt
    headers: HeaderList
    """Those of ``TOLD_HEADERS``."""


class Ticket(msgspec.Struct, frozen=True, array_like=True):
    """A turn that has been let in: where it goes, and as what."""

    backend: int
    engine: str
    """Which engine the backend is, as in ``--engine``; empty where that is not known."""
    session: int
    session_id: str
    """The id that engines and logs have."""
    turn_index: int
    arrival_s: float
    priority: int | None
    """The engine's per-request priority, smaller first; None where the engine runs FCFS."""
    trace_headers: HeaderList | None
    """To be sent in place of the client's own trace context; None = leave that as it is."""


class Carried(msgspec.Struct, frozen=True, array_like=True):
    """How carrying a turn ended."""

    status: int = CLOSED_BY_CLIENT
    finished: bool = False
    """The client has all of the response."""
    reply: ReplyFacts = ReplyFacts()


class DeskTurn(Protocol):
    """A turn under way. ``ended`` must be called, whatever happens, and is the last."""

    give_up: Callable[[], object]
    """Set by who carries it: called when the desk wants the turn to end now."""

    @property
    def told_id(self) -> str:
        """Return the id its client knows its session by."""
        ...

    async def admitted(self) -> Ticket:
        """Wait until the turn may go to a backend; ApiProblem if it may not."""
        ...

    async def elsewhere(self, why: str) -> Ticket:
        """Return a ticket to another backend, since nothing could be sent to the first; ApiProblem if
        no other can take it.
        """
        ...

    def unanswered(self, why: str) -> None:
        """Note that the backend did not answer what was sent."""
        ...

    def answered(self, status: int) -> None:
        """Note that the head of the answer has come."""
        ...

    def first(self) -> None:
        """Note that the first output has come."""
        ...

    def broke(self, why: str) -> None:
        """Note that the stream broke off."""
        ...

    def ended(self, carried: Carried) -> None:
        """Note that the turn is over, well or not."""
        ...


class Desk(Protocol):
    """The control plane as the HTTP side sees it."""

    async def rate(self, client: str) -> None:
        """Count a request of a client; ApiProblem (429) if it sends too many."""
        ...

    async def open(self, ask: TurnAsk) -> DeskTurn:
        """Return a request's turn, from now on pending; ApiProblem if there is none to be had."""
        ...

    async def healthy(self) -> list[int]:
        """Return the indices of backends that take requests."""
        ...

    def failed(self, backend: int, why: str) -> None:
        """Note that a backend could not be reached for a request that is no turn."""
        ...


class TurnObserver(Protocol):
    """Sees every turn beside the control plane: the recorder, the traces."""

    def sent(self, turn: LocalTurn, at_ps: int) -> None:
        """Hear that the turn goes to a backend."""
        ...

    def done(self, turn: LocalTurn, carried: Carried, end: TurnEnd, at_ps: int) -> None:
        """Hear that the turn has ended."""
        ...


def _nobody() -> None:
    """Nobody carries the turn yet."""


class LocalDesk:
    """The desk of the process that owns the control plane."""

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
        self.turns: dict[int, LocalTurn] = {}
        """Turns under way, by session."""
        self.control = control
        self.pool = pool
        self.meters = meters
        self.observers = observers
        self.priority = priority
        self._settings = settings
        self._rate = RateLimit(settings.limits)

    async def rate(self, client: str) -> None:
        """Take one of the client's requests."""
        self._rate.check(client, self.control.bus.clock.now_s())

    async def open(self, ask: TurnAsk) -> LocalTurn:
        """Find or begin the session, and note that its turn is ready."""
        now_ps = self.control.bus.clock.now_ps()
        table = self.control.table
        session, is_new = table.resolve(ask.client, ask.identity, ask.prompt, now_ps)
        if is_new:
            self._admit_client(session, ask.tenant)
        turn = LocalTurn(self, session, ask)
        self.control.ready(session, ask.prompt)
        self.turns[session.session] = turn
        return turn

    async def healthy(self) -> list[int]:
        """Return the backends that get turns."""
        return self.pool.healthy

    def failed(self, backend: int, why: str, *, answered: bool = False) -> None:
        """Note that a backend could not be reached, broke off, or (``answered``) failed itself."""
        self.meters.count("backend_errors", str(backend))
        self.pool.failed(backend, why, answered=answered)

    async def cancel(self, session: LiveSession) -> None:
        """End the session's turn, if one is under way."""
        turn = self.turns.get(session.session)
        if turn is not None:
            turn.give_up()
            await turn.over()

    def _admit_client(self, session: LiveSession, tenant: str) -> None:
        """ApiProblem (429) if the session's client has too many already."""
        table, most = self.control.table, self._settings.limits.sessions
        session.tenant = tenant
        if most and not session.is_child and table.num_sessions(session.scope) > most:
            table.remove(session)
            raise ApiProblem(
                429,
                f"more than {most} sessions at once; end some (POST /v1/sessions/ID/end)",
                code="too_many_sessions",
                retry_after_s=RETRY_S,
            )

    @property
    def retry_s(self) -> float:
        """Return the seconds after which a backend may be back."""
        return self._settings.timeouts.health_s


class LocalTurn:
    """A turn of a session of this process's control plane."""

    def __init__(self, desk: LocalDesk, session: LiveSession, ask: TurnAsk) -> None:
        self.session = session
        self.ask = ask
        self.trace_headers: HeaderList | None = None
        """What a tracing observer wants the backend to be told."""
        self.give_up: Callable[[], object] = _nobody
        self._desk = desk
        self._tried: set[int] = set()
        self._over: asyncio.Future[None] | None = None

    @property
    def told_id(self) -> str:
        """Return the id its client knows its session by."""
        return self.session.told_id

    async def admitted(self) -> Ticket:
        """Wait for admission."""
        control, session = self._desk.control, self.session
        await control.wait(session)
        control.table.remember(session, self.ask.prompt)
        for observer in self._desk.observers:
            observer.sent(self, control.bus.clock.now_ps())
        return self._ticket()

    async def elsewhere(self, why: str) -> Ticket:
        """Choose another backend; only what was never sent is tried elsewhere."""
        desk, session = self._desk, self.session
        tried = self._backend()
        desk.failed(tried, why)
        self._tried.add(tried)
        other = desk.pool.reroute(session, self._tried)
        if other is None:
            raise ApiProblem(
                503,
                "no backend can be reached",
                code="no_backend",
                retry_after_s=desk.retry_s,
            )
        desk.meters.count("retries")
        desk.control.moved(session, other)
        return self._ticket()

    def unanswered(self, why: str) -> None:
        """Blame the backend."""
        self._desk.failed(self._backend(), why)

    def answered(self, status: int) -> None:
        """Note that the backend answers, well or with a server error."""
        if status >= 500:
            self._desk.failed(self._backend(), f"answers {status}", answered=True)
        else:
            self._desk.pool.succeeded(self._backend())

    def first(self) -> None:
        """Note that the first output has come."""
        desk, session = self._desk, self.session
        desk.control.first_token(session)
        took_s = desk.control.bus.clock.now_s() - session.state.phase_since_s
        desk.meters.ttft_s.labels(str(session.backend)).observe(took_s)

    def broke(self, why: str) -> None:
        """Note that a stream broke off."""
        self._desk.failed(self._backend(), why)
        self._desk.meters.count("broken_streams")

    def ended(self, carried: Carried) -> None:
        """Keep the book."""
        session = self.session
        if carried.reply.garbage:
            self._desk.meters.count("garbage_replies")
        try:
            if session.phase == Phase.ENGINE:
                self._finish(carried)
            elif session.phase == Phase.PENDING:
                self._desk.control.withdraw(session)
        finally:
            self._desk.turns.pop(session.session, None)
            if self._over is not None and not self._over.done():
                self._over.set_result(None)

    async def over(self) -> None:
        """Wait until the turn has ended."""
        if self._over is None:
            self._over = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._over)

    def _finish(self, carried: Carried) -> None:
        session, desk, reply, status = self.session, self._desk, carried.reply, carried.status
        ok = status < 400 and carried.finished and not reply.error
        output = reply.output_tokens
        if output is None:
            output = estimate_output(reply, session)
            desk.meters.count("estimated_turns", by=ok)
        hopeless = 400 <= status < 500 and status not in WORTH_RETRYING and session.turns_sent == 1
        calls = tuple(
            OpenCall(index, call.call_id, call.name, call.tool_class)
            for index, call in enumerate(reply.calls)
        )
        end = TurnEnd(
            ok=ok,
            output_tokens=output,
            prompt_tokens=reply.prompt_tokens,
            cached_tokens=reply.cached_tokens,
            calls=calls if ok else (),
            is_last=self.ask.identity.is_last or hopeless,
        )
        desk.control.table.replied(session, reply.print() if ok else None, reply.response_id)
        at_ps = desk.control.bus.clock.now_ps()
        for observer in desk.observers:
            observer.done(self, carried, end, at_ps)
        self._measure(end, to_s(at_ps - session.state.phase_since_ps))
        desk.control.finished(session, self.ask.prompt, end)

    def _measure(self, end: TurnEnd, took_s: float) -> None:
        meters, session = self._desk.meters, self.session
        backend = str(session.backend)
        meters.turn_s.labels(backend).observe(took_s)
        meters.prompt_tokens.labels(backend).inc(end.prompt_tokens or session.state.prompt_tokens)
        meters.cached_tokens.labels(backend).inc(end.cached_tokens or 0)
        meters.output_tokens.labels(backend).inc(end.output_tokens)

    def _ticket(self) -> Ticket:
        session, desk = self.session, self._desk
        backend = self._backend()
        return Ticket(
            backend=backend,
            engine=desk.pool.backends[backend].engine,
            session=session.session,
            session_id=session.session_id,
            turn_index=session.turn_index,
            arrival_s=session.state.arrival_s,
            priority=desk.priority(session),
            trace_headers=self.trace_headers,
        )

    def _backend(self) -> int:
        assert self.session.backend is not None
        return self.session.backend


def estimate_output(reply: ReplyFacts, session: LiveSession) -> int:
    """Estimate output tokens where the backend did not count them: one a stream event, or by length."""
    if not reply.output_bytes:
        return 0
    by_length = round(reply.output_bytes / (session.bytes_per_token or 4.0))
    return max(1, reply.events if reply.events > 1 else by_length)
