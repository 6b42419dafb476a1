"""KV offloading in the simulator: stores, loads and flushes, step by step.

What vLLM's ``OffloadingConnector`` does (0.32). A step stores the whole chunks of the prompts it
computes; the copies begin with the next step. A waiting turn loads what host memory has beyond its
hit on the GPU; the copy begins when the step ends, and the turn holds its blocks meanwhile. Copies
that are done are noticed at the end of a step. The blocks of a turn that has ended are free at
once: a step that needs one before it is copied waits for the copy, and so does one that preempts.
"""

from __future__ import annotations

from collections.abc import Iterable

from marsbench.engine.base import (
    CoreListener,
    EngineConfig,
    Request,
    StoredChunks,
)
from marsbench.engine.cost import LinkCost
from marsbench.engine.sim.chunks import CopyJob, Stream
from marsbench.engine.sim.host import Access, HostCache, Span
from marsbench.engine.sim.kv import KvCache, Run
from marsbench.engine.sim.turn import SimTurn
from marsbench.engine.transfers import HostLink, TierView, tier_stats


class TurnCopies:
    """What is copied to and from host memory for one turn."""

    __slots__ = ("access", "arrived", "jobs", "late", "local", "promoted", "stored")

    def __init__(self, access: Access) -> None:
        self.access = access
        self.stored = 0
        """Chunks before this one are not offered again."""
        self.jobs: list[StoreJob] = []
        """Stores that have not arrived."""
        self.local = 0
        """Tokens the turn had on the GPU when its load began."""
        self.arrived = False
        """Its load has been noticed."""
        self.promoted = False
        self.late: StoreJob | None = None
        """After its end: the store of what was not taken before."""


class StoreJob(CopyJob):
    """A store of chunks of a turn."""

    __slots__ = ("blocks", "built", "done_ps", "reused", "turn")

    def __init__(self, turn: SimTurn) -> None:
        super().__init__()
        self.turn = turn
        self.blocks: list[Span] = []
        """Blocks of the turn that are copied."""
        self.built = False
        self.done_ps = 0
        """When it arrives; 0 before it begins."""
        self.reused: list[Span] = []
        """Blocks that were taken before it was built."""


class LoadJob(CopyJob):
    """A copy from host memory into the blocks of a waiting turn."""

    __slots__ = ("since_ps", "turn")

    def __init__(self, turn: SimTurn) -> None:
        super().__init__()
        self.turn = turn
        self.since_ps = 0


class Offload:
    """Everything between the GPU's blocks and host memory's chunks."""

    def __init__(
        self, config: EngineConfig, link: LinkCost, kv: KvCache, listener: CoreListener
    ) -> None:
        self.stats = tier_stats(config, link)
        self._host = HostCache(config.host_chunks, config.eviction_policy, config.store_threshold)
        self._link: HostLink[StoreJob | LoadJob] = HostLink(link, config.block_size)
        self._kv = kv
        kv.on_reuse = self._reused
        self._listener = listener
        self._blocks_per_chunk = config.blocks_per_chunk
        self._chunk_tokens = config.blocks_per_chunk * config.block_size
        self._block_size = config.block_size
        self._streams: dict[int, Stream] = {}
        self._prefixes: dict[int, Stream] = {}
        self._last: dict[int, Access] = {}
        self._prompt_chunks: dict[int, int] = {}
        """Whole chunks of the prompt that each session submitted last."""
        self.view = TierView(config, link, self._used_chunks, self._leading_chunks)
        self._ended: list[SimTurn] = []
        self._refused: dict[int, SimTurn] = {}
        """Running turns whose offer found no room, by sequence: offered again in every step."""
        self._fenced: set[StoreJob] = set()
        """Stores of ended turns, whose blocks anybody can take."""
        self._new_stores: list[StoreJob] = []
        self._stores: list[StoreJob] = []
        self._loads: list[LoadJob] = []
        self._flush: dict[StoreJob, None] = {}
        self._in_flight = 0
        self._told_evicted = 0

    # --- turns -----------------------------------------------------------------------------

    def submitted(self, turn: SimTurn, request: Request) -> None:
        """Note that a turn waits in the engine."""
        size = self._chunk_tokens
        shared = request.prefix_tokens // size if request.prefix_id >= 0 else 0
        stream = self._streams.get(turn.session)
        if stream is None:
            stream = self._streams[turn.session] = self._host.stream(turn.session)
        at = max(request.reused_tokens // size, shared)
        self._host.part(stream, at, self._last.get(turn.session))
        segments = [(shared, stream)]
        if shared:
            prefix = self._prefixes.get(request.prefix_id)
            if prefix is None:
                prefix = self._host.stream(-1 - request.prefix_id)
                self._prefixes[request.prefix_id] = prefix
            segments.insert(0, (0, prefix))
        access = Access(segments)
        self._last[turn.session] = access
        self._prompt_chunks[turn.session] = request.prompt_tokens // size
        turn.copies = TurnCopies(access)

    def session_ended(self, session: int) -> None:
        """Forget a session: no further turn comes, and nobody asks for its chunks again."""
        self._streams.pop(session, None)
        self._last.pop(session, None)
        self._prompt_chunks.pop(session, None)

    def _used_chunks(self) -> int:
        return self._host.resident

    def _leading_chunks(self, session: int) -> int:
        access = self._last.get(session)
        return 0 if access is None else self._host.find(access, 0, self._prompt_chunks[session])[0]

    def preempted(self, turn: SimTurn) -> None:
        """Note that a running turn loses its blocks: the engine waits for what is being copied from
        them.
        """
        copies = _of(turn)
        copies.arrived = copies.promoted = False
        self._refused.pop(turn.sequence, None)
        for job in copies.jobs:
            self._flush[job] = None

    def ended(self, turn: SimTurn, prefix_runs: list[Run]) -> None:
        """Note that a turn has made its last token, and that its blocks are free, or pinned."""
        copies = _of(turn)
        self._ended.append(turn)
        self._refused.pop(turn.sequence, None)
        last = turn.prompt_tokens // self._chunk_tokens
        if copies.stored < last:
            copies.late = StoreJob(turn)
            blocks = (copies.stored * self._blocks_per_chunk, last * self._blocks_per_chunk)
            self._fence(copies.late, [blocks], prefix_runs)
        for job in copies.jobs:
            self._fence(job, job.blocks, prefix_runs)

    def _fence(self, job: StoreJob, spans: Iterable[Span], prefix_runs: list[Run]) -> None:
        """Have the cache tell when blocks of a store are taken."""
        self._fenced.add(job)
        own = self._kv.private_run(job.turn.session)
        for run in prefix_runs if own is None else [*prefix_runs, own]:
            for lo, hi in spans:
                if lo < run.hi and run.lo < hi:
                    fences = [fence for fence in run.fences or () if not fence[0].done]
                    run.fences = [*fences, (job, lo, hi)]

    def _reused(self, run: Run, lo: int, hi: int) -> None:
        """Blocks ``lo..hi-1`` of a run are taken, with their content or without."""
        for job, start, end in run.fences or ():
            if job.done or start >= hi or end <= lo:
                continue
            if not job.built:
                job.reused.append((max(start, lo), min(end, hi)))
            else:
                self._flush[job] = None

    def touched(self, turn: SimTurn) -> None:
        """Look for copies still under way from the blocks with which a turn enters the batch, or
        begins to load.
        """
        if not self._fenced:
            return
        holding = turn.holding
        for run in holding.prefix_runs:
            self._reused(run, run.lo, run.hi)
        if holding.private is not None:
            self._reused(holding.private, holding.private.lo, holding.private.hi)

    # --- loads -----------------------------------------------------------------------------

    def lookup(self, turn: SimTurn, local_tokens: int) -> int | None:
        """Return how many tokens host memory has beyond a waiting turn's hit; None: ask again in
        the next step.
        """
        copies, size = _of(turn), self._chunk_tokens
        if copies.jobs:
            return None
        first, last = local_tokens // size, (turn.prompt_tokens + turn.generated) // size
        if last * size - local_tokens < size:
            return 0
        found, arriving, loading = self._host.find(copies.access, first, last)
        if arriving:
            return None
        tokens = (first + found) * size - local_tokens
        if tokens < size:
            return 0
        return None if loading else tokens

    def load(self, turn: SimTurn, local_tokens: int, tokens: int) -> None:
        """Begin a load into the blocks that a waiting turn got for it."""
        copies, size = _of(turn), self._chunk_tokens
        end = (local_tokens + tokens) // size
        job = LoadJob(turn)
        job.num_blocks = tokens // self._block_size
        job.num_chunks = end - local_tokens // size
        self._host.load(copies.access, local_tokens // size, end, job)
        copies.stored = end
        copies.local = local_tokens
        self._loads.append(job)
        self._in_flight += 1

    # --- a step ----------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Something is copied, or will be with the next step."""
        return bool(self._in_flight or self._ended)

    @property
    def quiet(self) -> bool:
        """No step has anything to do with copies before the next one arrives."""
        return not (self._ended or self._stores or self._refused or self._fenced)

    def next_done_ps(self) -> int | None:
        """Return when the next copy arrives."""
        return self._link.next_done_ps()

    def plan(
        self,
        chunks: list[tuple[SimTurn, int]],
        running: list[SimTurn],
        skipped: list[SimTurn],
        now_ps: int,
    ) -> None:
        """Choose the stores of a step: of the turns in it, then of those that have ended."""
        for job in self._loads:
            job.since_ps = now_ps
            tokens = job.num_blocks * self._block_size
            self._listener.on_load(job.turn, now_ps, _of(job.turn).local, tokens)
        if self._refused:
            counts = {turn.sequence: count for turn, count in chunks}
            left_out = {turn.sequence for turn in skipped}
            for turn in running:
                if turn.sequence in counts:
                    self._store(turn, turn.computed + counts[turn.sequence], now_ps)
                elif turn.decoding and turn.sequence not in left_out:
                    self._store(turn, turn.prompt_tokens, now_ps)
        else:
            for turn, count in chunks:
                self._store(turn, turn.computed + count, now_ps)
        if not self._ended:
            return
        ended = sorted(self._ended, key=_sequence)
        self._ended = []
        for turn in ended:
            self._store(turn, turn.prompt_tokens, now_ps, _of(turn).late)
        for turn in ended:
            self._host.finish(_of(turn).access)
            late = _of(turn).late
            if late is not None and not late.built:
                late.done = True
                self._fenced.discard(late)

    def _store(self, turn: SimTurn, tokens: int, now_ps: int, late: StoreJob | None = None) -> None:
        """Offer the whole chunks of a turn's prompt up to ``tokens``."""
        copies = _of(turn)
        first, last = copies.stored, min(tokens, turn.prompt_tokens) // self._chunk_tokens
        if last <= first:
            return
        job = late or StoreJob(turn)
        spans = self._host.offer(copies.access, first, last, job)
        if spans is None:
            if late is None:
                self._refused[turn.sequence] = turn
            return
        self._refused.pop(turn.sequence, None)
        copies.stored = last
        if not spans:
            return
        per_chunk = self._blocks_per_chunk
        job.built = True
        job.blocks = [(lo * per_chunk, hi * per_chunk) for lo, hi in spans]
        job.num_chunks = sum(hi - lo for lo, hi in spans)
        job.num_blocks = job.num_chunks * per_chunk
        copies.jobs.append(job)
        self._new_stores.append(job)
        self._in_flight += 1
        if any(a < hi and lo < b for a, b in job.reused for lo, hi in job.blocks):
            self._flush[job] = None
        host, evicted = self._host, self._host.evicted
        self.stats.evicted_blocks = evicted * per_chunk
        told = StoredChunks(
            job.num_chunks, evicted - self._told_evicted, host.evicted_sum, host.resident
        )
        self._told_evicted = evicted
        self._listener.on_store(turn, now_ps, told)

    def begin(self, now_ps: int) -> int:
        """Begin the last step's stores; returns when this step can begin."""
        stores, self._stores = self._stores, []
        if self._flush:
            stores += [job for job in self._new_stores if job in self._flush]
            self._new_stores = [job for job in self._new_stores if job not in self._flush]
        done_ps = now_ps
        for job in stores:
            job.done_ps = self._link.d2h.submit(job, job.num_blocks, now_ps)
        for job in self._flush:
            done_ps = max(done_ps, job.done_ps)
        self._flush = {}
        self.stats.stall_ps += done_ps - now_ps
        if stores:
            self._count()
        return done_ps

    def end(self, now_ps: int) -> bool:
        """End a step: begin its loads and notice what has arrived. True if the next step has
        anything to do.
        """
        for job in self._loads:
            self._link.h2d.submit(job, job.num_blocks, now_ps)
        self._loads = []
        self._stores, self._new_stores = self._new_stores, []
        arrived = self.notice(now_ps)
        return arrived or bool(self._stores)

    def notice(self, now_ps: int) -> bool:
        """Take in what has arrived, stores first."""
        done = self._link.d2h.take_done(now_ps) + self._link.h2d.take_done(now_ps)
        for job in done:
            self._host.complete(job)
            self._in_flight -= 1
            job.done = True
            copies = _of(job.turn)
            if isinstance(job, StoreJob):
                copies.jobs.remove(job)
                self._fenced.discard(job)
                self._listener.on_stored(job.turn, now_ps, job.num_chunks)
            else:
                copies.arrived = True
                waited_ps = now_ps - job.since_ps
                self._listener.on_loaded(job.turn, now_ps, job.num_chunks, waited_ps)
        if done:
            self._count()
        return bool(done)

    def _count(self) -> None:
        stats, link = self.stats, self._link
        stats.stored_blocks, stats.loaded_blocks = link.d2h.blocks, link.h2d.blocks
        stats.d2h_busy_ps, stats.h2d_busy_ps = link.d2h.busy_ps, link.h2d.busy_ps
        stats.resident_blocks = self._host.resident * self._blocks_per_chunk

    def check(self) -> None:
        """Assert what must always hold."""
        self._host.check()


def _of(turn: SimTurn) -> TurnCopies:
    assert turn.copies is not None
    return turn.copies


def _sequence(turn: SimTurn) -> int:
    return turn.sequence
