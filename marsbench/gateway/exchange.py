"""One request on its way: what the client sent, what goes upstream, and how the reply is sent back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from marsbench.gateway.identity import Identity
from marsbench.gateway.prompt import Prompt
from marsbench.gateway.sessions import LiveSession

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
PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}
"""API -> its path. ``messages`` is Anthropic's, which vLLM serves too."""
STREAM_OPTIONS = {"chat", "completions"}
"""APIs that are asked for token counts; the others always send them."""
VLLM_FIELDS = {"chat", "completions", "responses"}
"""APIs whose bodies carry ``session_id``, ``priority`` and ``vllm_xargs`` in vLLM."""
_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Exchange:
    """A request of a session and the state of its reply."""

    api: str
    headers: list[tuple[str, str]]
    body: dict[str, Any]
    raw: bytes
    """The body as it came."""
    prompt: Prompt
    identity: Identity
    session: LiveSession
    send: Send
    added_usage: bool = False
    """We asked for token counts, so the client must not see them."""
    started: bool = False
    """The response's head has gone to the client."""
    finished: bool = False
    stalled_since_s: float | None = None
    """A byte for the client has been waiting since then."""
    clock: Callable[[], float] = field(default=lambda: 0.0)
    abort: Callable[[], None] | None = None
    """Cuts the client's connection at once, without waiting for it to read."""

    async def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Send the response's head."""
        self.started = True
        own = (b"x-session-id", self.session.session_id.encode("utf-8", "replace"))
        await self._send(
            {"type": "http.response.start", "status": status, "headers": [*headers, own]}
        )

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """Send some of the response's body."""
        self.finished = not more
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def whole(self, status: int, headers: Iterable[tuple[bytes, bytes]], data: bytes) -> None:
        """Send a complete response."""
        length = (b"content-length", str(len(data)).encode())
        await self.start(status, [*headers, length])
        await self.write(data, more=False)

    async def _send(self, message: Message) -> None:
        self.stalled_since_s = self.clock()
        await self.send(message)
        self.stalled_since_s = None


@dataclass(frozen=True, slots=True)
class EngineHints:
    """What a vLLM backend is told about a turn beside the request itself."""

    priority: int | None = None
    """vLLM's per-request priority, smaller first; None where the engine runs FCFS."""


def upstream_body(
    exchange: Exchange, *, is_vllm: bool, ask_usage: bool, hints: EngineHints
) -> bytes:
    """The body for the backend; the client's own bytes if nothing needs to be added."""
    extra: dict[str, Any] = {}
    body = exchange.body
    options = body.get("stream_options")
    wants = isinstance(options, dict) and options.get("include_usage") is True
    if exchange.prompt.stream and exchange.api in STREAM_OPTIONS and ask_usage and not wants:
        extra["stream_options"] = {
            **(options if isinstance(options, dict) else {}),
            "include_usage": True,
        }
        exchange.added_usage = True
    if is_vllm and exchange.api in VLLM_FIELDS:
        session = exchange.session
        given = body.get("vllm_xargs")
        extra["session_id"] = session.session_id
        extra["vllm_xargs"] = {
            **(given if isinstance(given, dict) else {}),
            "marsbench_session": session.session,
            "marsbench_turn": session.turn_index,
            "marsbench_arrival_s": session.arrival_s,
        }
        if hints.priority is not None and "priority" not in body:
            extra["priority"] = hints.priority
    if not extra:
        return exchange.raw
    return _encode({**body, **extra})


def upstream_headers(
    given: Iterable[tuple[str, str]], upstream_key: str, *, own_auth: bool
) -> list[tuple[str, str]]:
    """The client's headers without hop-by-hop ones; the gateway's own token never goes upstream."""
    drop = HOP_HEADERS | ({"authorization", "x-api-key"} if upstream_key or own_auth else set())
    kept = [(name, value) for name, value in given if name not in drop]
    kept.append(("accept-encoding", "identity"))
    if upstream_key:
        kept.append(("authorization", f"Bearer {upstream_key}"))
    return kept


def downstream_headers(raw: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The backend's headers without hop-by-hop ones."""
    found = []
    for name, value in raw:
        lower = name.lower()
        if lower.decode("latin-1") not in HOP_HEADERS and lower not in {b"date", b"server"}:
            found.append((lower, value))
    return found
