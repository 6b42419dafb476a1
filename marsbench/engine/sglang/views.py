"""What policies read of the engine, taken from SGLang's live objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from marsbench.core import HostView
from marsbench.engine.turns import EngineTurn, TurnBook, Turns
from marsbench.scheduler.base import TurnView


def turn_book(page_size: int) -> TurnBook[Any]:
    """Make a book of the turns in a scheduler.

    How many tokens of a turn have KV is not told by SGLang's request: whoever runs the scheduler
    keeps ``computed_tokens`` up to date.
    """

    def refresh(turn: EngineTurn, request: Any) -> None:
        turn.generated_tokens = len(request.output_ids)
        turn.num_preemptions = request.retraction_count
        turn.num_blocks = -(-turn.computed_tokens // page_size)

    return TurnBook(refresh)


class SglangView:
    """An SGLang scheduler as a policy reads it."""

    host: HostView | None = None
    """SGLang's host tier cannot run here (see ``SglangCore``)."""

    def __init__(
        self,
        scheduler: Any,
        turns: TurnBook[Any],
        running: Callable[[], Any],
        pinned_blocks: Callable[[], int] = int,
    ) -> None:
        self._scheduler = scheduler
        self._allocator = scheduler.token_to_kv_pool_allocator
        self._turns = turns
        self._running = running
        self._pinned_blocks = pinned_blocks
        self.matched = False
        """SGLang has just looked up the prefixes of all waiting requests itself."""
        self.block_size = int(scheduler.page_size)
        self.num_blocks = int(scheduler.max_total_num_tokens) // self.block_size

    @property
    def free_blocks(self) -> int:
        """Of the pool, and of the tree what nobody holds."""
        evictable = self._scheduler.tree_cache.evictable_size()
        return int(self._allocator.available_size() + evictable) // self.block_size

    @property
    def pinned_blocks(self) -> int:
        return self._pinned_blocks()

    @property
    def waiting(self) -> Turns[EngineTurn]:
        return Turns(self._scheduler.waiting_queue, self._turn_of)

    @property
    def running(self) -> Turns[EngineTurn]:
        return Turns(self._running(), self._turn_of)

    def _turn_of(self, request: Any) -> EngineTurn:
        return self._turns[request.rid]

    def cached_tokens(self, turn: TurnView) -> int:
        """Return the hit of a waiting turn, tokens, if it were scheduled now.

        Looking marks what is found as used, as SGLang does itself for every waiting request before
        each prefill.
        """
        assert isinstance(turn, EngineTurn)
        from sglang.srt.mem_cache.common import match_kv_cache

        request = self._turns.request_of(turn)
        if not self.matched:
            match_kv_cache(request, self._scheduler.tree_cache)
        return int(request.num_matched_prefix_tokens) // self.block_size * self.block_size
