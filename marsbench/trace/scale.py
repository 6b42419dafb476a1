"""Scales the tokens of sessions and keeps their shape, for engines with short contexts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from marsbench.core import Session, ToolCall, Turn
from marsbench.errors import ConfigError


def scale_sessions(
    sessions: Iterable[Session], prompts: float, outputs: float
) -> Iterator[Session]:
    """Return the sessions, one after the other, with their tokens scaled by two factors.

    Prompts, tool results and shared prefixes change by ``prompts``, outputs by ``outputs``. Turns,
    tools and their times stay. Whatever had a token keeps one, so a session keeps its shape, and
    so does what a full KV cache does to it. Raises ConfigError if a factor is not positive.
    """
    for name, factor in (("--prompts", prompts), ("--outputs", outputs)):
        if not 0 < factor < float("inf"):
            raise ConfigError(f"{name} {factor}: a factor must be a positive number")
    return (_scaled(session, prompts, outputs) for session in sessions)


def _scaled(session: Session, prompts: float, outputs: float) -> Session:
    prefix = session.shared_prefix
    return replace(
        session,
        shared_prefix=prefix and replace(prefix, tokens=_part(prefix.tokens, prompts)),
        turns=tuple(_scaled_turn(turn, prompts, outputs) for turn in session.turns),
    )


def _scaled_turn(turn: Turn, prompts: float, outputs: float) -> Turn:
    return replace(
        turn,
        new_input_tokens=_part(turn.new_input_tokens, prompts),
        output_tokens=_part(turn.output_tokens, outputs),
        drop_context_to=_known_part(turn.drop_context_to, prompts),
        kept_prefix_tokens=_known_part(turn.kept_prefix_tokens, prompts),
        tools=tuple(_scaled_call(call, prompts) for call in turn.tools),
        children=tuple(_scaled(child, prompts, outputs) for child in turn.children),
    )


def _scaled_call(call: ToolCall, prompts: float) -> ToolCall:
    return replace(call, result_tokens=_known_part(call.result_tokens, prompts))


def _known_part(tokens: int | None, factor: float) -> int | None:
    return None if tokens is None else _part(tokens, factor)


def _part(tokens: int, factor: float) -> int:
    return max(1, round(tokens * factor)) if tokens else 0
