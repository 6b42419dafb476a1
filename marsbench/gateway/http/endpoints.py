"""The endpoints of agents: completions through the proxy, session ends, tool slots."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from marsbench.core import Phase, to_s
from marsbench.events import Status
from marsbench.gateway.backends.carry import ClientSide
from marsbench.gateway.backends.exchange import Exchange
from marsbench.gateway.backends.messages import Message, Receive, Send
from marsbench.gateway.control.desk import TOLD_HEADERS, TurnAsk
from marsbench.gateway.control.sessions import LiveSession
from marsbench.gateway.control.slots import Lease
from marsbench.gateway.http.guard import DRAINING
from marsbench.gateway.http.limits import Scope, read_body
from marsbench.gateway.messages.classify import classify
from marsbench.gateway.messages.identity import identify
from marsbench.gateway.messages.prompt import read_prompt
from marsbench.gateway.messages.reply import MAX_NAME_CHARS
from marsbench.gateway.problems import ApiProblem

if TYPE_CHECKING:
    from marsbench.gateway.app import Gateway
    from marsbench.gateway.http.front import HttpSide

JSON = "application/json"


class Completions:
    """POST of one completions API: a turn of a session."""

    def __init__(self, front: HttpSide, api: str) -> None:
        self._front = front
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        front = self._front
        with front.bodies.hold() as share:
            raw = await read_body(scope, receive, front.settings.limits, share)
            if front.guard.draining:
                raise DRAINING
            await self._serve(scope, receive, send, raw)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, raw: bytes) -> None:
        front = self._front
        body = decode(raw)
        headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in scope["headers"]]
        identity = identify(
            scope["path_params"].get("session_id", ""),
            dict(headers),
            body,
            scope["marsbench.key"],
            session_per_key=front.settings.session_per_key,
        )
        prompt = read_prompt(self._api, body)
        ask = TurnAsk(
            api=self._api,
            raw=raw,
            client=scope["marsbench.client"],
            tenant=scope["marsbench.tenant"],
            identity=identity,
            prompt=prompt,
            headers=[header for header in headers if header[0] in TOLD_HEADERS],
        )
        turn = await front.desk.open(ask)
        scope["marsbench.session"] = turn.told_id
        exchange = Exchange(
            api=self._api,
            headers=headers,
            body=body,
            raw=raw,
            stream=prompt.stream,
            turn=turn,
            client=ClientSide(send, scope["marsbench.wire"], turn.told_id, front.clock.now_s),
        )
        await front.proxy.run(exchange, receive)


class SessionEnd:
    """POST /v1/sessions/<id>/end: the client says that the task is over."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gateway = self._gateway
        with gateway.bodies.hold() as share:
            raw = await read_body(scope, receive, gateway.settings.limits, share)
        failed = bool(raw) and decode(raw).get("status") in {"error", "failed"}
        session = _session(gateway, scope, scope["path_params"]["session_id"])
        if session.in_flight:
            raise ApiProblem(409, "the session has a turn in flight", code="session_busy")
        turns = session.turns_before + session.turns_sent
        gateway.control.end(session, Status.ERROR if failed else Status.OK)
        answer = {"session_id": session.told_id, "turns": turns, "ended": True}
        await reply(send, 200, [(b"content-type", JSON.encode())], msgspec.json.encode(answer))


class ToolEndpoints:
    """POST /v1/tools/{acquire,renew,release}."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def acquire(self, request: Request) -> Response:
        """Wait for a slot; the reply is the lease."""
        gateway = self._gateway
        body = await self._body(request)
        session = _session(gateway, request.scope, _text(body, "session_id"))
        name = _text(body, "name")[:MAX_NAME_CHARS]
        tool_class = body.get("tool_class")
        kind = tool_class[:MAX_NAME_CHARS] if isinstance(tool_class, str) else classify(name)
        lease_s, timeout_s = _seconds(body, "lease_s"), _seconds(body, "timeout_s")
        wait = asyncio.create_task(gateway.slots.acquire(session, name, kind, lease_s))
        gone = asyncio.create_task(_disconnected(request.receive))
        try:
            await asyncio.wait({wait, gone}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if wait.done() and not gone.done():
                return self._answer(wait.result())
        finally:
            gone.cancel()
            wait.cancel()
        if not gone.done():
            raise ApiProblem(
                503, f"no slot within {timeout_s:g} s", code="no_slot", retry_after_s=1
            )
        if wait.done() and not wait.cancelled() and wait.exception() is None:
            # NOTE: granted in the same instant; nobody will ever release it.
            gateway.slots.release(wait.result().lease_id, error=True)
        raise ApiProblem(499, "the client went away")

    async def renew(self, request: Request) -> Response:
        """Give a lease more time."""
        body = await self._body(request)
        return self._answer(
            self._gateway.slots.renew(_text(body, "lease"), _seconds(body, "lease_s"))
        )

    async def release(self, request: Request) -> Response:
        """End a tool call and give its slot back."""
        body = await self._body(request)
        lease = self._gateway.slots.release(
            _text(body, "lease"),
            error=body.get("error") is True,
            cpu_s=_seconds(body, "cpu_s") or 0.0,
        )
        return self._answer(lease)

    async def _body(self, request: Request) -> dict[str, Any]:
        limits = self._gateway.settings.limits
        with self._gateway.bodies.hold() as share:
            raw = await read_body(request.scope, request.receive, limits, share)
        return decode(raw)

    def _answer(self, lease: Lease) -> Response:
        now_ps = self._gateway.clock.now_ps()
        answer = {
            "lease": lease.lease_id,
            "session_id": lease.owner.told_id,
            "waited_s": to_s(lease.started_ps - lease.queued_ps),
            "held_s": to_s(now_ps - lease.started_ps),
            "expires_s": max(0.0, to_s(lease.until_ps - now_ps)),
            "nice": lease.niceness.nice,
            "nice_after_cpu_s": lease.niceness.after_s,
        }
        return Response(msgspec.json.encode(answer), media_type=JSON)


def decode(raw: bytes) -> dict[str, Any]:
    """Decode a request body; ApiProblem (400) that says what is wrong with it."""
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiProblem(400, _what_is_wrong(raw, error), code="invalid_json") from None
    except RecursionError:
        raise ApiProblem(400, "the body is nested too deeply", code="invalid_json") from None
    if not isinstance(body, dict):
        raise ApiProblem(400, "the body must be a JSON object", code="invalid_json")
    return body


def _what_is_wrong(raw: bytes, error: Exception) -> str:
    """Python reads escapes of half a character, as JSON's grammar allows; no other reader does."""
    try:
        json.loads(raw)
    except (ValueError, RecursionError):
        return f"the body is not JSON: {error}"
    return (
        "the body holds half of a character (a lone surrogate such as \\ud83d), which is no text: "
        "replace it before sending"
    )


def _session(gateway: Gateway, scope: Scope, session_id: str) -> LiveSession:
    session = gateway.control.table.find(scope["marsbench.client"], session_id)
    if session is None or session.phase == Phase.NEW:
        raise ApiProblem(404, f"session {session_id!r}: unknown or ended", code="no_session")
    return session


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise ApiProblem(400, f"{name}: expected a non-empty string")
    return value


def _seconds(body: dict[str, Any], name: str) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise ApiProblem(400, f"{name}: expected seconds, a number >= 0")
    return float(value)


async def reply(send: Send, status: int, headers: list[tuple[bytes, bytes]], data: bytes) -> None:
    """Send a complete response."""
    length = (b"content-length", str(len(data)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    message: Message = {"type": "http.response.body", "body": data}
    await send(message)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
