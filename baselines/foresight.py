"""What a clairvoyant policy knows before the run: every session's work, gaps and memory over time.

Not a published policy: the model of the future behind oracle.py and bound.py. All durations are
those of the session alone on an idle deployment, from the speeds in ``PolicyContext`` and the
tool times of the trace, with every reusable prefix found in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from marsbench.core import PolicyContext, Session, Turn, plan_turns

Profile = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TurnWork:
    """One turn of a session, alone."""

    start_s: float
    """Since the session's first turn became ready."""
    prefill_s: float
    """Of the tokens that no cache can have."""
    decode_s: float
    gap_s: float
    """Tools, sub-agents and think time until the next turn is ready."""
    reused_tokens: int
    context_tokens: int
    """Prompt plus output: what the KV cache holds at the end of the turn."""
    output_tokens: int
    shared_tokens: int
    """Leading tokens that other sessions may hold too."""

    @property
    def engine_s(self) -> float:
        return self.prefill_s + self.decode_s


@dataclass(frozen=True, slots=True)
class Future:
    """One session as the oracle sees it."""

    root: int
    """Index of the top-level session that started it (itself, if it is one)."""
    root_offset_s: float
    """Start, in the time of the root session."""
    turns: tuple[TurnWork, ...]
    total_s: float

    def remaining_s(self, turn_index: int, *, after_engine: bool) -> float:
        """Seconds left from the start (or from the end of the engine part) of a turn."""
        turn = self.turns[turn_index]
        spent_s = turn.start_s + (turn.engine_s if after_engine else 0.0)
        return self.total_s - spent_s


def prefill_s(new_tokens: int, context_tokens: int, context: PolicyContext) -> float:
    """Seconds to prefill the last ``new_tokens`` of a context."""
    pairs = new_tokens * (context_tokens - new_tokens) + new_tokens * new_tokens / 2
    return new_tokens / context.prefill_tokens_per_s + pairs * context.prefill_s_per_pair


def flatten(sessions: Sequence[Session]) -> list[Session]:
    """Sessions in order of their index in a cell: top-level ones, then all children depth first."""
    children: list[Session] = []

    def collect(session: Session) -> None:
        for turn in session.turns:
            for child in turn.children:
                children.append(child)
                collect(child)

    for session in sessions:
        collect(session)
    return [*sessions, *children]


def foresee(sessions: Sequence[Session], context: PolicyContext) -> list[Future]:
    """The future of every session of a cell, by its index."""
    found: dict[int, Future] = {}
    next_child = len(sessions)

    def look(index: int, session: Session, root: int, offset_s: float) -> float:
        nonlocal next_child
        clock_s = 0.0
        shared = session.shared_prefix.tokens if session.shared_prefix else 0
        turns: list[TurnWork] = []
        for turn, plan in zip(session.turns, plan_turns(session), strict=True):
            new_tokens = plan.prompt_tokens - plan.reused_tokens
            work_s = prefill_s(new_tokens, plan.prompt_tokens, context)
            # The step that ends the prefill makes the first token.
            decode_s = max(0, plan.output_tokens - 1) * context.decode_step_s
            gap_s = _own_gap_s(turn)
            for child in turn.children:
                child_index, next_child = next_child, next_child + 1
                child_start_s = offset_s + clock_s + work_s + decode_s
                gap_s = max(gap_s, look(child_index, child, root, child_start_s) + turn.think_s)
            turns.append(
                TurnWork(
                    start_s=clock_s,
                    prefill_s=work_s,
                    decode_s=decode_s,
                    gap_s=gap_s,
                    reused_tokens=plan.reused_tokens,
                    context_tokens=plan.prompt_tokens + plan.output_tokens,
                    output_tokens=plan.output_tokens,
                    shared_tokens=shared,
                )
            )
            clock_s += work_s + decode_s + gap_s
        found[index] = Future(root, offset_s, tuple(turns), clock_s)
        return clock_s

    for index, session in enumerate(sessions):
        look(index, session, index, 0.0)
    return [found[index] for index in range(len(found))]


def memory_profiles(
    futures: Sequence[Future], num_roots: int, bucket_s: float, block_size: int
) -> list[Profile]:
    """Blocks each top-level session needs over its own time, its sub-agents included.

    Entry b is the most it needs at any time in the b-th ``bucket_s`` after its start.
    """
    lengths = [1] * num_roots
    for future in futures:
        end_s = future.root_offset_s + future.total_s
        lengths[future.root] = max(lengths[future.root], int(end_s / bucket_s) + 1)
    profiles = [np.zeros(length) for length in lengths]
    for future in futures:
        own = np.zeros(lengths[future.root])
        for turn in future.turns:
            start_s = future.root_offset_s + turn.start_s
            first = int(start_s / bucket_s)
            last = int((start_s + turn.engine_s + turn.gap_s) / bucket_s)
            span = own[first : last + 1]
            np.maximum(span, -(-turn.context_tokens // block_size), out=span)
        profiles[future.root] += own
    return profiles


def _own_gap_s(turn: Turn) -> float:
    """Tools run side by side; think time follows them."""
    return max((call.wall_s for call in turn.tools), default=0.0) + turn.think_s
