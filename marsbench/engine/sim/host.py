"""Host memory of the simulator: which chunks are stored, found, pinned and evicted.

The rules are those of vLLM's ``CPUOffloadingManager`` with its LRU and ARC policies (0.32):

- a chunk that is offered and not there is stored, whole offers or nothing; what is offered is not
  evicted for it; with a threshold only chunks offered that often are taken;
- chunks on their way in either direction cannot be evicted;
- recency: a stored chunk is the newest; when a turn has ended, all its chunks become the newest
  again, its last one to be evicted before its first;
- ARC keeps apart what was reused (``t2``) and what was not (``t1``), remembers as much as it holds
  of what it evicted from either, and moves its target for ``t1`` when it is offered such a chunk.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from marsbench.engine.sim.chunks import ChunkRun, CopyJob, Ranges, RunList, Stream, exact

MAX_TRACKED = 64_000
"""Chunks whose offers are counted for the threshold (vLLM's ``max_tracker_size``)."""

Span = tuple[int, int]


class Access:
    """What one turn did in host memory; indices are chunks of its prompt."""

    __slots__ = ("inserted", "missed", "reused", "seen", "segments")

    def __init__(self, segments: list[tuple[int, Stream]]) -> None:
        self.segments = segments
        """From which index on which stream has the content, in ascending order."""
        self.seen = Ranges()
        self.inserted = Ranges()
        self.reused = Ranges()
        self.missed = Ranges()

    def pieces(self, lo: int, hi: int) -> Iterator[tuple[Stream, int, int]]:
        """Yield the parts of ``lo..hi-1`` by stream, in ascending order."""
        for number, (start, stream) in enumerate(self.segments):
            last = number + 1 == len(self.segments)
            end = hi if last else min(hi, self.segments[number + 1][0])
            if max(lo, start) < end:
                yield stream, max(lo, start), end

    def reuse(self, lo: int, hi: int) -> None:
        """Note that the turn found chunks that it did not store itself."""
        for span in self.inserted.outside(lo, hi):
            self.reused.add(*span)


class HostCache:
    """The chunks of KV in host memory, and which of them go when room is needed."""

    def __init__(self, capacity: int, policy: str, threshold: int) -> None:
        self.capacity = capacity
        self.resident = 0
        """Chunks held, those on their way in included."""
        self.evicted = 0
        self.evicted_sum = 0
        """Identity of the chunks evicted last (``engine.base.StoredChunks``)."""
        self._arc = policy == "arc"
        self._threshold = threshold
        self._evictable = 0
        self._t1 = RunList(resident=True)
        self._t2 = RunList(resident=True)
        self._b1 = RunList(resident=False)
        self._b2 = RunList(resident=False)
        self._target = 0.0
        self._offers: OrderedDict[tuple[int, int], int] = OrderedDict()
        self._num_contents = 0

    def stream(self, owner: int) -> Stream:
        """Return a new stream, of which nothing is held."""
        self._num_contents += 1
        return Stream(owner, [(0, self._num_contents)])

    # --- lookup and load -------------------------------------------------------------------

    def find(self, access: Access, lo: int, hi: int) -> tuple[int, bool, bool]:
        """Return how many chunks from ``lo`` on are held, whether one of them has not arrived yet,
        and whether one is being loaded.
        """
        arriving = loading = False
        for stream, start, end in access.pieces(lo, hi):
            position = start
            for run in stream.overlapping(start, end):
                if not run.home.resident:
                    continue
                if run.lo > position:
                    break
                if run.job is not None:
                    arriving = arriving or not run.ready
                    loading = loading or run.ready
                position = min(run.hi, end)
            if position < end:
                return position - lo, arriving, loading
        return hi - lo, arriving, loading

    def load(self, access: Access, lo: int, hi: int, job: CopyJob) -> None:
        """Pin chunks for a load."""
        for stream, start, end in access.pieces(lo, hi):
            for run in exact(stream, start, end):
                if run.home.resident:
                    run.job = job
                    job.runs.append(run)
                    self._evictable -= run.size
        access.seen.add(lo, hi)
        access.reuse(lo, hi)

    def complete(self, job: CopyJob) -> None:
        """Note that a copy has arrived: its chunks can be read, and evicted."""
        for run in job.runs:
            run.job = None
            run.ready = True
            self._evictable += run.size
        job.runs = []

    # --- store -----------------------------------------------------------------------------

    def offer(self, access: Access, lo: int, hi: int, job: CopyJob) -> list[Span] | None:
        """Offer chunks of a turn; returns which of them are to be copied, None if there is no room."""
        missing, ready = self._sort_out(access, lo, hi)
        if self._threshold > 1:
            missing = self._wanted(access, lo, hi, missing)
        fresh = [span for a, b in missing for span in access.missed.outside(a, b)]
        if self._arc:
            self._learn(access, fresh)
        for span in fresh:
            access.missed.add(*span)
        for span in missing + ready:
            access.seen.add(*span)
        for span in ready:
            access.reuse(*span)
        count = sum(b - a for a, b in missing)
        short = count - (self.capacity - self.resident)
        self.evicted_sum = 0
        if count and short > 0 and not self._make_room(access, lo, hi, short):
            return None
        for span in missing:
            self._insert(access, *span, job)
        return missing

    def _sort_out(self, access: Access, lo: int, hi: int) -> tuple[list[Span], list[Span]]:
        """Chunks that are not held, and those that are held and have arrived."""
        missing: list[Span] = []
        ready: list[Span] = []
        for stream, start, end in access.pieces(lo, hi):
            position = start
            for run in stream.overlapping(start, end):
                if not run.home.resident:
                    continue
                first, last = max(run.lo, start), min(run.hi, end)
                if position < first:
                    missing.append((position, first))
                if run.ready:
                    ready.append((first, last))
                position = last
            if position < end:
                missing.append((position, end))
        return missing, ready

    def _insert(self, access: Access, lo: int, hi: int, job: CopyJob) -> None:
        for stream, start, end in access.pieces(lo, hi):
            for ghost in exact(stream, start, end):
                ghost.home.pop(ghost, ghost.size)
            run = ChunkRun(stream, start, end, tail_first=False)
            run.job = job
            run.ready = False
            job.runs.append(run)
            stream.insert(run)
            self._t1.append(run)
        self.resident += hi - lo
        access.inserted.add(lo, hi)

    def _wanted(self, access: Access, lo: int, hi: int, missing: list[Span]) -> list[Span]:
        """Count an offer; of the missing chunks, those offered often enough."""
        offers = self._offers
        keys = [
            stream.content(index)
            for stream, start, end in access.pieces(lo, hi)
            for index in range(start, end)
        ]
        known = [key for key in keys if key in offers]
        for key in known:
            offers.move_to_end(key)
            offers[key] += 1
        others = len(offers) - len(known)
        for key in keys:
            if key in offers:
                continue
            if len(offers) >= MAX_TRACKED:
                if not others:
                    continue
                offers.popitem(last=False)
                others -= 1
            offers[key] = 1
        wanted = Ranges()
        for a, b in missing:
            for index in range(a, b):
                if offers.get(keys[index - lo], 0) >= self._threshold:
                    wanted.add(index, index + 1)
        return [part for a, b in missing for part in wanted.inside(a, b)]

    # --- eviction --------------------------------------------------------------------------

    def _make_room(self, access: Access, lo: int, hi: int, count: int) -> bool:
        """Evict ``count`` chunks, none of those offered. False, and nothing done, if it cannot."""
        spared: set[int] = set()
        kept = 0
        for stream, start, end in access.pieces(lo, hi):
            for run in exact(stream, start, end):
                spared.add(id(run))
                if run.home.resident and run.job is None:
                    kept += run.size
        if count > self._evictable - kept:
            return False
        left = count
        if self._arc:
            excess = self._t1.size - int(self._target) + 1
            first = min(left, max(excess, 0))
            left -= first - self._evict(self._t1, first, spared)
            left = self._evict(self._t2, left, spared)
        left = self._evict(self._t1, left, spared)
        assert not left, "evicted less than there is"
        for ghosts in (self._b1, self._b2):
            self._trim(ghosts)
        self.evicted += count
        return True

    def _evict(self, runs: RunList, count: int, spared: set[int]) -> int:
        """Evict up to ``count`` chunks of a list; returns how many are left to evict."""
        for run in runs:
            if not count:
                break
            if run.job is not None or id(run) in spared:
                continue
            some = min(count, run.size)
            stream, tail_first = run.stream, run.tail_first
            lo, hi = runs.pop(run, some)
            count -= some
            self.resident -= some
            self._evictable -= some
            self.evicted_sum += (2 * stream.owner + 1) * (hi * (hi + 1) - lo * (lo + 1)) // 2
            if self._arc:
                ghost = ChunkRun(stream, lo, hi, tail_first=tail_first)
                stream.insert(ghost)
                (self._b1 if runs is self._t1 else self._b2).append(ghost)
        return count

    def _trim(self, ghosts: RunList) -> None:
        """Forget the oldest of what was evicted."""
        for run in ghosts:
            excess = ghosts.size - self.capacity
            if excess <= 0:
                return
            ghosts.pop(run, min(excess, run.size))

    # --- recency ---------------------------------------------------------------------------

    def _learn(self, access: Access, fresh: list[Span]) -> None:
        """ARC: a chunk that was evicted is wanted again."""
        wanted = [
            run
            for a, b in reversed(fresh)
            for stream, start, end in reversed(list(access.pieces(a, b)))
            for run in reversed(exact(stream, start, end))
        ]
        recent, frequent = self._b1.size, self._b2.size
        for run in wanted:
            for _ in range(run.size):
                if run.home is self._b1:
                    self._target = min(self._target + max(1, frequent / recent), self.capacity)
                else:
                    self._target = max(self._target - max(1, recent / frequent), 0)
        self._renew([(run, run.home) for run in wanted])

    def finish(self, access: Access) -> None:
        """Make what a turn used the newest, since the turn has ended."""
        used = [
            (run, self._t2 if reused else run.home)
            for lo, hi in reversed(access.seen.items)
            for start, end, reused in reversed(self._classes(access, lo, hi))
            for stream, a, b in reversed(list(access.pieces(start, end)))
            for run in reversed(exact(stream, a, b))
            if run.home.resident
        ]
        self._renew(used)

    def _classes(self, access: Access, lo: int, hi: int) -> list[tuple[int, int, bool]]:
        """Parts of a range with what becomes of them: (from, to, goes to ``t2``)."""
        if not self._arc:
            return [(lo, hi, False)]
        parts = [(a, b, True) for a, b in access.reused.inside(lo, hi)]
        stored = [
            part for a, b in access.inserted.inside(lo, hi) for part in access.reused.outside(a, b)
        ]
        return sorted(parts + [(a, b, False) for a, b in stored])

    @staticmethod
    def _renew(used: list[tuple[ChunkRun, RunList]]) -> None:
        """Make runs the newest of a list each, in order. All are taken out before any is put back:
        one that is put back may become one with its neighbour.
        """
        for run, _ in used:
            run.home.remove(run)
        for run, home in used:
            run.tail_first = True
            home.append(run)

    # --- contents that change --------------------------------------------------------------

    def part(self, stream: Stream, at: int, using: Access | None) -> None:
        """Rewrite a session's context from chunk ``at`` on: what is there is of no use now.

        ``using`` is the access of the session's last turn, which may still go on.
        """
        beyond = exact(stream, at, 1 << 40)
        old = Stream(stream.owner, list(stream.contents))
        old.runs = beyond
        for run in beyond:
            run.stream = old
        del stream.runs[len(stream.runs) - len(beyond) :]
        if using is not None:
            using.segments = [(lo, which) for lo, which in using.segments if lo < at]
            using.segments.append((at, old))
        if self._threshold > 1:
            self._num_contents += 1
            kept = [content for content in stream.contents if content[0] < at]
            stream.contents = [*kept, (at, self._num_contents)]

    # --- invariants ------------------------------------------------------------------------

    def check(self) -> None:
        """Assert that every sum is that of the runs."""
        evictable = resident = 0
        for runs in (self._t1, self._t2, self._b1, self._b2):
            size = 0
            for run in runs:
                assert run.home is runs
                assert run.size > 0
                assert run in run.stream.runs
                size += run.size
                if runs.resident and run.job is None:
                    evictable += run.size
            assert size == runs.size
            resident += size if runs.resident else 0
        assert resident == self.resident <= self.capacity
        assert evictable == self._evictable
