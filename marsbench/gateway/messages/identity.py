"""Who a request belongs to, as far as the client says it: path, body, agent headers, API key."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from marsbench.gateway.problems import ApiProblem

SESSION_HEADERS = (
    "x-marsbench-session-id",
    "x-session-id",
    "session-id",
    "session_id",
    "x-claude-code-session-id",
    "x-opencode-session",
    "x-litellm-session-id",
    "x-dynamo-session-id",
    "x-agent-session-id",
    "x-smg-routing-key",
    "x-session-affinity",
    "x-litellm-trace-id",
)
"""First one present wins. Codex sends ``session_id``, Claude Code and opencode their own, LiteLLM
and with it the OpenHands SDK ``x-litellm-session-id``; the others are read by routers (Dynamo,
llm-d, SGLang's gateway). A LiteLLM trace comes last: it may be a part of a session."""
PARENT_HEADERS = (
    "x-marsbench-parent-session-id",
    "x-parent-session-id",
    "x-dynamo-parent-session-id",
)
LAST_HEADERS = ("x-marsbench-session-end", "x-session-end", "x-dynamo-session-final")
GROUP_HEADERS = ("x-gateway-inference-fairness-id",)
"""Whom a request is for, where many share a key: a user or a flow, of which each has many sessions."""
NVEXT_PARTS = ("agent_hints", "agent_context", "session_control")
MAX_ID_CHARS = 256


class ClientIdentity(NamedTuple):
    """What the client says about its session."""

    key: str
    """Empty: nothing said, so only the prompt can tell."""
    source: str
    parent: str = ""
    is_last: bool = False
    """The client says that the session ends with this turn."""
    group: str = ""
    """For whom the client asks. Sessions that nobody names are told apart by it, too."""


def identify(
    path_id: str,
    headers: Mapping[str, str],
    body: Mapping[str, Any],
    api_key: str = "",
    *,
    session_per_key: bool = False,
) -> ClientIdentity:
    """Return the most explicit identity that a request carries."""
    parent = next((headers[name] for name in PARENT_HEADERS if headers.get(name)), "")
    last = any(headers.get(name, "").lower() in {"1", "true"} for name in LAST_HEADERS)
    key, source = _key(path_id, headers, body)
    if not key and session_per_key and api_key:
        digest = hashlib.blake2b(api_key.encode("utf-8", "replace"), digest_size=8)
        key, source = "key-" + digest.hexdigest(), "api key"  # ids are written; keys never are
    if len(key) > MAX_ID_CHARS or not key.isprintable():
        raise ApiProblem(
            400,
            f"session id from {source}: must be printable and at most {MAX_ID_CHARS} characters",
            code="invalid_session_id",
        )
    group = next((headers[name] for name in GROUP_HEADERS if headers.get(name)), "")
    user = body.get("user")
    if not group and isinstance(user, str):
        group = user
    return ClientIdentity(
        key, source or "prompt", parent[:MAX_ID_CHARS], is_last=last, group=group[:MAX_ID_CHARS]
    )


def _key(path_id: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> tuple[str, str]:
    if path_id:
        return path_id, "path"
    given = body.get("session_id")
    if given is not None:
        if not isinstance(given, str) or not given:
            raise ApiProblem(400, "session_id: expected a non-empty string")
        return given, "session_id"
    for name in SESSION_HEADERS:
        if headers.get(name):
            return headers[name], name
    hints = body.get("nvext")
    for part in NVEXT_PARTS:
        said = hints.get(part) if isinstance(hints, dict) else None
        given = said.get("session_id") if isinstance(said, dict) else None
        if isinstance(given, str) and given:
            return given, f"nvext.{part}"
    given = body.get("prompt_cache_key")
    if isinstance(given, str) and given:
        return given, "prompt_cache_key"
    return "", ""
