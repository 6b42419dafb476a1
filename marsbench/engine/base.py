"""What an engine core is: turns go in, steps happen in (virtual) time, finished turns come out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from marsbench.scheduler.base import EngineView


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Flags of a vLLM-like engine, named as vLLM names them."""

    num_blocks: int
    """KV blocks that can hold tokens (vLLM's null block not counted)."""
    block_size: int = 16
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 256
    max_model_len: int = 262_144
    long_prefill_token_threshold: int = 0
    long_prefill_token_threshold_adaptive: bool = False
    policy: str = "fcfs"
    """fcfs | priority"""
    enable_prefix_caching: bool = True
    scheduler_reserve_full_isl: bool = True


class Request:
    """A turn as the driver hands it to a core. Immutable after submission except by the core."""

    __slots__ = (
        "is_last",
        "output_tokens",
        "prefix_id",
        "prefix_tokens",
        "priority",
        "prompt_tokens",
        "ready_ps",
        "reused_tokens",
        "session",
        "session_arrival_ps",
        "tool_names",
        "turn_index",
    )

    def __init__(
        self,
        *,
        session: int,
        turn_index: int,
        prompt_tokens: int,
        reused_tokens: int,
        output_tokens: int,
        prefix_id: int,
        prefix_tokens: int,
        session_arrival_ps: int,
        ready_ps: int,
        priority: int,
        is_last: bool,
        tool_names: tuple[str, ...],
    ) -> None:
        self.session = session
        self.turn_index = turn_index
        self.prompt_tokens = prompt_tokens
        self.reused_tokens = reused_tokens
        """Leading tokens identical to the session's previous prompt + output."""
        self.output_tokens = output_tokens
        self.prefix_id = prefix_id
        """Index of the shared prefix; -1 if none."""
        self.prefix_tokens = prefix_tokens
        self.session_arrival_ps = session_arrival_ps
        self.ready_ps = ready_ps
        self.priority = priority
        """vLLM's request priority: smaller first (policy "priority" only)."""
        self.is_last = is_last
        self.tool_names = tool_names


class CoreListener(Protocol):
    """What a core tells the driver, in order of time. All times in picoseconds."""

    def on_scheduled_first(
        self, request: Request, at_ps: int, cached: int, uncached: int
    ) -> None: ...
    def on_preempted(self, request: Request, at_ps: int, lost_tokens: int, blocks: int) -> None: ...
    def on_resumed(self, request: Request, at_ps: int, cached: int, uncached: int) -> None: ...
    def on_first_token(self, request: Request, at_ps: int) -> None: ...
    def on_finished(
        self, request: Request, at_ps: int, *, prefilled: int, recomputed: int, cached: int
    ) -> None:
        """``at_ps`` = end of the step that made the last token. ``prefilled`` = prompt tokens
        computed, ``recomputed`` = those of them whose KV the session had had before, ``cached`` =
        prefix hit when first scheduled.
        """
        ...

    def on_pin(
        self, session: int, turn_index: int, at_ps: int, blocks: int, until_ps: int
    ) -> None: ...
    def on_unpin(
        self, session: int, turn_index: int, at_ps: int, blocks: int, reason: int, held_ps: int
    ) -> None: ...


@dataclass(slots=True)
class CoreStats:
    """Counters of a core since it was made."""

    steps: int = 0
    busy_ps: int = 0
    """Time spent in steps."""
    preemptions: int = 0
    evicted_blocks: int = 0
    """Cached blocks whose content was dropped to make room."""
    referenced_block_ps: int = 0
    """Integral over time of blocks held by running turns or pins, block-picoseconds."""


class StepTrace(Protocol):
    """Optional observer of single steps, for parity checks."""

    def step(
        self,
        index: int,
        start_ps: int,
        scheduled: list[tuple[int, int, int]],
        preempted: list[tuple[int, int]],
        free_blocks: int,
    ) -> None:
        """``scheduled`` = (session, turn, tokens) in scheduling order; ``preempted`` = (session,
        turn); ``free_blocks`` after scheduling.
        """
        ...


class EngineCore(Protocol):
    """A continuous-batching engine in virtual time."""

    view: EngineView
    stats: CoreStats

    def fits(self, prompt_tokens: int, output_tokens: int) -> bool:
        """Whether a turn of this size can ever run (KV cache and model length)."""
        ...

    def submit(self, request: Request) -> None:
        """Put a turn into the waiting queue at the current time."""
        ...

    def advance(self, now_ps: int, limit_ps: int) -> int:
        """Run steps from ``now_ps``; return the new time.

        Steps start one after the other while there is work. Returns at the end of the first step
        (1) in which a turn finished, or (2) that ends at or after ``limit_ps``. Returns
        ``limit_ps`` unchanged by any step if there is nothing to run (all that waits is blocked
        or nothing waits); the driver then jumps to its next event. A step that began before
        ``limit_ps`` is finished, so the returned time can exceed it.
        """
        ...

    def session_ended(self, session: int) -> None:
        """No further turn of this session will come (its pins are dropped)."""
        ...

    def cached_blocks(self) -> int:
        """Unreferenced blocks with reusable content."""
        ...

    def idle(self) -> bool:
        """True if nothing waits and nothing runs."""
        ...

    def check_integrity(self) -> None:
        """Assert that every block is accounted for exactly once."""
        ...
