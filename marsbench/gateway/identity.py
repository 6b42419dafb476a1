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
    "x-dynamo-session-id",
    "x-agent-session-id",
    "x-session-affinity",
)
"""First one present wins. The agent headers are those that llm-d-router's agent-identity plug-in
and Dynamo read; Codex sends ``session_id``, Claude Code its own."""
PARENT_HEADERS = (
    "x-marsbench-parent-session-id",
    "x-parent-session-id",
    "x-dynamo-parent-session-id",
)
LAST_HEADERS = ("x-marsbench-session-end", "x-session-end")
MAX_ID_CHARS = 256


class Identity(NamedTuple):
    """What the client says about its session."""

    key: str
    """Empty: nothing said, so only the prompt can tell."""
    source: str
    parent: str = ""
    is_last: bool = False
    """The client says that the session ends with this turn."""


def identify(
    path_id: str,
    headers: Mapping[str, str],
    body: Mapping[str, Any],
    api_key: str = "",
    *,
    session_per_key: bool = False,
) -> Identity:
    """The most explicit identity a request carries."""
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
    return Identity(key, source or "prompt", parent[:MAX_ID_CHARS], last)


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
    given = body.get("prompt_cache_key")
    if isinstance(given, str) and given:
        return given, "prompt_cache_key"
    return "", ""
