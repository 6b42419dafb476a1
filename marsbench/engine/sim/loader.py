"""From the queue into the batch where there is host memory: some turns load before they enter it.

As ``Scheduler.schedule`` of vLLM 0.32 admits waiting turns with its offloading connector: turns
that hold blocks come first; a turn for which host memory cannot say yet what it has is passed over;
one that loads takes blocks but neither tokens of the step nor a place in the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from marsbench.engine.sim.offload import Offload
from marsbench.engine.sim.turn import SimTurn

if TYPE_CHECKING:
    from marsbench.engine.sim.batch import Chunks, SimBatch


class Loader:
    """Admission with host memory."""

    def __init__(self, batch: SimBatch, offload: Offload) -> None:
        self._batch = batch
        self._offload = offload
        self._size = batch.config.block_size
        self._reserves = batch.config.scheduler_reserve_full_isl

    def admit(self, now_ps: int, threshold: int, budget: int, chunks: Chunks) -> None:
        """Move waiting turns into the batch, or let them load, while tokens and blocks last."""
        left = self._admit_loaded(now_ps, threshold, budget, chunks)
        if left > 0:
            self._admit_waiting(now_ps, threshold, left, chunks)

    def _admit_loaded(self, now_ps: int, threshold: int, budget: int, chunks: Chunks) -> int:
        """Turns whose KV has arrived. Returns the budget left, 0 if the queue is blocked."""
        batch, size = self._batch, self._size
        index = 0
        while index < len(batch.loading) and budget > 0:
            if self._full():
                return 0
            turn = batch.loading[index]
            copies = turn.copies
            assert copies is not None
            if not copies.arrived:
                index += 1
                continue
            total = turn.prompt_tokens + turn.generated
            if not copies.promoted:
                copies.promoted = True
                tokens = turn.computed
                batch.kv.cache_loaded(turn.holding, turn.prefix_id, copies.local, tokens)
                turn.computed = min(tokens, total - 1)
            count = self._count(turn, turn.computed, threshold, budget, now_ps)
            until = total if self._reserves else turn.computed + count
            need = -(-until // size) - turn.holding.blocks
            while need > batch.kv.free and self._reclaim(turn, now_ps):
                pass
            if need > batch.kv.free:
                batch.stuck = True
                return 0
            batch.loading.pop(index)
            self._offload.touched(turn)
            batch.enter(turn, count, now_ps)
            chunks.append((turn, count))
            budget -= count
        return budget

    def _admit_waiting(self, now_ps: int, threshold: int, budget: int, chunks: Chunks) -> None:
        batch, size = self._batch, self._size
        policy = batch.policy
        skip = policy is not None and policy.skip_blocked()
        index = 0
        undecided = False
        while index < len(batch.waiting) and budget > 0:
            if self._full():
                return
            turn = batch.waiting[index]
            if skip and not self._fits(turn, threshold, budget, now_ps):
                index += 1
                continue
            hit, _ = batch.hit_blocks(turn)
            tokens = self._offload.lookup(turn, hit * size)
            if tokens is None:
                undecided = True
                index += 1
                continue
            if tokens:
                if not self._fits_load(turn, tokens, now_ps):
                    return
                batch.waiting.pop(index)
                self._load(turn, hit, tokens, now_ps)
                continue
            if not self._fits(turn, threshold, budget, now_ps):
                batch.stuck = not undecided
                return
            count = self._count(turn, hit * size, threshold, budget, now_ps)
            batch.waiting.pop(index)
            batch.adopt(turn, hit, now_ps)
            self._offload.touched(turn)
            batch.enter(turn, count, now_ps)
            chunks.append((turn, count))
            budget -= count
        batch.stuck = bool(batch.waiting) and budget > 0 and not undecided

    def _full(self) -> bool:
        batch = self._batch
        if len(batch.running) < batch.config.max_num_seqs:
            return False
        batch.stuck = True
        return True

    def _count(self, turn: SimTurn, have: int, threshold: int, budget: int, now_ps: int) -> int:
        """Size of the first chunk on top of ``have`` tokens."""
        count = turn.prompt_tokens + turn.generated - have
        if 0 < threshold < count:
            count = threshold
        if self._batch.policy is not None:
            count = self._batch.order.quantum(turn, have, count, now_ps)
        return min(count, budget)

    def _fits(self, turn: SimTurn, threshold: int, budget: int, now_ps: int) -> bool:
        """Whether a waiting turn could enter the batch, pins given up if they must be."""
        batch, size = self._batch, self._size
        while True:
            hit, unreferenced = batch.hit_blocks(turn)
            until = turn.prompt_tokens + turn.generated
            if not self._reserves:
                until = hit * size + self._count(turn, hit * size, threshold, budget, now_ps)
            if -(-until // size) - hit + unreferenced <= batch.kv.free:
                return True
            if not self._reclaim(turn, now_ps):
                return False

    def _fits_load(self, turn: SimTurn, tokens: int, now_ps: int) -> bool:
        """Whether a waiting turn can load: nothing may take its blocks from it meanwhile, nor may
        it take those that prefills and loads under way will need.
        """
        batch, size = self._batch, self._size
        total = turn.prompt_tokens + turn.generated
        reserved = sum(
            max(-(-(t.prompt_tokens + t.generated) // size) - t.holding.blocks, 0)
            for t in batch.prefilling + batch.loading
        )
        while True:
            hit, unreferenced = batch.hit_blocks(turn)
            whole = -(-total // size) - hit + unreferenced if self._reserves else 0
            need = tokens // size + unreferenced + reserved
            if max(whole, need) <= batch.kv.free:
                return True
            if not self._reclaim(turn, now_ps):
                batch.stuck = whole > batch.kv.free
                return False

    def _load(self, turn: SimTurn, hit: int, tokens: int, now_ps: int) -> None:
        batch, size = self._batch, self._size
        batch.adopt(turn, hit, now_ps)
        self._offload.touched(turn)
        batch.kv.take(tokens // size)
        turn.holding.blocks += tokens // size
        turn.computed = hit * size + tokens
        batch.order.hold(batch.loading, turn)
        self._offload.load(turn, hit * size, tokens)

    def _reclaim(self, turn: SimTurn, now_ps: int) -> bool:
        """Give up a pin for a turn that does not fit."""
        batch = self._batch
        pins = batch.pins
        if not pins.active:
            return False
        if pins.reclaim(now_ps, turn) or (not batch.running and pins.reclaim(now_ps, None)):
            batch.freed()
            return True
        return False
