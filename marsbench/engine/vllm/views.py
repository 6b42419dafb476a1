"""What policies read of turns and of the engine, taken from vLLM's live objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from marsbench.scheduler.base import TurnView

if TYPE_CHECKING:
    from marsbench.engine.vllm.hits import PrefixHits


class TurnInfo(NamedTuple):
    """What a request says about the session it belongs to."""

    session: int
    turn_index: int
    session_arrival_s: float
    ready_s: float
    tool_names: tuple[str, ...] = ()
    is_last: bool = False


class HitEnd(NamedTuple):
    """Where a prefix hit ends: while this holds, it ends there still."""

    num_tokens: int
    cached: bytes | None
    """Key of its last block; None if it has none."""
    missing: bytes | None
    """Key of the block after it; None if no more can be hit."""


class EngineTurn:
    """A vLLM request as a policy reads it."""

    __slots__ = (
        "_manager",
        "hit",
        "hit_blocks",
        "info",
        "last_scheduled_s",
        "ready_s",
        "request",
        "sequence",
        "session",
        "session_arrival_s",
        "turn_index",
    )

    def __init__(self, request: Any, info: TurnInfo, sequence: int, manager: Any) -> None:
        self.request = request
        self.info = info
        self.sequence = sequence
        self.session, self.turn_index, self.session_arrival_s, self.ready_s = info[:4]
        self.last_scheduled_s = info.ready_s
        self.hit_blocks = 0
        """Prefix hit when last asked: a hint where to look first."""
        self.hit: HitEnd | None = None
        self._manager = manager

    @property
    def prompt_tokens(self) -> int:
        return int(self.request.num_prompt_tokens)

    @property
    def computed_tokens(self) -> int:
        return int(self.request.num_computed_tokens)

    @property
    def generated_tokens(self) -> int:
        return int(self.request.num_output_tokens)

    @property
    def num_blocks(self) -> int:
        return len(held_blocks(self._manager, self.request.request_id))

    @property
    def num_preemptions(self) -> int:
        return int(self.request.num_preemptions)


def held_blocks(manager: Any, request_id: str) -> Sequence[Any]:
    """KVCacheBlocks of a request, in order of position (models with one KV-cache group)."""
    blocks: Sequence[Any] = manager.get_blocks(request_id).blocks[0]
    return blocks


class Turns(Sequence[EngineTurn]):
    """A queue of vLLM as turns, made one by one when they are read; its length costs nothing."""

    __slots__ = ("_requests", "_turn_of")

    def __init__(self, requests: Any, turn_of: Callable[[Any], EngineTurn]) -> None:
        self._requests = requests
        self._turn_of = turn_of

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[EngineTurn]:
        return map(self._turn_of, self._requests)

    @overload
    def __getitem__(self, index: int) -> EngineTurn: ...
    @overload
    def __getitem__(self, index: slice) -> list[EngineTurn]: ...
    def __getitem__(self, index: int | slice) -> EngineTurn | list[EngineTurn]:
        return list(self)[index]  # not every queue of vLLM can be indexed

    def __reversed__(self) -> Iterator[EngineTurn]:
        return reversed(list(self))


class VllmView:
    """A vLLM scheduler as a policy reads it."""

    def __init__(
        self,
        scheduler: Any,
        turn_of: Callable[[Any], EngineTurn],
        pinned_blocks: Callable[[], int] = int,
    ) -> None:
        from marsbench.engine.vllm.hits import PrefixHits

        self._scheduler = scheduler
        self._pool = scheduler.kv_cache_manager.block_pool
        self._turn_of = turn_of
        self._pinned_blocks = pinned_blocks
        self.hits: PrefixHits = PrefixHits(scheduler)
        self.block_size = int(scheduler.block_size)
        self.num_blocks = int(self._pool.num_gpu_blocks) - 1

    @property
    def free_blocks(self) -> int:
        return int(self._pool.get_num_free_blocks())

    @property
    def pinned_blocks(self) -> int:
        return self._pinned_blocks()

    @property
    def waiting(self) -> Turns:
        return Turns(self._scheduler.waiting, self._turn_of)

    @property
    def running(self) -> Turns:
        return Turns(self._scheduler.running, self._turn_of)

    def cached_tokens(self, turn: TurnView) -> int:
        """Hit of a waiting turn if it were scheduled now."""
        assert isinstance(turn, EngineTurn)
        return self.hits.tokens(turn)
