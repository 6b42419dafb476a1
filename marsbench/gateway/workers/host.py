"""The main process's side of one worker: its questions go to the local desk, its requests to the app."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from marsbench.gateway.app import Gateway
from marsbench.gateway.backends.messages import Message, Receive
from marsbench.gateway.control.desk import Carried, Desk, DeskTurn
from marsbench.gateway.http.guard import DRAINING, App
from marsbench.gateway.http.limits import Connections
from marsbench.gateway.monitoring.meters import Tally
from marsbench.gateway.problems import ApiProblem
from marsbench.gateway.workers import wire
from marsbench.gateway.workers.channel import WorkerChannel

logger = logging.getLogger(__name__)
FAILED = ApiProblem(500, "the gateway failed; see its log")


@dataclass(frozen=True, slots=True)
class Counter:
    """What a worker is served from: the parts of a gateway that all workers share."""

    desk: Desk
    app: App
    """Answers requests that are no turns, behind the worker's own guard."""
    tally: Tally
    connections: Connections
    draining: Callable[[], bool]


def counter_of(gateway: Gateway) -> Counter:
    """The counter of a gateway that has been started."""
    return Counter(
        desk=gateway.desk,
        app=gateway.inner,
        tally=gateway.meters.count,
        connections=Connections(gateway.settings.limits.client_connections),
        draining=lambda: gateway.guard.draining,
    )


@dataclass(slots=True)
class _Held:
    """A turn that a worker carries."""

    work: asyncio.Task[None]
    turn: DeskTurn | None = None


class WorkerHost:
    """Serves one worker until its channel ends; its turns end with it."""

    def __init__(self, counter: Counter) -> None:
        loop = asyncio.get_running_loop()
        self.turns: dict[int, _Held] = {}
        self.cancelled = 0
        """Turns that the worker had when it was lost."""
        self.ready: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        self.channel = WorkerChannel(wire.FromWorker, self._hear, self._gone)
        self._counter = counter
        self._calls: dict[int, tuple[asyncio.Task[None], asyncio.Event]] = {}
        self._connections: dict[int, int] = {}
        self._asides: set[asyncio.Task[None]] = set()

    def drain(self) -> None:
        """New turns are refused there, too."""
        self.channel.send(wire.Drain())

    def stop(self) -> None:
        """It shall end."""
        self.channel.send(wire.Stop())

    def _hear(self, message: Any) -> None:
        try:
            self._take(message)
        except Exception:  # a policy's: the worker's other turns go on
            logger.exception("a worker's message could not be taken")

    def _take(self, message: Any) -> None:
        counter = self._counter
        match message:
            case wire.TurnOpens():
                self._open(message)
            case wire.Answered(number, status):
                self._turn(number).answered(status)
            case wire.First(number):
                self._turn(number).first()
            case wire.Broke(number, why):
                self._turn(number).broke(why)
            case wire.Unanswered(number, why):
                self._turn(number).unanswered(why)
            case wire.SendElsewhere(number, why):
                held = self.turns[number]
                held.work = asyncio.create_task(self._elsewhere(number, self._turn(number), why))
            case wire.Ended(number, carried):
                self._end(number, carried)
            case wire.Counted(name, labels):
                counter.tally(name, *labels)
            case wire.Call():
                gone = asyncio.Event()
                task = asyncio.create_task(self._call(message, gone))
                self._calls[message.ask] = task, gone
            case wire.Gone(ask):
                if ask in self._calls:
                    self._calls[ask][1].set()
            case _:
                self._take_other(message)

    def _take_other(self, message: Any) -> None:
        counter = self._counter
        match message:
            case wire.RateOf(ask, client):
                self._aside(self._rate(ask, client))
            case wire.WhoIsHealthy(ask):
                self._aside(self._healthy(ask))
            case wire.BackendFailed(backend, why):
                counter.desk.failed(backend, why)
            case wire.ConnectionOpened(number, address):
                self._connections[number] = counter.connections.opened(
                    address, lambda: self.channel.send(wire.CutConnection(number))
                )
            case wire.ConnectionClosed(number):
                counter.connections.closed(self._connections.pop(number))
            case wire.Ready():
                self.ready.set_result(None)

    # --- turns

    def _turn(self, number: int) -> DeskTurn:
        turn = self.turns[number].turn
        assert turn is not None, "a worker tells of a turn that it was told of"
        return turn

    def _open(self, message: wire.TurnOpens) -> None:
        work = asyncio.create_task(self._begin(message))
        self.turns[message.turn] = _Held(work)

    async def _begin(self, message: wire.TurnOpens) -> None:
        """Open a turn and wait until it is let in."""
        number = message.turn
        if self._counter.draining():
            del self.turns[number]
            self._refuse(number, DRAINING)
            return
        try:
            turn = await self._counter.desk.open(message.told())
        except Exception as error:  # noqa: BLE001 - a policy's, too, is told
            del self.turns[number]
            self._refuse(number, error)
            return
        held = self.turns[number]
        held.turn = turn
        turn.give_up = lambda: self.channel.send(wire.GiveUp(number))
        self.channel.send(wire.Opened(number, turn.told_id))
        try:
            ticket = await turn.admitted()
        except Exception as error:  # noqa: BLE001 - a policy's, too, is told
            self._refuse(number, error)
        else:
            self.channel.send(wire.Admitted(number, ticket))

    async def _elsewhere(self, number: int, turn: DeskTurn, why: str) -> None:
        try:
            ticket = await turn.elsewhere(why)
        except Exception as error:  # noqa: BLE001 - a policy's, too, is told
            self._refuse(number, error)
        else:
            self.channel.send(wire.Admitted(number, ticket))

    def _refuse(self, number: int, error: Exception) -> None:
        if not isinstance(error, ApiProblem):
            logger.error("a turn failed", exc_info=error)
            error = FAILED
        self.channel.send(wire.TurnRefused(number, wire.problem(error)))

    def _end(self, number: int, carried: Carried) -> None:
        """A turn is over; one that is still waiting for admission first leaves the queue."""
        held = self.turns.get(number)
        if held is None:
            return  # it was refused when it was to be opened, and given up at the same time
        if held.work.done():
            self._finish(number, held, carried)
            return
        held.work.add_done_callback(lambda _: self._finish(number, held, carried))
        held.work.cancel()

    def _finish(self, number: int, held: _Held, carried: Carried) -> None:
        if self.turns.get(number) is not held:
            return
        del self.turns[number]
        if held.turn is None:
            return
        try:
            held.turn.ended(carried)
        except Exception:  # a policy's: the others go on
            logger.exception("a turn's end could not be taken")

    # --- everything else

    def _aside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._asides.add(task)
        task.add_done_callback(self._asides.discard)

    async def _rate(self, ask: int, client: str) -> None:
        try:
            await self._counter.desk.rate(client)
        except ApiProblem as error:
            self.channel.send(wire.AskAnswer(ask, wire.problem(error)))
        else:
            self.channel.send(wire.AskAnswer(ask))

    async def _healthy(self, ask: int) -> None:
        self.channel.send(wire.AskAnswer(ask, healthy=await self._counter.desk.healthy()))

    async def _call(self, call: wire.Call, gone: asyncio.Event) -> None:
        """Have the app answer a request as if it had come here."""
        status, headers, parts = 500, [], []
        receive = _receive(call.body, gone)

        async def send(message: Message) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status, headers = message["status"], list(message["headers"])
            else:
                parts.append(message.get("body", b""))

        try:
            await self._counter.app(_scope(call), receive, send)
        except Exception:
            logger.exception("a request failed")
            status, headers, parts = FAILED.status, FAILED.headers(), [FAILED.body()]
        finally:
            del self._calls[call.ask]
        self.channel.send(wire.CallAnswer(call.ask, status, headers, b"".join(parts)))

    def _gone(self) -> None:
        """The worker has ended or died, and whoever it served has lost the connection."""
        self.cancelled = len(self.turns)
        for number in list(self.turns):
            self._end(number, Carried())
        for _, gone in self._calls.values():
            gone.set()
        for number in self._connections.values():
            self._counter.connections.closed(number)
        self._connections.clear()
        if not self.ready.done():
            self.ready.cancel()
        self.lost.set_result(None)


def _receive(body: bytes, gone: asyncio.Event) -> Receive:
    given = False

    async def receive() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    return receive


def _scope(call: wire.Call) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http",
        "method": call.method,
        "root_path": "",
        "path": call.path,
        "raw_path": call.raw_path,
        "query_string": call.query,
        "headers": call.headers,
        "client": call.client,
        "server": None,
        "state": {},
        **call.told,
    }
