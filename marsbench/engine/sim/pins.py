"""What the simulated engine holds for its retention book: blocks of finished turns, as pins."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from marsbench.engine.base import Request
from marsbench.engine.retention import Pin, RetentionBook
from marsbench.engine.sim.kv import Holding, KvCache
from marsbench.engine.sim.turn import SimTurn


def releaser(kv: KvCache) -> Callable[[Holding], None]:
    """Return the function that gives a pin's blocks back to the cache; all of them are full."""

    def release(holding: Holding) -> None:
        kv.release(holding, holding.blocks * kv.block_size)

    return release


def retain(
    book: RetentionBook[Holding], kv: KvCache, turn: SimTurn, request: Request, now_ps: int
) -> bool:
    """Keep a finished turn's full blocks if the policy says so; the last partial one is freed."""
    full = turn.computed // kv.block_size if kv.enable_caching else 0
    until_ps = book.keep_until(turn, request.tool_names, request.is_last, full, now_ps)
    if until_ps <= now_ps:
        return False
    book.pin(turn, kv.keep(turn.holding, turn.computed), full, now_ps, until_ps)
    return True


def only_pinned(pins: Sequence[Pin[Holding]]) -> int:
    """Count the blocks that nothing but pins hold, each of them once."""
    count = 0
    seen: set[int] = set()
    for pin in pins:
        holding = pin.held
        count += pin.num_blocks
        for run in holding.prefix_runs:
            count -= run.hi - run.lo
            if id(run) not in seen and all(holder.pinned for holder in run.holders):
                count += run.hi - run.lo
            seen.add(id(run))
    return count
