"""What a clairvoyant policy knows before the run: every session's work, gaps and memory over time.

Not a published policy: the model of the future behind oracle.py and bound.py. All durations are
those of the session alone on an idle deployment, from the speeds in ``PolicyContext`` and the
tool times of the trace, with every reusable prefix found in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from marsbench.core import PolicyContext, Session, SharedPrefix, Turn, plan_turns

SHORT_CONTEXT_TOKENS = 1024
"""Context that ``PolicyContext.decode_step_s`` is stated for."""

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Profile = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TurnWork:
    """What one turn of a session takes if it is alone."""

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
    """Of the context: the shared prefix."""

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
    prefix: SharedPrefix | None
    """Leading tokens that other sessions may hold too."""

    def remaining_s(self, turn_index: int, *, after_engine: bool) -> float:
        """Return the seconds left from the start, or from the end of the engine part, of a turn."""
        turn = self.turns[turn_index]
        spent_s = turn.start_s + (turn.engine_s if after_engine else 0.0)
        return self.total_s - spent_s


def foresee(
    sessions: Sequence[Session], context: PolicyContext, *, kv_read_s_per_token: float = 0.0
) -> list[Future]:
    """The future of every session of a cell, by its index.

    Top-level sessions have the first indices. Sub-agents follow: those of a turn side by side, then
    what each of them starts, before the next turn's. A session ends with its last turn, so tools
    and sub-agents recorded there never run. ``kv_read_s_per_token`` is what each token of context
    adds to a decode step; a policy is told only the step with a short context.
    """
    found: dict[int, Future] = {}
    next_child = len(sessions)

    def look(index: int, session: Session, root: int, offset_s: float) -> float:
        nonlocal next_child
        clock_s = 0.0
        shared = session.shared_prefix.tokens if session.shared_prefix else 0
        turns: list[TurnWork] = []
        for turn, plan in zip(session.turns, plan_turns(session), strict=True):
            new_tokens = plan.prompt_tokens - plan.reused_tokens
            work_s = context.prefill_s(new_tokens, plan.prompt_tokens)
            # The step that ends the prefill makes the first token.
            steps = max(0, plan.output_tokens - 1)
            reads = max(0, plan.prompt_tokens - SHORT_CONTEXT_TOKENS) * kv_read_s_per_token
            decode_s = steps * (context.decode_step_s + reads)
            is_last = len(turns) + 1 == len(session.turns)
            gap_s = 0.0 if is_last else _own_gap_s(turn)
            first_child = next_child
            next_child += len(turn.children)
            for number, child in enumerate(turn.children):
                start_s = offset_s + clock_s + work_s + decode_s
                child_s = look(first_child + number, child, root, start_s)
                gap_s = gap_s if is_last else max(gap_s, child_s + turn.think_s)
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
        found[index] = Future(root, offset_s, tuple(turns), clock_s, session.shared_prefix)
        return clock_s

    for index, session in enumerate(sessions):
        look(index, session, index, 0.0)
    return [found[index] for index in range(len(found))]


def memory_profiles(
    futures: Sequence[Future],
    num_roots: int,
    *,
    bucket_s: float,
    block_size: int,
    drop_gap_s: float,
) -> list[Profile]:
    """Blocks each top-level session needs over its own time, its sub-agents included.

    Entry b is the most it needs at any time in the b-th ``bucket_s`` after its start. In gaps
    longer than ``drop_gap_s`` it needs none. Shared prefixes are not counted.
    """
    import numpy as np  # not for those who only list systems

    lengths = [1] * num_roots
    for future in futures:
        end_s = future.root_offset_s + future.total_s
        lengths[future.root] = max(lengths[future.root], int(end_s / bucket_s) + 1)
    profiles = [np.zeros(length) for length in lengths]
    for future in futures:
        own = np.zeros(lengths[future.root])
        for turn in future.turns:
            start_s = future.root_offset_s + turn.start_s
            held_s = turn.engine_s + (turn.gap_s if turn.gap_s <= drop_gap_s else 0.0)
            span = own[int(start_s / bucket_s) : int((start_s + held_s) / bucket_s) + 1]
            blocks = -(-(turn.context_tokens - turn.shared_tokens) // block_size)
            np.maximum(span, blocks, out=span)
        profiles[future.root] += own
    return profiles


def _own_gap_s(turn: Turn) -> float:
    """Tools run side by side; think time follows them."""
    return max((call.wall_s for call in turn.tools), default=0.0) + turn.think_s
