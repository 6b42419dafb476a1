"""One request on its way: what the client sent, and what goes upstream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from marsbench.gateway.backends.carry import ClientSide
from marsbench.gateway.control.desk import DeskTurn, Ticket

PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}
"""API -> its path. ``messages`` is Anthropic's, which vLLM serves too."""
STREAM_OPTIONS = {"chat", "completions"}
"""APIs that are asked for token counts; the others always send them."""
TOLD_IN = {
    "vllm": ("vllm_xargs", {"chat", "completions", "responses"}),
    "sglang": ("custom_params", {"chat", "completions"}),
}
"""Engine -> field for what a scheduler in it may know of a turn, and the APIs whose bodies carry that
beside ``session_id`` and ``priority``."""
_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Exchange:
    """A request that is a turn of a session, and who asked."""

    api: str
    headers: list[tuple[str, str]]
    body: dict[str, Any]
    raw: bytes
    """The body as it came."""
    stream: bool
    turn: DeskTurn
    client: ClientSide
    added_usage: bool = False
    """We asked for token counts, so the client must not see them."""


def upstream_body(exchange: Exchange, ticket: Ticket, *, ask_usage: bool) -> bytes:
    """Return the body for the backend: the client's own bytes if nothing needs to be added."""
    extra: dict[str, Any] = {}
    body = exchange.body
    options = body.get("stream_options")
    wants = isinstance(options, dict) and options.get("include_usage") is True
    if exchange.stream and exchange.api in STREAM_OPTIONS and ask_usage and not wants:
        extra["stream_options"] = {
            **(options if isinstance(options, dict) else {}),
            "include_usage": True,
        }
        exchange.added_usage = True
    field, apis = TOLD_IN.get(ticket.engine, ("", set[str]()))
    if exchange.api in apis:
        given = body.get(field)
        extra["session_id"] = ticket.session_id
        extra[field] = {
            **(given if isinstance(given, dict) else {}),
            "marsbench_session": ticket.session,
            "marsbench_turn": ticket.turn_index,
            "marsbench_arrival_s": ticket.arrival_s,
        }
        if ticket.priority is not None and "priority" not in body:
            extra["priority"] = ticket.priority
    if not extra:
        return exchange.raw
    return _encode({**body, **extra})
