"""The ways to the backends from one process: its connections, and nothing of what is known of them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import aiohttp

from marsbench.gateway.backends.upstream import KEEP_ALIVE_S, UpstreamPool
from marsbench.gateway.settings import GatewaySettings


@dataclass(frozen=True, slots=True)
class BackendLine:
    """The way to one backend."""

    url: str
    client: aiohttp.ClientSession
    """For everything but turns."""
    upstream: UpstreamPool
    """For turns."""


async def open_lines(
    settings: GatewaySettings, stack: contextlib.AsyncExitStack
) -> list[BackendLine]:
    """Ways to all backends, closed with ``stack``."""
    timeouts = settings.timeouts
    found = []
    for given in settings.backends:
        client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=timeouts.connect_s, sock_read=timeouts.upstream_read_s
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )
        await stack.enter_async_context(client)
        url = given.rstrip("/").removesuffix("/v1")
        upstream = UpstreamPool(
            url, connect_s=timeouts.connect_s, silence_s=timeouts.upstream_read_s
        )
        stack.callback(upstream.close)
        found.append(BackendLine(url, client, upstream))
    return found
