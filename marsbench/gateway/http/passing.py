"""Requests that belong to no session and go to a backend as they are: models, embeddings, tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
from starlette.requests import Request
from starlette.responses import Response

from marsbench.gateway.backends.messages import downstream_headers, upstream_headers
from marsbench.gateway.backends.pool import PROBE_S
from marsbench.gateway.http.limits import read_body
from marsbench.gateway.problems import ApiProblem, as_openai

if TYPE_CHECKING:
    from marsbench.gateway.http.front import HttpSide

PATHS = {
    "/v1/models": "GET",
    "/v1/models/{model:path}": "GET",
    "/v1/embeddings": "POST",
    "/v1/messages/count_tokens": "POST",
    "/tokenize": "POST",
    "/detokenize": "POST",
}


class PassThrough:
    """Asks the first healthy backend; one that cannot be reached is followed by the next."""

    def __init__(self, front: HttpSide) -> None:
        self._front = front

    async def __call__(self, request: Request) -> Response:
        front = self._front
        limits, desk = front.settings.limits, front.desk
        path = request.url.path
        if path.startswith("/s/"):
            path = "/" + path[3:].partition("/")[2]
        with front.bodies.hold() as share:
            raw = await read_body(request.scope, request.receive, limits, share)
            for index in await desk.healthy():
                try:
                    return await self._ask(request, index, path, raw)
                except (aiohttp.ClientError, TimeoutError) as error:
                    desk.failed(index, type(error).__name__)
        raise ApiProblem(503, "no backend is available", code="no_backend", retry_after_s=PROBE_S)

    async def _ask(self, request: Request, index: int, path: str, raw: bytes) -> Response:
        settings = self._front.settings
        line = self._front.lines[index]
        headers = upstream_headers(
            request.headers.items(), settings.upstream_key, own_auth=bool(settings.tokens)
        )
        async with line.client.request(
            request.method, line.url + path, data=raw, headers=headers, allow_redirects=False
        ) as answer:
            data = await answer.content.read(settings.limits.body_bytes)
            if not answer.content.at_eof():
                raise ApiProblem(502, "the backend's answer is too large")
            if answer.status != 200:
                status = answer.status if answer.status >= 400 else 502
                return Response(as_openai(status, data), status, media_type="application/json")
            found = Response(data)
            found.raw_headers = [
                *downstream_headers(answer.raw_headers),
                (b"content-length", str(len(data)).encode()),
            ]
            return found
