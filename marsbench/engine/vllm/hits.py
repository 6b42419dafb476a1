"""How much of a waiting turn the prefix cache holds, found in a few lookups instead of one per block.

Policies ask for it for every waiting turn, again and again. vLLM walks the prompt block by block;
where all blocks are of one full-attention group, a cached block's predecessors are cached too
(whoever holds a block holds, and frees after it, one of the same content as each before it), so the
end of the hit can be searched for, beginning where it was last time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from vllm.v1.core.kv_cache_coordinator import UnitaryKVCacheCoordinator
from vllm.v1.core.kv_cache_utils import BlockHash, make_block_hash_with_group_id
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager

from marsbench.engine.turns import EngineTurn, TurnBook

GROUP = make_block_hash_with_group_id(BlockHash(b""), 0)
"""What makes a block's hash the key of the one group's block."""


class HitEnd(NamedTuple):
    """Where a prefix hit ends: while this holds, it ends there still."""

    num_tokens: int
    cached: bytes | None
    """Key of its last block; None if it has none."""
    missing: bytes | None
    """Key of the block after it; None if no more can be hit."""


class PrefixHits:
    """Prefix hits of the waiting turns of one scheduler."""

    def __init__(self, scheduler: Any, turns: TurnBook[Any]) -> None:
        self._turns = turns
        self._found: dict[str, tuple[int, HitEnd]] = {}
        """Blocks of each turn's hit when last asked, a hint where to look first, and its end."""
        self._manager = scheduler.kv_cache_manager
        self._pool = self._manager.block_pool
        self._block_size = int(scheduler.block_size)
        coordinator = self._manager.coordinator
        self._searchable = (
            type(coordinator) is UnitaryKVCacheCoordinator
            and type(coordinator.single_type_managers[0]) is FullAttentionManager
            and not coordinator.eagle_group_ids
            and coordinator.dcp_world_size == 1
            and coordinator.block_size == self._block_size
            and scheduler.connector is None  # one may evict from the middle
        )

    def tokens(self, turn: EngineTurn) -> int:
        """Return how many tokens the turn would not have to compute if it were scheduled now."""
        request = self._turns.request_of(turn)
        if not self._searchable:
            return int(self._manager.get_computed_blocks(request)[1])
        if not self._manager.prefix_cache_lookup_enabled(request):
            return 0
        found = self._found.get(turn.key)
        if found is None or not self._still(found[1], request):
            found = self._found[turn.key] = self._search(request, found[0] if found else 0)
        return found[0] * self._block_size

    def forget(self, turn: EngineTurn) -> None:
        """Forget a turn that is over."""
        self._found.pop(turn.key, None)

    def _still(self, end: HitEnd, request: Any) -> bool:
        """Whether a hit ends where it did."""
        found = self._pool.cached_block_hash_to_block.get_one_block
        return (
            end.num_tokens == request.num_tokens
            and (end.cached is None or found(end.cached) is not None)
            and (end.missing is None or found(end.missing) is None)
        )

    def evictable_at_most(self, turn: EngineTurn, limit: int) -> bool:
        """Whether no more than ``limit`` blocks of the turn's hit are unreferenced."""
        request = self._turns.request_of(turn)
        if not self._searchable:
            hit = self._manager.get_computed_blocks(request)[0].blocks[0]
            return bool(sum(block.ref_cnt == 0 for block in hit) <= limit)
        hashes, found = request.block_hashes, self._pool.cached_block_hash_to_block.get_one_block
        for index in range(self.tokens(turn) // self._block_size - 1, -1, -1):
            if found(hashes[index] + GROUP).ref_cnt == 0:
                limit -= 1
                if limit < 0:
                    return False
        return True

    def _search(self, request: Any, near: int) -> tuple[int, HitEnd]:
        """Number of leading blocks that are cached; ``near`` is where it may be."""
        hashes = request.block_hashes
        # The last token is always computed, so that there is something to sample from.
        most = min((request.num_tokens - 1) // self._block_size, len(hashes))
        found = self._pool.cached_block_hash_to_block.get_one_block
        low, high = 0, most + 1  # ``low`` blocks are cached, ``high`` are not
        probe, stride = min(near, most), 1
        while high - low > 1:
            if probe == 0 or found(hashes[probe - 1] + GROUP) is not None:
                low = probe
                probe = low + stride if high > most else (low + high) // 2
            else:
                high = probe
                probe = high - stride if low == 0 else (low + high) // 2
            stride *= 2
            probe = min(max(probe, low + 1), high - 1)
        cached = hashes[low - 1] + GROUP if low else None
        missing = hashes[low] + GROUP if low < most else None
        return low, HitEnd(request.num_tokens, cached, missing)
