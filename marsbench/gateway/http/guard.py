"""The outer gate of every request: draining, authentication, rate; each request is counted here."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable

import msgspec
from starlette.middleware.cors import CORSMiddleware

from marsbench.gateway.backends.exchange import PATHS
from marsbench.gateway.backends.messages import Message, Receive, Send
from marsbench.gateway.http.limits import Scope
from marsbench.gateway.monitoring.meters import DEFAULT_TENANT, Tally
from marsbench.gateway.problems import ApiProblem
from marsbench.gateway.settings import GatewaySettings

access = logging.getLogger("marsbench.gateway.access")

App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset(("/health", "/ready"))
WATCH_PATHS = OPEN_PATHS | {"/metrics"}
"""All that the metrics port serves, without a token."""
ADMIN_PATHS = "/v1/admin/"
CONTROL_PATHS = ("/v1/tools/release", "/v1/tools/renew", "/end", "/metrics")
"""Still served while draining: they finish what has begun."""
DRAINING = ApiProblem(503, "the gateway is shutting down", code="draining", retry_after_s=5)
CLOSED_BY_CLIENT = 499
ENDPOINTS = {
    **{path: api for api, path in PATHS.items()},
    "/v1/messages/count_tokens": "count_tokens",
    "/v1/embeddings": "embeddings",
    "/tokenize": "tokenize",
    "/detokenize": "detokenize",
    "/metrics": "metrics",
    "/health": "health",
    "/ready": "ready",
}
FAMILIES = ("models", "sessions", "tools", "admin")
"""Endpoints of several paths, /v1/<family>/..."""


class Guard:
    """ASGI middleware; raises nothing, answers refusals itself."""

    def __init__(
        self,
        app: App,
        settings: GatewaySettings,
        tally: Tally,
        rate: Callable[[str], Awaitable[None]],
    ) -> None:
        """``rate`` takes a request of a client, or raises ApiProblem if that has too many."""
        self.draining = False
        self.metrics_port = 0
        """Port on which nothing but the gateway's state is served; 0 = there is none."""
        self._app = app
        self._tenants = {token.encode(): name for token, name in settings.tenants.items()}
        self._admins = [token.encode() for token in settings.admin_tokens]
        self._limited = settings.limits.requests_per_s > 0
        self._rate = rate
        self._tally = tally
        self._access = settings.access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0
        began_s = time.monotonic()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._check(scope)
            await self._app(scope, receive, watched)
        except ApiProblem as problem:
            if status:
                raise
            self._tally("refused")
            await refuse(watched, problem)
        except asyncio.CancelledError:
            if status:
                raise
            await refuse(watched, DRAINING)  # the server stops and cuts off what is left
        finally:
            self._count(scope, status or CLOSED_BY_CLIENT, time.monotonic() - began_s)

    def _count(self, scope: Scope, status: int, took_s: float) -> None:
        endpoint = endpoint_of(scope["path"])
        tenant = scope.get("marsbench.tenant", DEFAULT_TENANT)
        self._tally("requests", endpoint, str(status), tenant)
        if self._access:
            line = {
                "method": scope["method"],
                "endpoint": endpoint,
                "status": status,
                "seconds": round(took_s, 6),
                "tenant": tenant,
                "session": scope.get("marsbench.session", ""),
            }
            access.info("%s", msgspec.json.encode(line).decode())

    async def _check(self, scope: Scope) -> None:
        path: str = scope["path"]
        server = scope.get("server")
        if self.metrics_port and server and server[1] == self.metrics_port:
            if path not in WATCH_PATHS:
                raise ApiProblem(404, f"{path}: this port serves the gateway's metrics only")
            return
        if path in OPEN_PATHS:
            return
        headers = dict(scope["headers"])
        key = api_key(headers)
        scope["marsbench.key"] = key
        scope["marsbench.tenant"] = tenant = self._tenant(path, key)
        if self.draining and not path.endswith(CONTROL_PATHS):
            raise DRAINING
        client = scope.get("client")
        scope["marsbench.client"] = scope_of(key, client[0] if client else "")
        if self._limited:
            # Tenants have a rate of their own; without tokens each key, else each address has one.
            await self._rate(f"tenant:{tenant}" if self._tenants else scope["marsbench.client"])

    def _tenant(self, path: str, key: str) -> str:
        """Whose request it is. ApiProblem if the key may not ask for this."""
        given = key.encode("utf-8", "replace")
        admin = found = ""
        for token in self._admins:  # all of them, so that time tells nothing
            if hmac.compare_digest(token, given):
                admin = "admin"
        for token, name in self._tenants.items():
            if hmac.compare_digest(token, given):
                found = name
        if admin and (path.startswith(ADMIN_PATHS) or path == "/metrics"):
            return admin
        if self._tenants and not found:
            raise ApiProblem(401, "missing or wrong bearer token", code="invalid_api_key")
        if path.startswith(ADMIN_PATHS) and (self._admins or self._tenants):
            raise ApiProblem(403, "this needs a token of --admin-token-file", code="no_admin")
        return found or DEFAULT_TENANT


def with_cors(app: App, settings: GatewaySettings) -> App:
    """The app, which web pages may call where an operator says so."""
    if not settings.cors_origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=settings.cors_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
    )


def endpoint_of(path: str) -> str:
    """Return the endpoint of a path. There are few, so each can be a label of a metric."""
    if path.startswith("/s/"):
        path = "/" + path[3:].partition("/")[2]
    if path in ENDPOINTS:
        return ENDPOINTS[path]
    family = path.removeprefix("/v1/").partition("/")[0]
    return family if family in FAMILIES else "other"


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
    """Return the bearer token or x-api-key of a request; empty if it has none."""
    given = headers.get(b"authorization", b"")
    if given[:7].lower() == b"bearer ":
        return given[7:].strip().decode("latin-1")
    return headers.get(b"x-api-key", b"").decode("latin-1")


def scope_of(key: str, address: str) -> str:
    """Return whose sessions a request may continue; never the key itself."""
    if key:
        return "key:" + hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=8).hexdigest()
    return "addr:" + address
