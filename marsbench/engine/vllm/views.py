"""What policies read of the engine, taken from vLLM's live objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from marsbench.core import HostView
from marsbench.engine.turns import EngineTurn, TurnBook, Turns
from marsbench.scheduler.base import TurnView

if TYPE_CHECKING:
    from marsbench.engine.vllm.hits import PrefixHits


def held_blocks(manager: Any, request_id: str) -> Sequence[Any]:
    """Return the KVCacheBlocks of a request in order of position, for models with one KV-cache
    group.
    """
    blocks: Sequence[Any] = manager.get_blocks(request_id).blocks[0]
    return blocks


def turn_book(manager: Any) -> TurnBook[Any]:
    """Make a book of the turns in the scheduler that a ``KVCacheManager`` belongs to."""
    held = manager.coordinator.single_type_managers[0].req_to_blocks

    def refresh(turn: EngineTurn, request: Any) -> None:
        turn.computed_tokens = request.num_computed_tokens
        turn.generated_tokens = request.num_output_tokens
        turn.num_preemptions = request.num_preemptions
        turn.num_blocks = len(held.get(turn.key, ()))

    return TurnBook(refresh)


class VllmView:
    """A vLLM scheduler as a policy reads it."""

    def __init__(
        self, scheduler: Any, turns: TurnBook[Any], pinned_blocks: Callable[[], int] = int
    ) -> None:
        from marsbench.engine.vllm.hits import PrefixHits

        self._scheduler = scheduler
        self._pool = scheduler.kv_cache_manager.block_pool
        self._turns = turns
        self._pinned_blocks = pinned_blocks
        self.hits: PrefixHits = PrefixHits(scheduler, turns)
        self.host: HostView | None = None
        """Set where the copies are modelled. A live server's connector is not read."""
        self.block_size = int(scheduler.block_size)
        self.num_blocks = int(self._pool.num_gpu_blocks) - 1

    @property
    def free_blocks(self) -> int:
        return int(self._pool.get_num_free_blocks())

    @property
    def pinned_blocks(self) -> int:
        return self._pinned_blocks()

    @property
    def waiting(self) -> Turns[EngineTurn]:
        loading = self._scheduler.kv_holding_waiting
        queue = [*loading, *self._scheduler.waiting] if loading else self._scheduler.waiting
        return Turns(queue, self._turn_of)

    @property
    def running(self) -> Turns[EngineTurn]:
        return Turns(self._scheduler.running, self._turn_of)

    def _turn_of(self, request: Any) -> EngineTurn:
        return self._turns[request.request_id]

    def cached_tokens(self, turn: TurnView) -> int:
        """Return the hit of a waiting turn, tokens, if it were scheduled now."""
        assert isinstance(turn, EngineTurn)
        return turn.computed_tokens or self.hits.tokens(turn)
