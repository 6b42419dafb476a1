"""One turn as a server gets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Hint = str | int | float | list[str] | list[int] | list[float]


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A request for a completion of token ids."""

    prompt: list[int]
    output_tokens: int
    session_id: str = ""
    priority: int = 0
    hints: Mapping[str, Hint] = field(default_factory=dict)
    """What a scheduler inside the server may know about the turn."""
