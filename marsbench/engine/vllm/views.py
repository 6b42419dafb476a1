"""What policies read of turns and of the engine, taken from vLLM's live objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from marsbench.scheduler.base import TurnView


class TurnInfo(NamedTuple):
    """What a request says about the session it belongs to."""

    session: int
    turn_index: int
    session_arrival_s: float
    ready_s: float
    tool_names: tuple[str, ...] = ()
    is_last: bool = False


class EngineTurn:
    """A vLLM request as a policy reads it."""

    __slots__ = ("_manager", "info", "last_scheduled_s", "request", "sequence")

    def __init__(self, request: Any, info: TurnInfo, sequence: int, manager: Any) -> None:
        self.request = request
        self.info = info
        self.sequence = sequence
        self.last_scheduled_s = info.ready_s
        self._manager = manager

    @property
    def session(self) -> int:
        return self.info.session

    @property
    def turn_index(self) -> int:
        return self.info.turn_index

    @property
    def session_arrival_s(self) -> float:
        return self.info.session_arrival_s

    @property
    def ready_s(self) -> float:
        return self.info.ready_s

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


class VllmView:
    """A vLLM scheduler as a policy reads it."""

    def __init__(
        self,
        scheduler: Any,
        turn_of: Callable[[Any], EngineTurn],
        pinned_blocks: Callable[[], int] = int,
    ) -> None:
        self._scheduler = scheduler
        self._pool = scheduler.kv_cache_manager.block_pool
        self._turn_of = turn_of
        self._pinned_blocks = pinned_blocks
        self.block_size = int(scheduler.block_size)
        self.num_blocks = int(self._pool.num_gpu_blocks) - 1

    @property
    def free_blocks(self) -> int:
        return int(self._pool.get_num_free_blocks())

    @property
    def pinned_blocks(self) -> int:
        return self._pinned_blocks()

    @property
    def waiting(self) -> list[EngineTurn]:
        return [self._turn_of(request) for request in self._scheduler.waiting]

    @property
    def running(self) -> list[EngineTurn]:
        return [self._turn_of(request) for request in self._scheduler.running]

    def cached_tokens(self, turn: TurnView) -> int:
        """Hit of a waiting turn if it were scheduled now."""
        assert isinstance(turn, EngineTurn)
        return int(self._scheduler.kv_cache_manager.get_computed_blocks(turn.request)[1])
