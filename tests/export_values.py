"""Plain values of protobuf attributes, for tests of what a collector gets."""

from __future__ import annotations

from typing import Any


def plain(value: Any) -> Any:
    """An OTLP AnyValue as what it holds."""
    return getattr(value, value.WhichOneof("value")) if hasattr(value, "WhichOneof") else value


def attributes(pairs: Any) -> dict[str, Any]:
    """Key-value pairs as a dictionary."""
    return {pair.key: plain(pair.value) for pair in pairs}
