"""What an engine core is: turns go in, steps happen in (virtual) time, finished turns come out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

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
    host_chunks: int = 0
    """Chunks of KV that host memory holds (``cpu_bytes_to_use`` over a chunk's bytes); 0 = KV that
    leaves the GPU is lost."""
    blocks_per_chunk: int = 1
    """KV blocks that are stored in host memory together."""
    eviction_policy: str = "lru"
    """lru | arc, of host memory"""
    store_threshold: int = 0
    """How often a chunk is offered before host memory takes it; below 2 at once."""
    rules: str = "vllm"
    """vllm | sglang: whose scheduler and cache ``sim`` models; other engines have their own."""
    # Below: flags of SGLang, named as SGLang names them.
    schedule_policy: str = "fcfs"
    """fcfs | lpm | hrrn | shortest-prefill-first | dfs-weight | lof | random"""
    prefill_decode_interval: int = 0
    """Decode steps after a prefill before the next prefill."""
    retraction_policy: str = "length"
    """length | priority"""
    radix_eviction_policy: str = "lru"
    """lru | lfu | slru | priority | tlru"""
    tlru_threshold: int = 4096
    """TLRU: prompt tokens that may be uncached without missing the tail-TTFT goal."""
    tlru_next_prompt_estimate: int = 512
    """TLRU: tokens the next prompt of a conversation is expected to add."""
    enable_session_radix_cache: bool = False

    def fits(self, prompt_tokens: int, output_tokens: int) -> bool:
        """Whether a turn of this size can ever run. The last output token needs no KV."""
        total = prompt_tokens + output_tokens
        blocks = -(-(total - 1) // self.block_size)
        return blocks <= self.num_blocks and total <= self.max_model_len


class Request:
    """A turn as the driver hands it to a core. Immutable after submission except by the core."""

    __slots__ = (
        "due_ps",
        "here_tokens",
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
        due_ps: int = 0,
        priority: int,
        is_last: bool,
        tool_names: tuple[str, ...],
    ) -> None:
        self.session = session
        self.turn_index = turn_index
        self.prompt_tokens = prompt_tokens
        self.reused_tokens = reused_tokens
        """Leading tokens identical to the session's previous prompt + output."""
        self.here_tokens = reused_tokens
        """Those of them that the engine may have: fewer where the session's last turn was at another
        replica, and its context was cut since it was here."""
        self.output_tokens = output_tokens
        self.prefix_id = prefix_id
        """Index of the shared prefix; -1 if none."""
        self.prefix_tokens = prefix_tokens
        self.session_arrival_ps = session_arrival_ps
        self.ready_ps = ready_ps
        """When the engine has it."""
        self.due_ps = due_ps
        """When it could have been sent: earlier than ``ready_ps`` where the way there takes time or
        the sender was late."""
        self.priority = priority
        """vLLM's request priority: smaller first (policy "priority" only)."""
        self.is_last = is_last
        self.tool_names = tool_names


class TurnKey(Protocol):
    """Which turn something happened to: a request, or what a core knows of one."""

    @property
    def session(self) -> int: ...
    @property
    def turn_index(self) -> int: ...


class CoreListener(Protocol):
    """What a core reports, in order of time (``engine.life.Life`` is one). Times in picoseconds."""

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
    def on_load(self, turn: TurnKey, at_ps: int, local_tokens: int, loaded_tokens: int) -> None:
        """Hear that a waiting turn got blocks for what host memory holds of it beyond its hit on
        the GPU.
        """
        ...

    def on_loaded(self, turn: TurnKey, at_ps: int, chunks: int, waited_ps: int) -> None:
        """Hear that a load has arrived, ``waited_ps`` after its ``on_load``."""
        ...

    def on_store(self, turn: TurnKey, at_ps: int, stored: StoredChunks) -> None:
        """Hear that host memory made room for chunks of a turn, which are being copied there."""
        ...

    def on_stored(self, turn: TurnKey, at_ps: int, chunks: int) -> None:
        """Hear that a store has arrived in host memory."""
        ...


class StoredChunks(NamedTuple):
    """What a store does to host memory."""

    chunks: int
    evicted: int
    """Chunks dropped to make room."""
    evicted_sum: int
    """Says which they were: equal sums are equal chunks, for parity checks."""
    resident: int
    """Chunks in host memory afterwards, those still on their way included."""


@dataclass(slots=True)
class TierStats:
    """Counters of the host memory of a core since it was made."""

    num_blocks: int
    """Blocks that host memory holds."""
    block_bytes: int
    stored_blocks: int = 0
    loaded_blocks: int = 0
    evicted_blocks: int = 0
    """Blocks dropped from host memory to make room."""
    resident_blocks: int = 0
    """In host memory now, those still on their way included."""
    d2h_busy_ps: int = 0
    h2d_busy_ps: int = 0
    stall_ps: int = 0
    """Time steps waited for a store whose blocks were needed again."""

    def host_sample(self) -> tuple[int, int, int, int, int]:
        """Return the payload of a HOST_STATS event."""
        return (
            self.resident_blocks,
            self.num_blocks,
            self.stored_blocks,
            self.loaded_blocks,
            self.evicted_blocks,
        )

    def link_sample(self) -> tuple[int, int, int, int, int]:
        """Return the payload of a LINK_STATS event."""
        return (
            self.stored_blocks * self.block_bytes,
            self.loaded_blocks * self.block_bytes,
            self.d2h_busy_ps,
            self.h2d_busy_ps,
            self.stall_ps,
        )


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
    tier: TierStats | None = None
    """None: no host memory."""


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

    @property
    def view(self) -> EngineView: ...
    @property
    def stats(self) -> CoreStats: ...

    trace: StepTrace | None
    """Told of every step; None: nobody watches, and quiet steps may be jumped over."""

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
        """Drop a session's pin, since no further turn of this session will come."""
        ...

    def cached_blocks(self) -> int:
        """Return how many blocks hold reusable content and are referenced by nobody."""
        ...

    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        ...

    def check_integrity(self) -> None:
        """Assert that every block is accounted for exactly once."""
        ...


class LostTurn(NamedTuple):
    """A turn that was in an engine when it died."""

    request: Request
    cached: int
    """Prefix hit when first scheduled; -1 if it never was."""
    running: bool
    """It held its place and blocks: it did not wait, or wait again after a preemption."""
    computed: int
    """Tokens whose KV it held."""
    blocks: int
    prefilled: int
    recomputed: int


@runtime_checkable
class ReplicaCore(EngineCore, Protocol):
    """A core that can be one of several behind one front door (``engine.fleet``)."""

    def joins(self, other: ReplicaCore) -> None:
        """Make both cores know equal content as equal, since a session's turns may be at either."""
        ...

    def quiet_until_ps(self, now_ps: int) -> int:
        """Return a time up to which this core reports nothing and asks no policy, unless a turn is
        submitted or ended: how far the others may go before this one. It is ``now_ps`` if already
        the next step may tell something.
        """
        ...

    def cached_tokens(self, request: Request) -> int:
        """Return the prefix hit, tokens, that a turn would get if it were submitted and scheduled
        now.
        """
        ...

    def session_moved(self, session: int) -> None:
        """Drop a session's pin because its next turn runs elsewhere. Its KV stays until it is
        evicted.
        """
        ...

    def lost_turns(self) -> list[LostTurn]:
        """Return the unfinished turns in order of submission. The engine is dead and will not be
        asked again.
        """
        ...

    def lost_blocks(self) -> int:
        """Return how many blocks have content, in use or reusable."""
        ...
