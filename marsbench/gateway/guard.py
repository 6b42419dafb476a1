"""The outer gate of every request: draining, authentication, rate, and a body that arrives in time."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from marsbench.gateway.exchange import Message, Receive, Send
from marsbench.gateway.meters import Meters
from marsbench.gateway.problems import ApiProblem
from marsbench.gateway.settings import GatewaySettings, Limits

Scope = dict[str, Any]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset(("/health", "/ready"))
CONTROL_PATHS = ("/v1/tools/release", "/v1/tools/renew", "/end", "/metrics")
"""Still served while draining: they finish what has begun."""
DRAINING = ApiProblem(503, "the gateway is shutting down", code="draining", retry_after_s=5)
MAX_CLIENTS = 10_000
DISCARD_S = 5.0


class Guard:
    """ASGI middleware; raises nothing, answers refusals itself."""

    def __init__(
        self, app: App, settings: GatewaySettings, meters: Meters, now_s: Callable[[], float]
    ) -> None:
        self.draining = False
        self._app = app
        self._tokens = [token.encode() for token in settings.tokens]
        self._rate = RateLimit(settings.limits)
        self._meters = meters
        self._now_s = now_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, watched)
        except ApiProblem as problem:
            if started:
                raise
            self._meters.refused.inc()
            await refuse(send, problem)

    def _check(self, scope: Scope) -> None:
        path: str = scope["path"]
        if path in OPEN_PATHS:
            return
        headers = dict(scope["headers"])
        key = api_key(headers)
        scope["marsbench.key"] = key
        if self._tokens and not self._known(key):
            raise ApiProblem(401, "missing or wrong bearer token", code="invalid_api_key")
        if self.draining and not path.endswith(CONTROL_PATHS):
            raise DRAINING
        client = scope.get("client")
        scope["marsbench.client"] = scope_of(key, client[0] if client else "")
        self._rate.check(scope["marsbench.client"], self._now_s())

    def _known(self, key: str) -> bool:
        given = key.encode("utf-8", "replace")
        found = False
        for token in self._tokens:  # all of them, so that time tells nothing
            found |= hmac.compare_digest(token, given)
        return found


class RateLimit:
    """A token bucket per client."""

    def __init__(self, limits: Limits) -> None:
        self._rate = limits.requests_per_s
        self._burst = float(limits.burst)
        self._clients: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def check(self, client: str, now_s: float) -> None:
        """Take one request; ApiProblem (429) if the client has none left."""
        if not self._rate:
            return
        left, at_s = self._clients.pop(client, (self._burst, now_s))
        left = min(self._burst, left + (now_s - at_s) * self._rate)
        if left < 1.0:
            self._clients[client] = left, now_s
            wait_s = math.ceil((1.0 - left) / self._rate)
            raise ApiProblem(
                429, "too many requests", code="rate_limit_exceeded", retry_after_s=wait_s
            )
        self._clients[client] = left - 1.0, now_s
        if len(self._clients) > MAX_CLIENTS:
            self._clients.popitem(last=False)


async def read_body(scope: Scope, receive: Receive, limits: Limits) -> bytes:
    """The whole body; ApiProblem if it is too large, too slow, or its client goes away."""
    declared = next((v for k, v in scope["headers"] if k == b"content-length"), b"0")
    if declared.isdigit() and int(declared) > limits.body_bytes:
        await _discard(receive, 2 * limits.body_bytes)
        raise _too_large(limits)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.body_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ApiProblem(499, "the client went away")
                part = message.get("body", b"")
                size += len(part)
                if size > limits.body_bytes:
                    await _discard(receive, 2 * limits.body_bytes)
                    raise _too_large(limits)
                parts.append(part)
                if not message.get("more_body", False):
                    return parts[0] if len(parts) == 1 else b"".join(parts)
    except TimeoutError:
        raise ApiProblem(
            408, f"the body did not arrive within {limits.body_s:g} s", code="slow_body"
        ) from None


async def _discard(receive: Receive, num_bytes: int) -> None:
    """Read on for a while: a client that is still sending would not see the answer."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_S):
            while num_bytes > 0:
                message = await receive()
                num_bytes -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


async def refuse(send: Send, problem: ApiProblem) -> None:
    """Answer with a problem and close the connection, whatever of the request is still to come."""
    body = problem.body()
    headers = [
        *problem.headers(),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def api_key(headers: dict[bytes, bytes]) -> str:
    """Bearer token or x-api-key of a request."""
    given = headers.get(b"authorization", b"")
    if given[:7].lower() == b"bearer ":
        return given[7:].strip().decode("latin-1")
    return headers.get(b"x-api-key", b"").decode("latin-1")


def scope_of(key: str, address: str) -> str:
    """Whose sessions a request may continue; never the key itself."""
    if key:
        return "key:" + hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=8).hexdigest()
    return "addr:" + address


def _too_large(limits: Limits) -> ApiProblem:
    mib = limits.body_bytes / (1 << 20)
    return ApiProblem(413, f"the body is larger than {mib:g} MiB", code="body_too_large")
