"""What vLLM holds for the retention book: blocks of finished requests, by an extra reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from marsbench.engine.retention import Pin, RetentionBook
from marsbench.scheduler.base import TurnView

Blocks = Sequence[Any]
"""vLLM's ``KVCacheBlock`` objects, in the order of the context."""


def releaser(pool: Any) -> Callable[[Blocks], None]:
    """Return the function that drops a pin's references: tail first, so that the end of a context
    is evicted before its beginning.
    """

    def release(blocks: Blocks) -> None:
        pool.free_blocks(reversed(blocks))

    return release


def retain(
    book: RetentionBook[Blocks],
    pool: Any,
    turn: TurnView,
    *,
    tool_names: Sequence[str],
    is_last: bool,
    blocks: Blocks,
    now_ps: int,
) -> None:
    """Reference a finished turn's full blocks if the policy says so."""
    full = [block for block in blocks if block.block_hash is not None]
    until_ps = book.keep_until(turn, tool_names, is_last, len(full), now_ps)
    if until_ps > now_ps:
        pool.touch(full)
        book.pin(turn, full, len(full), now_ps, until_ps)


def holders(pins: Sequence[Pin[Blocks]]) -> Counter[int]:
    """Count by block id how many pins hold each block."""
    return Counter(block.block_id for pin in pins for block in pin.held)


def only_pinned(pins: Sequence[Pin[Blocks]], pool: Any) -> int:
    """Count the blocks that nothing but pins hold, each of them once."""
    alone = 0
    shared: Counter[Any] = Counter()
    for pin in pins:
        counts = [block.ref_cnt for block in pin.held]
        alone += counts.count(1)  # most blocks have one reference, and it is this pin's
        shared.update(b.block_id for b, num in zip(pin.held, counts, strict=True) if num > 1)
    blocks = pool.blocks
    return alone + sum(bool(blocks[index].ref_cnt == num) for index, num in shared.items())
