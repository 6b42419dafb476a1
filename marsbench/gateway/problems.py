"""Refusals and failures as clients of the OpenAI API expect them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    499: "client_closed_request",
    500: "server_error",
    502: "upstream_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ApiProblem(Exception):  # noqa: N818 - becomes a response, not a traceback
    """A request ends with this status and an OpenAI-style body."""

    def __init__(
        self, status: int, message: str, *, code: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.retry_after_s = retry_after_s

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers of the response."""
        found = [(b"content-type", b"application/json")]
        if self.retry_after_s is not None:
            found.append((b"retry-after", str(max(1, round(self.retry_after_s))).encode()))
        return found

    def body(self) -> bytes:
        """Return the JSON body of the response."""
        return error_body(self.status, self.message, self.code)


def error_body(status: int, message: str, code: str = "") -> bytes:
    """Return ``{"error": {...}}`` as the OpenAI API writes it."""
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error = {"message": message, "type": kind, "param": None, "code": code or None}
    return msgspec.json.encode({"error": error})


def as_openai(status: int, body: bytes) -> bytes:
    """Return a backend's error body, unchanged if it is OpenAI-style already, else wrapped into
    one.
    """
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return error_body(status, _shorten(body.decode("utf-8", "replace")) or "upstream error")
    if isinstance(found, dict) and isinstance(found.get("error"), dict):
        return body
    return error_body(status, _message(found))


def _message(found: Any) -> str:
    """The most telling text of a foreign error body."""
    if isinstance(found, Mapping):
        for key in ("message", "detail", "error"):
            text = found.get(key)
            if isinstance(text, str):
                return _shorten(text)
            if text is not None:
                return _shorten(msgspec.json.encode(text).decode())
    return _shorten(msgspec.json.encode(found).decode())


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 500 else text[:497] + "..."
