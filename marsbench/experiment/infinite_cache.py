"""The prefix cache hit rate that no scheduler can beat: nothing is ever evicted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from marsbench.core import Session, plan_turns


def infinite_cache_hit_rate(sessions: Iterable[Session], block_size: int) -> float | None:
    """Cached ÷ prompt tokens over all turns, in whole blocks; None without turns.

    A shared prefix is computed by the first session that has it. The last prompt token is always
    computed, since its output starts the generation.
    """
    longest: dict[str, int] = {}
    prompt = cached = 0
    for session in _with_children(sessions):
        for index, plan in enumerate(plan_turns(session)):
            reused = plan.reused_tokens
            if index == 0 and session.shared_prefix is not None:
                seen = longest.get(session.shared_prefix.prefix_id, 0)
                longest[session.shared_prefix.prefix_id] = max(seen, session.shared_prefix.tokens)
                reused = min(reused, seen)
            prompt += plan.prompt_tokens
            cached += min(reused, plan.prompt_tokens - 1) // block_size * block_size
    return cached / prompt if prompt else None


def _with_children(sessions: Iterable[Session]) -> Iterator[Session]:
    for session in sessions:
        yield session
        for turn in session.turns:
            yield from _with_children(turn.children)
