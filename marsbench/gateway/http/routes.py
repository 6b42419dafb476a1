"""Which endpoint answers which path, and how what goes wrong becomes a response."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from marsbench.gateway.backends.exchange import PATHS
from marsbench.gateway.http import passing
from marsbench.gateway.http.admin import JSON, Operations
from marsbench.gateway.http.endpoints import Completions, SessionEnd, ToolEndpoints
from marsbench.gateway.problems import ApiProblem, error_body

if TYPE_CHECKING:
    from marsbench.gateway.app import Gateway
    from marsbench.gateway.http.front import HttpSide


def carrying_routes(front: HttpSide) -> list[Route]:
    """Return the routes whose bytes come from a backend."""
    found = []
    pass_through = passing.PassThrough(front)
    for prefix in ("", "/s/{session_id}"):
        for api, path in PATHS.items():
            found.append(Route(prefix + path, Completions(front, api), methods=["POST"]))
        for path, method in passing.PATHS.items():
            found.append(Route(prefix + path, pass_through.__call__, methods=[method]))
    return found


def routes(gateway: Gateway) -> list[Route]:
    """Return all routes of a gateway."""
    found = carrying_routes(gateway)
    tools, operations = ToolEndpoints(gateway), Operations(gateway)
    found += [
        Route("/v1/sessions/{session_id}/end", SessionEnd(gateway), methods=["POST"]),
        Route("/v1/tools/acquire", tools.acquire, methods=["POST"]),
        Route("/v1/tools/renew", tools.renew, methods=["POST"]),
        Route("/v1/tools/release", tools.release, methods=["POST"]),
        Route("/v1/admin/sessions", operations.sessions),
        Route("/v1/admin/sessions/{number:int}/end", operations.end, methods=["POST"]),
        Route("/metrics", operations.metrics),
        Route("/health", operations.health),
        Route("/ready", operations.ready),
    ]
    return found


async def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = f"{request.method} {request.url.path}: {error.detail.lower()}"
    return Response(error_body(error.status_code, text), error.status_code, media_type=JSON)


async def _api_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiProblem)
    headers = {k.decode(): v.decode() for k, v in error.headers()}
    headers["connection"] = "close"  # the request's body may not have been read
    return Response(error.body(), error.status, headers)


async def _server_problem(request: Request, error: Exception) -> Response:
    return Response(error_body(500, "the gateway failed; see its log"), 500, media_type=JSON)


PROBLEMS: dict[Any, Any] = {
    HTTPException: _http_problem,
    ApiProblem: _api_problem,
    Exception: _server_problem,
}
"""Handlers by the error they are for."""
