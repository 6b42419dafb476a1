"""KV cache of the simulator: prefix caching with reference counts and LRU, kept as runs of blocks.

vLLM keeps one object per block and a linked list of free ones. Its rules (0.32: ``BlockPool``,
``FullAttentionManager``) never separate the blocks of a turn: a finished turn frees them tail
first, an allocation takes from the head of the list, a hit touches a prefix. So a *run* -
consecutive block indices of one content stream with one reference count - is enough, and the
free list is a list of runs that shrink from their high end. Same decisions, far fewer objects.

A session's blocks ``[0, prefix)`` belong to its shared prefix, the rest to itself. Copies of
the same prefix block can coexist (two turns computed it at the same time); a hit takes the one
cached first, as vLLM does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from marsbench.engine.sim.offload import StoreJob

PRIVATE = 0
PREFIX = 1
DEAD = 2


class Run:
    """Blocks ``lo..hi-1`` of one stream, all with the same reference count."""

    __slots__ = (
        "after",
        "before",
        "fences",
        "hi",
        "holders",
        "kind",
        "lo",
        "order",
        "owner",
        "ref",
    )

    def __init__(self, kind: int, owner: int, lo: int, hi: int, order: int) -> None:
        self.kind = kind
        self.owner = owner
        """Session (PRIVATE) or prefix id (PREFIX)."""
        self.lo = lo
        self.hi = hi
        self.ref = 0
        self.order = order
        """Order in which copies of a prefix were cached."""
        self.holders: list[Holding] = []
        """PREFIX only: who references it."""
        self.fences: list[tuple[StoreJob, int, int]] | None = None
        """Blocks that are being copied to host memory, for turns that hold them no longer."""
        self.before: Run = self
        self.after: Run = self


class Holding:
    """The blocks of a running turn or a pin."""

    __slots__ = (
        "block_size",
        "blocks",
        "pinned",
        "prefix_runs",
        "private",
        "session",
        "shared_blocks",
    )

    def __init__(self, session: int, shared_blocks: int, block_size: int) -> None:
        self.session = session
        self.block_size = block_size
        self.shared_blocks = shared_blocks
        """How many leading blocks of the session lie fully in its shared prefix."""
        self.blocks = 0
        """Blocks referenced, hashed or not."""
        self.prefix_runs: list[Run] = []
        self.private: Run | None = None
        self.pinned = False


class KvCache:
    """Paged KV memory with prefix caching."""

    def __init__(self, num_blocks: int, block_size: int, enable_caching: bool) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_caching = enable_caching
        self.plain = num_blocks
        """Free blocks without content: used up before any cached block is evicted."""
        self.cached = 0
        """Free blocks with reusable content."""
        self.evicted = 0
        self.on_reuse: Callable[[Run, int, int], None] | None = None
        """Told of blocks taken from a run that has fences."""
        self._head = Run(DEAD, -1, 0, 0, 0)
        self._private: dict[int, Run] = {}
        self._prefixes: dict[int, list[Run]] = {}
        self._order = 0

    @property
    def free(self) -> int:
        """Blocks an allocation could take."""
        return self.plain + self.cached

    # --- lookups ---------------------------------------------------------------------------

    def hit(self, session: int, prefix_id: int, shared_blocks: int, limit: int) -> tuple[int, int]:
        """Return how many leading blocks of a session are cached (at most ``limit``), and how many
        of them are free.
        """
        if not self.enable_caching or limit <= 0:
            return 0, 0
        hit = 0
        unreferenced = 0
        wanted = shared_blocks if shared_blocks < limit else limit
        if wanted > 0:
            copies = self._prefixes.get(prefix_id)
            if copies is None:
                return 0, 0
            while hit < wanted:
                run, end = self._copy_at(copies, hit, wanted)
                if run is None:
                    return hit, unreferenced
                if run.ref == 0:
                    unreferenced += end - hit
                hit = end
        if limit > shared_blocks:
            own = self._private.get(session)
            if own is not None:
                end = own.hi if own.hi < limit else limit
                if end > hit:
                    if own.ref == 0:
                        unreferenced += end - hit
                    hit = end
        return hit, unreferenced

    @staticmethod
    def _copy_at(copies: list[Run], index: int, limit: int) -> tuple[Run | None, int]:
        """The copy of block ``index`` cached first, and up to where it is the one to use."""
        best: Run | None = None
        for run in copies:
            if run.lo <= index < run.hi and (best is None or run.order < best.order):
                best = run
        if best is None:
            return None, index
        end = best.hi if best.hi < limit else limit
        for run in copies:
            if index < run.lo < end and run.order < best.order:
                end = run.lo
        return best, end

    # --- references ------------------------------------------------------------------------

    def touch(self, holding: Holding, prefix_id: int, hit: int) -> None:
        """Take a reference on the first ``hit`` blocks; content beyond them becomes unreachable."""
        shared = holding.shared_blocks
        wanted = shared if shared < hit else hit
        position = 0
        while position < wanted:
            copies = self._prefixes[prefix_id]
            run, end = self._copy_at(copies, position, wanted)
            assert run is not None
            run = self._cut(run, position, end, copies)
            if run.ref == 0:
                self._unlink(run)
            run.ref += 1
            run.holders.append(holding)
            holding.prefix_runs.append(run)
            position = end
        own = self._private.pop(holding.session, None)
        if own is not None:
            self._take_private(holding, own, hit)
        holding.blocks = hit

    def _take_private(self, holding: Holding, own: Run, hit: int) -> None:
        assert own.ref == 0, "a session has one turn at a time, and its pin is released first"
        if hit <= own.lo:
            own.kind = DEAD
            return
        if hit < own.hi:
            live = Run(PRIVATE, own.owner, own.lo, hit, 0)
            live.fences = own.fences
            own.kind = DEAD
            own.lo = hit
            self.cached -= hit - live.lo
        else:
            live = own
            self._unlink(own)
        live.ref = 1
        holding.private = live

    def _cut(self, run: Run, lo: int, hi: int, copies: list[Run]) -> Run:
        """The part ``[lo, hi)`` of a prefix run as a run of its own."""
        if hi < run.hi:
            self._split(run, hi, copies)
        if lo > run.lo:
            return self._split(run, lo, copies)
        return run

    def _split(self, run: Run, at: int, copies: list[Run]) -> Run:
        """Split at a block index; returns the new upper part, which is evicted before the lower."""
        upper = Run(PREFIX, run.owner, at, run.hi, run.order)
        upper.ref = run.ref
        upper.fences = run.fences
        run.hi = at
        copies.append(upper)
        if run.ref == 0:
            self._link_before(upper, run)
        for holding in run.holders:
            runs = holding.prefix_runs
            runs.insert(runs.index(run) + 1, upper)
            upper.holders.append(holding)
        return upper

    def grow(self, holding: Holding, prefix_id: int, old_tokens: int, new_tokens: int) -> None:
        """Allocate so that ``new_tokens`` fit; blocks that become full become reusable at once.

        The caller has checked that enough blocks are free.
        """
        size = self.block_size
        need = -(-new_tokens // size) - holding.blocks
        if need > 0:
            self.take(need)
            holding.blocks += need
        shared = holding.shared_blocks
        before = old_tokens // size
        if before < shared and self.enable_caching:
            full = new_tokens // size
            full = full if full < shared else shared
            if full > before:
                self._cache_prefix(holding, prefix_id, before, full)

    def _cache_prefix(self, holding: Holding, prefix_id: int, lo: int, hi: int) -> None:
        copies = self._prefixes.get(prefix_id)
        if copies is None:
            copies = self._prefixes[prefix_id] = []
        runs = holding.prefix_runs
        if len(copies) == 1 and runs and runs[-1] is copies[0] and copies[0].ref == 1:
            copies[0].hi = hi
            return
        self._order += 1
        run = Run(PREFIX, prefix_id, lo, hi, self._order)
        run.ref = 1
        run.holders.append(holding)
        runs.append(run)
        copies.append(run)

    def cache_loaded(self, holding: Holding, prefix_id: int, local: int, tokens: int) -> None:
        """Make the blocks between two counts of tokens reusable, which were loaded."""
        shared = holding.shared_blocks
        lo, hi = local // self.block_size, min(tokens // self.block_size, shared)
        if lo < hi:
            self._cache_prefix(holding, prefix_id, lo, hi)

    def private_run(self, session: int) -> Run | None:
        """Return what a session left in the cache beyond its shared prefix."""
        return self._private.get(session)

    def take(self, count: int) -> None:
        """Allocate ``count`` blocks: empty ones first, then the least recently used cached ones."""
        if count <= self.plain:
            self.plain -= count
            return
        count -= self.plain
        self.plain = 0
        self.cached -= count
        self.evicted += count
        head = self._head
        while count:
            run = head.after
            assert run is not head, "allocation beyond the free blocks"
            size = run.hi - run.lo
            if run.fences is not None and self.on_reuse is not None:
                self.on_reuse(run, max(run.lo, run.hi - count), run.hi)
            if size > count:
                run.hi -= count
                return
            count -= size
            run.hi = run.lo
            self._unlink_only(run)
            self._forget(run)

    def _forget(self, run: Run) -> None:
        if run.kind == PRIVATE:
            del self._private[run.owner]
        elif run.kind == PREFIX:
            copies = self._prefixes[run.owner]
            copies.remove(run)
            if not copies:
                del self._prefixes[run.owner]

    def release(self, holding: Holding, tokens: int) -> None:
        """Drop all references: tail first, so that the end of a context is evicted before its
        beginning. ``tokens`` = tokens with a slot; blocks they do not fill have no content.
        """
        full = tokens // self.block_size if self.enable_caching else 0
        shared = holding.shared_blocks
        self.plain += holding.blocks - full
        if full > shared:
            own = holding.private
            if own is None:
                own = Run(PRIVATE, holding.session, shared, full, 0)
            own.hi = full
            own.ref = 0
            self._private[holding.session] = own
            self._append(own)
        for run in reversed(holding.prefix_runs):
            run.ref -= 1
            run.holders.remove(holding)
            if run.ref == 0:
                self._append(run)
        holding.private = None
        holding.prefix_runs = []
        holding.blocks = 0

    def keep(self, holding: Holding, tokens: int) -> Holding:
        """Turn a finished turn's blocks into a pin: full blocks stay referenced, the rest is freed."""
        full = tokens // self.block_size if self.enable_caching else 0
        self.plain += holding.blocks - full
        pin = Holding(holding.session, holding.shared_blocks, self.block_size)
        pin.pinned = True
        pin.blocks = full
        if full > holding.shared_blocks:
            own = holding.private
            if own is None:
                own = Run(PRIVATE, holding.session, holding.shared_blocks, full, 0)
            own.hi = full
            own.ref = 1
            pin.private = own
            self._private[holding.session] = own
        for run in holding.prefix_runs:
            run.holders.remove(holding)
            run.holders.append(pin)
            pin.prefix_runs.append(run)
        holding.private = None
        holding.prefix_runs = []
        holding.blocks = 0
        return pin

    # --- the free list ---------------------------------------------------------------------

    def _append(self, run: Run) -> None:
        tail = self._head.before
        size = run.hi - run.lo
        self.cached += size
        tail.after = run
        run.before = tail
        run.after = self._head
        self._head.before = run

    def _link_before(self, new: Run, run: Run) -> None:
        new.before = run.before
        new.after = run
        run.before.after = new
        run.before = new

    def _unlink(self, run: Run) -> None:
        self.cached -= run.hi - run.lo
        self._unlink_only(run)

    @staticmethod
    def _unlink_only(run: Run) -> None:
        run.before.after = run.after
        run.after.before = run.before
        run.before = run
        run.after = run

    # --- invariants ------------------------------------------------------------------------

    def check(self, holdings: list[Holding]) -> None:
        """Assert that every block is free once or referenced by the given holdings."""
        listed = 0
        run = self._head.after
        while run is not self._head:
            assert run.ref == 0, "a referenced run is in the free list"
            assert run.hi > run.lo, "an empty run is in the free list"
            listed += run.hi - run.lo
            run = run.after
        assert listed == self.cached, (listed, self.cached)
        assert self.plain >= 0, self.plain
        seen: dict[int, Run] = {}
        references: dict[int, int] = {}
        own = 0
        for holding in holdings:
            covered = 0
            for run in holding.prefix_runs:
                seen[id(run)] = run
                references[id(run)] = references.get(id(run), 0) + 1
                covered += run.hi - run.lo
            own += holding.blocks - covered
        for key, run in seen.items():
            assert run.ref == references[key], "reference count differs from the holders"
        shared = sum(run.hi - run.lo for run in seen.values())
        assert own + shared + self.free == self.num_blocks, (own, shared, self.free)
