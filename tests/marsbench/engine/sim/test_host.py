"""Host memory as runs of chunks does what a table of single chunks does."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marsbench.engine.sim.chunks import CopyJob, Ranges
from marsbench.engine.sim.host import Access, HostCache


class Chunks:
    """The same rules, chunk by chunk: slow and plain."""

    def __init__(self, capacity: int, policy: str, threshold: int) -> None:
        self.capacity, self.arc, self.threshold = capacity, policy == "arc", threshold
        self.t1, self.t2 = OrderedDict(), OrderedDict()
        self.b1, self.b2 = OrderedDict(), OrderedDict()
        self.target = 0.0
        self.moving: dict[object, object] = {}
        self.offers: dict[object, int] = {}

    def held(self, key):
        return key in self.t1 or key in self.t2

    def offer(self, keys, access, job):
        missing = [key for key in keys if not self.held(key)]
        if self.threshold > 1:
            for key in keys:
                self.offers[key] = self.offers.get(key, 0) + 1
            missing = [key for key in missing if self.offers[key] >= self.threshold]
        for key in reversed([key for key in missing if key not in access["missed"]]):
            for own, other, sign in ((self.b1, self.b2, 1), (self.b2, self.b1, -1)):
                if self.arc and key in own:
                    self.target += sign * max(1, len(other) / len(own))
                    self.target = max(0, min(self.target, self.capacity))
                    own.move_to_end(key)
                    break
        access["missed"].update(missing)
        ready = [key for key in keys if self.held(key) and self.moving.get(key) != "store"]
        access["seen"].update(missing + ready)
        access["reused"].update(key for key in ready if key not in access["inserted"])
        short = len(missing) + len(self.t1) + len(self.t2) - self.capacity
        if missing and short > 0 and not self._evict(short, set(keys)):
            return None
        for key in missing:
            self.t1[key] = None
            self.b1.pop(key, None)
            self.b2.pop(key, None)
            self.moving[key] = "store"
            job.append(key)
        access["inserted"].update(missing)
        return missing

    def _evict(self, count, spared):
        free = [
            [key for key in part if key not in self.moving and key not in spared]
            for part in (self.t1, self.t2)
        ]
        if count > len(free[0]) + len(free[1]):
            return False
        size = len(self.t1)
        for _ in range(count):
            first = not self.arc or size >= int(self.target)
            part = 0 if free[0] and (first or not free[1]) else 1
            key = free[part].pop(0)
            size -= part == 0
            del (self.t1, self.t2)[part][key]
            if self.arc:
                (self.b1, self.b2)[part][key] = None
        for ghosts in (self.b1, self.b2):
            while len(ghosts) > self.capacity:
                ghosts.popitem(last=False)
        return True

    def finish(self, access, order):
        for key in sorted(access["seen"], key=order, reverse=True):
            home = self.t1 if key in self.t1 else self.t2 if key in self.t2 else None
            if home is None:
                continue
            if self.arc and key in access["reused"]:
                del home[key]
                self.t2[key] = None
            elif not self.arc or key in access["inserted"]:
                home.move_to_end(key)


offers = st.tuples(
    st.sampled_from(["offer", "load", "finish"]),
    st.integers(0, 3),
    st.integers(0, 12),
    st.integers(1, 12),
    st.booleans(),
)


@pytest.mark.parametrize("policy", ["lru", "arc"])
@settings(max_examples=400, deadline=None)
@given(
    capacity=st.integers(1, 30),
    threshold=st.sampled_from([0, 0, 2]),
    steps=st.lists(offers, max_size=40),
)
def test_runs_are_chunks(policy, capacity, threshold, steps):
    """Whatever turns offer, load and end, both hold, evict and find the same."""
    runs, chunks = HostCache(capacity, policy, threshold), Chunks(capacity, policy, threshold)
    prefix = runs.stream(-1)
    own = [runs.stream(session) for session in range(4)]

    def new_access(session):
        plain = {"seen": set(), "inserted": set(), "reused": set(), "missed": set()}
        return Access([(0, prefix), (3, own[session])]), plain

    def keys(session, lo, hi):
        return [("p", k) if k < 3 else (session, k) for k in range(lo, hi)]

    accesses = [new_access(session) for session in range(4)]
    pending: list[tuple[CopyJob, list[object]]] = []
    for what, session, lo, size, arrives in steps:
        access, plain = accesses[session]
        hi = lo + size
        if what == "offer":
            job, moved = CopyJob(), []
            expected = chunks.offer(keys(session, lo, hi), plain, moved)
            found = runs.offer(access, lo, hi, job)
            if expected is None:
                assert found is None
                continue
            assert found is not None
            assert [k for a, b in found for k in keys(session, a, b)] == expected
            pending.append((job, moved))
        elif what == "load":
            hits, arriving, loading = runs.find(access, lo, hi)
            named = keys(session, lo, hi)
            plain_hits = next((k for k, key in enumerate(named) if not chunks.held(key)), size)
            assert hits == plain_hits
            states = {chunks.moving.get(key) for key in named[:hits]}
            assert (arriving, loading) == ("store" in states, "load" in states)
            if not hits or arriving or loading:
                continue
            job = CopyJob()
            runs.load(access, lo, lo + hits, job)
            chunks.moving |= dict.fromkeys(named[:hits], "load")
            plain["seen"].update(named[:hits])
            plain["reused"].update(key for key in named[:hits] if key not in plain["inserted"])
            pending.append((job, named[:hits]))
        else:
            runs.finish(access)
            chunks.finish(plain, lambda key: key[1])
            accesses[session] = new_access(session)
        if arrives and pending:
            job, moved = pending.pop(0)
            runs.complete(job)
            for key in moved:
                del chunks.moving[key]
        runs.check()
        assert runs.resident == len(chunks.t1) + len(chunks.t2)
        for number in range(4):
            for k in range(24):
                held = runs.find(accesses[number][0], k, k + 1)[0] == 1
                assert held == chunks.held(keys(number, k, k + 1)[0])


def test_the_end_of_a_context_goes_before_its_beginning():
    """After a turn has ended, its last chunks are evicted first."""
    host = HostCache(10, "lru", 0)
    first, second = (Access([(0, host.stream(session))]) for session in range(2))
    for access in (first, second):
        job = CopyJob()
        assert host.offer(access, 0, 5, job) == [(0, 5)]
        host.complete(job)
        host.finish(access)
    assert host.offer(second, 5, 7, CopyJob()) == [(5, 7)]
    assert host.find(first, 0, 5)[0] == 3
    assert host.find(second, 0, 7)[0] == 7


def test_an_offer_is_taken_whole_or_not_at_all():
    """Chunks that are copied cannot be evicted, so an offer that needs their room is refused."""
    host = HostCache(4, "lru", 0)
    first, second = (Access([(0, host.stream(session))]) for session in range(2))
    job = CopyJob()
    host.offer(first, 0, 3, job)
    assert host.offer(second, 0, 2, CopyJob()) is None
    assert host.find(second, 0, 2)[0] == 0
    host.complete(job)
    assert host.offer(second, 0, 2, CopyJob()) == [(0, 2)]
    assert host.evicted == 1


def test_a_rewritten_context_is_not_found_but_takes_room():
    """Chunks after the point where a session's context changed are of no use, until evicted."""
    host = HostCache(6, "lru", 0)
    stream = host.stream(0)
    before = Access([(0, stream)])
    job = CopyJob()
    host.offer(before, 0, 5, job)
    host.complete(job)
    host.part(stream, 2, before)
    after = Access([(0, stream)])
    assert host.find(after, 0, 5)[0] == 2
    assert host.resident == 5
    host.finish(before)
    assert host.offer(after, 2, 5, CopyJob()) == [(2, 5)]
    assert host.evicted == 2
    host.check()


def test_ranges_merge_and_split():
    """Adding joins what touches; inside and outside are parts of what was asked."""
    ranges = Ranges()
    for lo, hi in ((5, 7), (1, 2), (2, 5), (9, 12), (4, 4)):
        ranges.add(lo, hi)
    assert ranges.items == [(1, 7), (9, 12)]
    assert ranges.inside(0, 10) == [(1, 7), (9, 10)]
    assert ranges.outside(0, 10) == [(0, 1), (7, 9)]
