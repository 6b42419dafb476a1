"""What workers and the main process tell each other."""

from __future__ import annotations

import msgspec

from marsbench.gateway.control.desk import Carried, HeaderList, Ticket, TurnAsk
from marsbench.gateway.messages.identity import ClientIdentity
from marsbench.gateway.messages.prompt import Prompt, PromptText, read_prompt
from marsbench.gateway.problems import ApiProblem

RawHeaders = list[tuple[bytes, bytes]]


class _Told(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """One message. ``turn`` and ``ask`` are numbers that the worker gives."""


class ToldProblem(msgspec.Struct, frozen=True, array_like=True):
    """An ``ApiProblem``."""

    status: int
    message: str
    code: str
    retry_after_s: float | None

    def error(self) -> ApiProblem:
        """To raise it."""
        return ApiProblem(
            self.status, self.message, code=self.code, retry_after_s=self.retry_after_s
        )


def problem(error: ApiProblem) -> ToldProblem:
    """As it is told."""
    return ToldProblem(error.status, error.message, error.code, error.retry_after_s)


class Sketch(msgspec.Struct, frozen=True, array_like=True):
    """What identifies a prompt; its text is read from the body, should anybody want it."""

    model: str
    stream: bool
    tokens: int | None
    previous_response: str
    num_bytes: int
    head_bytes: int
    head_digest: bytes
    chain: list[bytes]
    tail: bytes
    tail_bytes: int


# --- from a worker: a turn


class TurnOpens(_Told, frozen=True, array_like=True, tag=True):
    """A request wants to be a turn."""

    turn: int
    api: str
    raw: bytes
    client: str
    tenant: str
    identity: ClientIdentity
    sketch: Sketch
    headers: HeaderList

    def told(self) -> TurnAsk:
        """As a desk wants it."""
        told = msgspec.structs.asdict(self.sketch)
        prompt = Prompt(**told, read=LateText(self.api, self.raw))
        return TurnAsk(
            self.api, self.raw, self.client, self.tenant, self.identity, prompt, self.headers
        )


def open_turn(turn: int, ask: TurnAsk) -> TurnOpens:
    """As it is told."""
    sketch = Sketch(*(getattr(ask.prompt, name) for name in Sketch.__struct_fields__))
    return TurnOpens(
        turn, ask.api, ask.raw, ask.client, ask.tenant, ask.identity, sketch, ask.headers
    )


class LateText:
    """Reads the text of a prompt from the body of its request, once somebody asks for it."""

    def __init__(self, api: str, raw: bytes) -> None:
        self._api = api
        self._raw = raw
        self._text: PromptText | None = None

    def __call__(self) -> PromptText:
        if self._text is None:
            self._text = read_prompt(self._api, msgspec.json.decode(self._raw)).read()
            self._raw = b""
        return self._text


class Answered(_Told, frozen=True, array_like=True, tag=True):
    """``DeskTurn.answered``."""

    turn: int
    status: int


class First(_Told, frozen=True, array_like=True, tag=True):
    """``DeskTurn.first``."""

    turn: int


class Broke(_Told, frozen=True, array_like=True, tag=True):
    """``DeskTurn.broke``."""

    turn: int
    why: str


class Unanswered(_Told, frozen=True, array_like=True, tag=True):
    """``DeskTurn.unanswered``."""

    turn: int
    why: str


class SendElsewhere(_Told, frozen=True, array_like=True, tag=True):
    """``DeskTurn.elsewhere``; the answer is ``Admitted`` or ``TurnRefused``."""

    turn: int
    why: str


class Ended(_Told, frozen=True, array_like=True, tag=True):
    """``DeskTurn.ended``."""

    turn: int
    carried: Carried


# --- from a worker: everything else


class Ready(_Told, frozen=True, array_like=True, tag=True):
    """It takes connections."""


class RateOf(_Told, frozen=True, array_like=True, tag=True):
    """``Desk.rate``; the answer is ``AskAnswer``."""

    ask: int
    client: str


class WhoIsHealthy(_Told, frozen=True, array_like=True, tag=True):
    """``Desk.healthy``; the answer is ``AskAnswer``."""

    ask: int


class BackendFailed(_Told, frozen=True, array_like=True, tag=True):
    """``Desk.failed``."""

    backend: int
    why: str


class Counted(_Told, frozen=True, array_like=True, tag=True):
    """``Meters.count``."""

    counter: str
    labels: tuple[str, ...]


class Call(_Told, frozen=True, array_like=True, tag=True):
    """A request that the main process answers itself; the answer is ``CallAnswer``."""

    ask: int
    method: str
    path: str
    raw_path: bytes
    query: bytes
    headers: RawHeaders
    client: tuple[str, int] | None
    told: dict[str, str]
    """What the guard has found out about it."""
    body: bytes


class Gone(_Told, frozen=True, array_like=True, tag=True):
    """Who sent a ``Call`` has gone away."""

    ask: int


class ConnectionOpened(_Told, frozen=True, array_like=True, tag=True):
    """Somebody has connected; the answer, if there is one, is ``CutConnection``."""

    number: int
    address: str


class ConnectionClosed(_Told, frozen=True, array_like=True, tag=True):
    """A connection is gone."""

    number: int


FromWorker = (
    TurnOpens
    | Answered
    | First
    | Broke
    | Unanswered
    | SendElsewhere
    | Ended
    | Ready
    | RateOf
    | WhoIsHealthy
    | BackendFailed
    | Counted
    | Call
    | Gone
    | ConnectionOpened
    | ConnectionClosed
)


# --- from the main process


class Opened(_Told, frozen=True, array_like=True, tag=True):
    """The turn is pending."""

    turn: int
    told_id: str


class Admitted(_Told, frozen=True, array_like=True, tag=True):
    """The turn may go to a backend."""

    turn: int
    ticket: Ticket


class TurnRefused(_Told, frozen=True, array_like=True, tag=True):
    """There is no turn, or it may not go to a backend."""

    turn: int
    problem: ToldProblem


class GiveUp(_Told, frozen=True, array_like=True, tag=True):
    """``DeskTurn.give_up``."""

    turn: int


class AskAnswer(_Told, frozen=True, array_like=True, tag=True):
    """To ``RateOf`` and ``WhoIsHealthy``."""

    ask: int
    problem: ToldProblem | None = None
    healthy: list[int] = []


class CallAnswer(_Told, frozen=True, array_like=True, tag=True):
    """To a ``Call``."""

    ask: int
    status: int
    headers: RawHeaders
    body: bytes


class CutConnection(_Told, frozen=True, array_like=True, tag=True):
    """Its address has too many."""

    number: int


class Drain(_Told, frozen=True, array_like=True, tag=True):
    """Refuse new turns."""


class Stop(_Told, frozen=True, array_like=True, tag=True):
    """Stop taking connections, cut off what is left, and end."""


FromMain = (
    Opened | Admitted | TurnRefused | GiveUp | AskAnswer | CallAnswer | CutConnection | Drain | Stop
)
