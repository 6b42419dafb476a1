"""The desk as a worker sees it: the main process answers (``host``), and nothing is decided here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from marsbench.gateway.control.desk import Carried, Ticket, TurnAsk
from marsbench.gateway.problems import ApiProblem
from marsbench.gateway.workers import wire
from marsbench.gateway.workers.channel import WorkerChannel

GONE = ApiProblem(503, "the gateway's main process has gone", code="no_control", retry_after_s=5)


def _nobody() -> None:
    """Nobody carries the turn yet."""


class RemoteDesk:
    """``marsbench.gateway.control.desk.Desk`` over a channel.

    Beside it stands what else a worker has of the main process: counters, connections by address, and
    the requests that the main process answers itself.
    """

    def __init__(self, drain: Callable[[], None], stop: Callable[[], None]) -> None:
        """``drain`` and ``stop`` are called when the main process says so, or has gone."""
        self.lost = False
        """The main process has gone without a word."""
        self._stopped = False
        self._drain = drain
        self._stop = stop
        self._turns: dict[int, RemoteTurn] = {}
        self._asks: dict[int, asyncio.Future[Any]] = {}
        self._cuts: dict[int, Callable[[], None]] = {}
        self._last = 0
        self._channel: WorkerChannel | None = None

    def channel(self) -> WorkerChannel:
        """To be opened."""
        self._channel = WorkerChannel(wire.FromMain, self._hear, self._gone)
        return self._channel

    # --- Desk

    async def rate(self, client: str) -> None:
        """Ask."""
        await self._ask(lambda ask: wire.RateOf(ask, client))

    async def open(self, ask: TurnAsk) -> RemoteTurn:
        """Ask."""
        if self.lost:
            raise GONE
        turn = RemoteTurn(self, self._number())
        self._turns[turn.number] = turn
        self.send(wire.open_turn(turn.number, ask))
        try:
            await turn.opened
        except ApiProblem:
            self._turns.pop(turn.number, None)
            raise
        except BaseException:
            turn.ended(Carried())
            raise
        return turn

    async def healthy(self) -> list[int]:
        """Ask."""
        answer: wire.AskAnswer = await self._ask(wire.WhoIsHealthy)
        return answer.healthy

    def failed(self, backend: int, why: str) -> None:
        """Tell."""
        self.send(wire.BackendFailed(backend, why))

    # --- what else there is of the main process

    def count(self, counter: str, *labels: str) -> None:
        """``Meters.count``."""
        self.send(wire.Counted(counter, labels))

    async def call(self, make: Callable[[int], wire.Call]) -> wire.CallAnswer:
        """Have a request answered. Cancelling tells that its client has gone."""
        answer: wire.CallAnswer = await self._ask(make)
        return answer

    def opened(self, address: str, cut: Callable[[], None]) -> int:
        """``limits.Connections``: a connection, counted with those of all workers."""
        number = self._number()
        self._cuts[number] = cut
        self.send(wire.ConnectionOpened(number, address))
        return number

    def closed(self, number: int) -> None:
        """``limits.Connections``."""
        self._cuts.pop(number, None)
        self.send(wire.ConnectionClosed(number))

    def ready(self) -> None:
        """Connections are taken."""
        self.send(wire.Ready())

    def send(self, message: Any) -> None:
        """Tell the main process."""
        assert self._channel is not None, "channel() comes first"
        self._channel.send(message)

    def forget(self, turn: RemoteTurn) -> None:
        """It has ended."""
        self._turns.pop(turn.number, None)

    async def _ask(self, make: Callable[[int], Any]) -> Any:
        if self.lost:
            raise GONE
        number = self._number()
        future = self._asks[number] = asyncio.get_running_loop().create_future()
        message = make(number)
        self.send(message)
        try:
            return await future
        except asyncio.CancelledError:
            if isinstance(message, wire.Call):
                self.send(wire.Gone(number))
            raise
        finally:
            del self._asks[number]

    def _number(self) -> int:
        self._last += 1
        return self._last

    def _hear(self, message: Any) -> None:
        match message:
            case wire.Opened(turn, told_id):
                if turn in self._turns:
                    self._turns[turn].open_as(told_id)
            case wire.Admitted(turn, ticket):
                if turn in self._turns:
                    self._turns[turn].let_in(ticket)
            case wire.TurnRefused(turn, problem):
                if turn in self._turns:
                    self._turns[turn].refuse(problem.error())
            case wire.GiveUp(turn):
                if turn in self._turns:
                    self._turns[turn].give_up()
            case wire.AskAnswer(ask) | wire.CallAnswer(ask):
                self._answer(ask, message)
            case wire.CutConnection(number):
                if number in self._cuts:
                    self._cuts[number]()
            case wire.Drain():
                self._drain()
            case wire.Stop():
                self._stopped = True
                self._stop()

    def _answer(self, ask: int, message: wire.AskAnswer | wire.CallAnswer) -> None:
        future = self._asks.get(ask)
        if future is None or future.done():
            return
        if isinstance(message, wire.AskAnswer) and message.problem is not None:
            future.set_exception(message.problem.error())
        else:
            future.set_result(message)

    def _gone(self) -> None:
        """The channel has ended: nothing will ever be answered."""
        self.lost = not self._stopped
        for turn in list(self._turns.values()):
            turn.refuse(GONE)
        for future in self._asks.values():
            if not future.done():
                future.set_exception(GONE)
        self._stop()


class RemoteTurn:
    """``marsbench.gateway.control.desk.DeskTurn`` over a channel."""

    def __init__(self, desk: RemoteDesk, number: int) -> None:
        loop = asyncio.get_running_loop()
        self.number = number
        self.told_id = ""
        self.give_up: Callable[[], object] = _nobody
        self.opened: asyncio.Future[None] = loop.create_future()
        self._ticket: asyncio.Future[Ticket] = loop.create_future()
        self._desk = desk

    async def admitted(self) -> Ticket:
        """The main process says so, often at once."""
        return await self._ticket

    async def elsewhere(self, why: str) -> Ticket:
        """Ask."""
        if self._desk.lost:
            raise GONE
        self._ticket = asyncio.get_running_loop().create_future()
        self._desk.send(wire.SendElsewhere(self.number, why))
        return await self._ticket

    def unanswered(self, why: str) -> None:
        """Tell."""
        self._desk.send(wire.Unanswered(self.number, why))

    def answered(self, status: int) -> None:
        """Tell."""
        self._desk.send(wire.Answered(self.number, status))

    def first(self) -> None:
        """Tell."""
        self._desk.send(wire.First(self.number))

    def broke(self, why: str) -> None:
        """Tell."""
        self._desk.send(wire.Broke(self.number, why))

    def ended(self, carried: Carried) -> None:
        """Tell."""
        self._desk.forget(self)
        self._desk.send(wire.Ended(self.number, carried))

    # --- what the main process says

    def open_as(self, told_id: str) -> None:
        """The turn is pending."""
        self.told_id = told_id
        if not self.opened.done():
            self.opened.set_result(None)

    def let_in(self, ticket: Ticket) -> None:
        """It may go to a backend."""
        if not self._ticket.done():
            self._ticket.set_result(ticket)

    def refuse(self, problem: ApiProblem) -> None:
        """It may not begin, or not go on."""
        future: asyncio.Future[Any] = self._ticket if self.opened.done() else self.opened
        if not future.done():
            future.set_exception(problem)
            future.exception()  # it may be that nobody waits for it
