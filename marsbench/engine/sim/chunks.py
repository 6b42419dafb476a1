"""What host memory holds in the simulator: runs of chunks of content streams, in lists by recency.

A *chunk* is the unit in which vLLM stores KV in host memory. Its offloading keeps one object per
chunk; here, as on the GPU, consecutive chunks of one stream that share their fate are one *run*.
A stream is the content of a shared prefix or of a session. When a session's context is rewritten,
the chunks that nobody can ask for any more move to a stream of their own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator


class Ranges:
    """A set of integers as disjoint ranges in ascending order."""

    __slots__ = ("items",)

    def __init__(self) -> None:
        self.items: list[tuple[int, int]] = []

    def add(self, lo: int, hi: int) -> None:
        """Put ``lo..hi-1`` in."""
        if lo >= hi:
            return
        kept: list[tuple[int, int]] = []
        for a, b in self.items:
            if b < lo or a > hi:
                kept.append((a, b))
            else:
                lo, hi = min(lo, a), max(hi, b)
        kept.append((lo, hi))
        kept.sort()
        self.items = kept

    def inside(self, lo: int, hi: int) -> list[tuple[int, int]]:
        """Return the parts of ``lo..hi-1`` that are in the set."""
        return [(max(a, lo), min(b, hi)) for a, b in self.items if a < hi and b > lo]

    def outside(self, lo: int, hi: int) -> list[tuple[int, int]]:
        """Return the parts of ``lo..hi-1`` that are not in the set."""
        missing: list[tuple[int, int]] = []
        for a, b in self.inside(lo, hi):
            if lo < a:
                missing.append((lo, a))
            lo = b
        if lo < hi:
            missing.append((lo, hi))
        return missing


class CopyJob:
    """One copy between the tiers, of chunks of one turn."""

    __slots__ = ("done", "num_blocks", "num_chunks", "runs")

    def __init__(self) -> None:
        self.runs: list[ChunkRun] = []
        """What it holds in host memory while it goes on."""
        self.num_chunks = 0
        self.num_blocks = 0
        self.done = False


class Stream:
    """The chunks of one content, by index: those in host memory and those it remembers."""

    __slots__ = ("contents", "owner", "runs")

    def __init__(self, owner: int, contents: list[tuple[int, int]]) -> None:
        self.owner = owner
        """The session; -1 - prefix id for a shared prefix."""
        self.contents = contents
        """(first chunk, serial number) of each rewriting: tells old from new contents."""
        self.runs: list[ChunkRun] = []
        """Disjoint, in ascending order."""

    def overlapping(self, lo: int, hi: int) -> list[ChunkRun]:
        """Return the runs that have a chunk in ``lo..hi-1``, in ascending order."""
        runs = self.runs
        first = bisect_right(runs, lo, key=_hi)
        last = first
        while last < len(runs) and runs[last].lo < hi:
            last += 1
        return runs[first:last]

    def content(self, index: int) -> tuple[int, int]:
        """Return what tells chunk ``index`` apart from every other content there ever was."""
        return self.contents[bisect_right(self.contents, index, key=_first) - 1][1], index

    def insert(self, run: ChunkRun) -> None:
        """Take in a run that overlaps with none here."""
        self.runs.insert(bisect_right(self.runs, run.lo, key=_lo), run)


class ChunkRun:
    """Chunks ``lo..hi-1`` of a stream that lie side by side in the order of eviction."""

    __slots__ = ("after", "before", "hi", "home", "job", "lo", "ready", "stream", "tail_first")

    def __init__(self, stream: Stream, lo: int, hi: int, *, tail_first: bool) -> None:
        self.stream = stream
        self.lo = lo
        self.hi = hi
        self.tail_first = tail_first
        """Whether its last chunk is evicted first; else its first one."""
        self.job: CopyJob | None = None
        """The copy that goes on; nothing of the run can be evicted meanwhile."""
        self.ready = True
        """False while it is being stored."""
        self.home: RunList
        self.before: ChunkRun = self
        self.after: ChunkRun = self

    @property
    def size(self) -> int:
        return self.hi - self.lo


class RunList:
    """Runs in order of eviction, the next to go first."""

    def __init__(self, *, resident: bool) -> None:
        self.resident = resident
        """False: chunks that were evicted and are only remembered."""
        self.size = 0
        """Chunks."""
        self._head = ChunkRun(Stream(0, []), 0, 0, tail_first=False)

    def __iter__(self) -> Iterator[ChunkRun]:
        run = self._head.after
        while run is not self._head:
            following = run.after
            yield run
            run = following

    def append(self, run: ChunkRun) -> None:
        """Make a run the last to be evicted; it becomes one with its neighbour if it can."""
        self.size += run.size
        last = self._head.before
        if last is not self._head and _continues(last, run):
            last.tail_first = run.hi == last.lo
            run.stream.runs.remove(run)
            last.lo, last.hi = min(last.lo, run.lo), max(last.hi, run.hi)
            return
        run.home = self
        _link(run, last, self._head)

    def remove(self, run: ChunkRun) -> None:
        """Take a run out of the order; it stays in its stream."""
        self.size -= run.size
        run.before.after = run.after
        run.after.before = run.before

    def pop(self, run: ChunkRun, count: int) -> tuple[int, int]:
        """Drop the ``count`` chunks of a run that are the next to go; returns which."""
        dropped = (run.hi - count, run.hi) if run.tail_first else (run.lo, run.lo + count)
        if count == run.size:
            self.remove(run)
            run.stream.runs.remove(run)
            return dropped
        self.size -= count
        if run.tail_first:
            run.hi -= count
        else:
            run.lo += count
        return dropped

    @staticmethod
    def cut(run: ChunkRun, at: int) -> None:
        """Split a run before chunk ``at``; the new run has the upper part."""
        upper = ChunkRun(run.stream, at, run.hi, tail_first=run.tail_first)
        upper.home, upper.job, upper.ready = run.home, run.job, run.ready
        run.hi = at
        run.stream.insert(upper)
        if run.job is not None:
            run.job.runs.append(upper)
        if run.tail_first:
            _link(upper, run.before, run)
        else:
            _link(upper, run, run.after)


def exact(stream: Stream, lo: int, hi: int) -> list[ChunkRun]:
    """Return the runs in ``lo..hi-1``, cut so that none reaches beyond."""
    for run in stream.overlapping(lo, hi):
        if run.lo < lo:
            RunList.cut(run, lo)
        elif run.hi > hi:
            RunList.cut(run, hi)
    for run in stream.overlapping(lo, hi):
        if run.hi > hi:
            RunList.cut(run, hi)
    return stream.overlapping(lo, hi)


def _continues(last: ChunkRun, run: ChunkRun) -> bool:
    """Whether a run that follows another one in the order can be one with it."""
    if last.stream is not run.stream or last.job is not None or run.job is not None:
        return False
    if run.hi == last.lo:
        return (last.tail_first or last.size == 1) and (run.tail_first or run.size == 1)
    if run.lo == last.hi:
        return not (last.tail_first and last.size > 1) and not (run.tail_first and run.size > 1)
    return False


def _link(run: ChunkRun, before: ChunkRun, after: ChunkRun) -> None:
    run.before, run.after = before, after
    before.after = run
    after.before = run


def _first(content: tuple[int, int]) -> int:
    return content[0]


def _lo(run: ChunkRun) -> int:
    return run.lo


def _hi(run: ChunkRun) -> int:
    return run.hi
