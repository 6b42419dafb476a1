"""ASGI's messages, and which headers pass between clients and backends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

HOP_HEADERS = frozenset(
    [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "host",
        "content-length",
        "accept-encoding",
        "expect",
    ]
)


def upstream_headers(
    given: Iterable[tuple[str, str]], upstream_key: str, *, own_auth: bool
) -> list[tuple[str, str]]:
    """Return the client's headers without hop-by-hop ones. The gateway's own token never goes
    upstream.
    """
    drop = HOP_HEADERS | ({"authorization", "x-api-key"} if upstream_key or own_auth else set())
    kept = [(name, value) for name, value in given if name not in drop]
    kept.append(("accept-encoding", "identity"))
    if upstream_key:
        kept.append(("authorization", f"Bearer {upstream_key}"))
    return kept


def downstream_headers(raw: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the backend's headers without hop-by-hop ones."""
    found = []
    for name, value in raw:
        lower = name.lower()
        if lower.decode("latin-1") not in HOP_HEADERS and lower not in {b"date", b"server"}:
            found.append((lower, value))
    return found
