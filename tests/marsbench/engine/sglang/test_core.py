"""Engine sglang-core: SGLang's scheduler in virtual time."""

from __future__ import annotations

import dataclasses
import random
import time
from importlib.util import find_spec

import pytest

from marsbench.core import to_ps
from marsbench.engine.adversary import make_case
from marsbench.engine.parity import first_difference, run, summary
from marsbench.errors import EngineError
from marsbench.system import Policies

pytestmark = [
    pytest.mark.sglang,
    pytest.mark.skipif(find_spec("sglang") is None, reason="SGLang is not installed"),
]

ORDERS = ("fcfs", "lpm", "hrrn", "shortest-prefill-first", "dfs-weight", "lof")
EVICTIONS = ("lru", "lfu", "slru", "priority", "tlru")


def test_chunked_prefill_then_decode(bench):
    """100 tokens at 64 a step are two prefill steps; the second makes the first of 3 tokens."""
    core, log = bench.core()
    core.submit(bench.request(0, 100, 3))
    end = bench.finish(core, 0)
    assert [step.scheduled for step in log.steps] == [
        ((0, 0, 64),), ((0, 0, 36),), ((0, 0, 1),), ((0, 0, 1),),
    ]  # fmt: skip
    assert end == 4 * bench.MS
    assert [(m.what, m.at_ps // bench.MS) for m in log.moments] == [
        ("scheduled first", 0), ("first token", 2), ("finished", 4),
    ]  # fmt: skip


def test_advance_stops_at_a_finish_or_at_the_limit(bench):
    """A step that began before the limit is finished; nothing to do returns the limit."""
    core, _ = bench.core(bench.ROOMY)
    assert core.advance(0, 5 * bench.MS) == 5 * bench.MS
    core.submit(bench.request(0, 32, 2, ready_ms=5))
    core.submit(bench.request(1, 1, 9, ready_ms=5))
    assert core.advance(5 * bench.MS, 5 * bench.MS) == 5 * bench.MS
    assert core.advance(5 * bench.MS, 5 * bench.MS + 1) == 6 * bench.MS
    assert core.advance(6 * bench.MS, 100 * bench.MS) == 7 * bench.MS  # turn 0 finished
    assert not core.idle()


@pytest.mark.parametrize(("page", "cached"), [(1, 47), (16, 32)])
def test_a_continuation_hits_whole_pages(bench, page, cached):
    """40 prompt + 8 output tokens leave 47 with KV: all are hit next time, in whole pages."""
    core, log = bench.core(dataclasses.replace(bench.CONFIG, block_size=page))
    core.submit(bench.request(0, 40, 8))
    now = bench.finish(core, 0)
    core.submit(bench.request(0, 60, 1, turn=1, reused=48))
    bench.finish(core, now)
    assert bench.told(log, "scheduled first")[1] == (0, 1, (cached, 60 - cached))
    assert bench.told(log, "finished")[1] == (0, 1, (60 - cached, 0, cached))


def test_rewritten_content_is_not_hit(bench):
    """Only the leading 20 of 48 tokens are kept, so 20 are hit."""
    core, log = bench.core()
    core.submit(bench.request(0, 40, 8))
    now = bench.finish(core, 0)
    core.submit(bench.request(0, 60, 1, turn=1, reused=20))
    bench.finish(core, now)
    assert bench.told(log, "scheduled first")[1][2] == (20, 40)


def test_held_memory_is_integrated_over_time(bench):
    """40 prompt tokens are held for the prefill's millisecond, 41 for the decode's, then none."""
    core, _ = bench.core()
    core.submit(bench.request(0, 40, 2))
    now = bench.finish(core, 0)
    core.submit(bench.request(0, 40, 1, turn=1, reused=20, ready_ms=12))
    assert now == 2 * bench.MS
    assert core.stats.referenced_block_ps == (40 + 41) * bench.MS


def test_prefill_goes_before_decode(bench):
    """A turn that comes while another decodes gets a prefill step of its own, at once."""
    core, log = bench.core(bench.ROOMY)
    core.submit(bench.request(0, 10, 6))
    now = core.advance(0, 2 * bench.MS)
    core.submit(bench.request(1, 10, 2, ready_ms=2))
    bench.finish(core, now)
    assert [step.scheduled for step in log.steps[1:5]] == [
        ((0, 0, 1),), ((1, 0, 10),), ((0, 0, 1), (1, 0, 1)), ((0, 0, 1),),
    ]  # fmt: skip


def test_prefill_decode_interval_puts_the_next_prefill_off(bench):
    """With an interval of 2, two decode steps follow a prefill before the next one."""
    core, log = bench.core(dataclasses.replace(bench.ROOMY, prefill_decode_interval=2))
    core.submit(bench.request(0, 10, 6))
    now = core.advance(0, 1)
    core.submit(bench.request(1, 10, 2, ready_ms=1))
    bench.finish(core, now)
    assert [step.scheduled for step in log.steps[:4]] == [
        ((0, 0, 10),), ((0, 0, 1),), ((0, 0, 1),), ((1, 0, 10),),
    ]  # fmt: skip


def two_waiting(bench, **flags):
    """Session 1 waits with 60 tokens of which 50 are cached, session 2 came before it with 30."""
    core, log = bench.core(dataclasses.replace(bench.ROOMY, max_num_seqs=1, **flags))
    core.submit(bench.request(1, 45, 6))
    now = bench.finish(core, 0)
    core.submit(bench.request(0, 5, 5, ready_ms=now // bench.MS))
    now = core.advance(now, now + 1)
    core.submit(bench.request(2, 30, 1, ready_ms=now // bench.MS))
    core.submit(bench.request(1, 60, 1, turn=1, reused=51, ready_ms=now // bench.MS))
    bench.finish(core, now)
    return bench.first_scheduled(log)[2:]


@pytest.mark.parametrize(
    ("order", "expected"),
    [("fcfs", [2, 1]), ("lpm", [1, 2]), ("shortest-prefill-first", [1, 2])],
)
def test_schedule_policies_order_the_queue(bench, order, expected):
    """First come first served, or the longest cached prefix, or the least left to prefill."""
    assert two_waiting(bench, schedule_policy=order) == expected


def test_priorities_order_the_queue_and_take_seats(bench):
    """The smallest priority goes first, and one smaller by more than ten takes a running seat."""
    core, log = bench.core(dataclasses.replace(bench.ROOMY, policy="priority", max_num_seqs=1))
    core.submit(bench.request(0, 10, 9, priority=100))
    now = core.advance(0, 3 * bench.MS)
    core.submit(bench.request(1, 10, 2, ready_ms=3, priority=99))
    core.submit(bench.request(2, 10, 2, ready_ms=3, priority=50))
    bench.finish(core, now)
    assert bench.first_scheduled(log) == [0, 2, 1]
    assert bench.told(log, "preempted") == [(0, 0, (12, 12))]
    assert core.stats.preemptions == 1


def test_memory_that_runs_out_retracts(bench, short_answers):
    """Answers longer than foreseen do not all fit: one is given up, resumes, and is charged for
    what it had computed.
    """
    core, log = bench.core()
    for session in range(5):
        core.submit(bench.request(session, 60, 250))
    bench.finish(core, 0)
    lost = {s: values[0] for s, _, values in bench.told(log, "preempted")}
    assert lost
    resumed = {s: values[0] for s, _, values in bench.told(log, "resumed")}
    done = {s: values for s, _, values in bench.told(log, "finished")}
    once = [s for s in lost if [t[0] for t in bench.told(log, "preempted")].count(s) == 1]
    assert once
    for session in once:
        assert done[session][1] == lost[session] - resumed[session]


def test_the_largest_turn_that_fits_runs_to_its_end(bench):
    """``fits`` says yes up to the last token SGLang grants, and no beyond it."""
    for flags in ({}, {"max_model_len": 300}, {"block_size": 16, "num_blocks": 19}):
        config = dataclasses.replace(bench.CONFIG, **{"num_blocks": 300, **flags})
        core, log = bench.core(config)
        output = next(n for n in range(400, 0, -1) if core.fits(50, n))
        assert not core.fits(50, output + 1)
        core.submit(bench.request(0, 50, output))
        bench.finish(core, 0, check=False)
        assert bench.told(log, "finished")


def test_eviction_drops_the_least_recent_and_is_counted(bench):
    """62 tokens lack for the second session: the first one loses its last leaves, the 45 tokens of
    its last chunk and answer and the 64 of the chunk before.
    """
    core, log = bench.core()
    core.submit(bench.request(0, 300, 2))
    now = bench.finish(core, 0)
    core.submit(bench.request(1, 400, 2, ready_ms=now // bench.MS))
    now = bench.finish(core, now)
    assert core.stats.evicted_blocks == 45 + 64
    core.submit(bench.request(0, 302, 1, turn=1, reused=302, ready_ms=now // bench.MS))
    bench.finish(core, now)
    assert bench.told(log, "scheduled first")[2][2] == (301 - 45 - 64, 302 - 192)


def test_an_ended_session_gives_way_to_open_ones(bench):
    """With the session radix cache an ended session's KV is evicted before an open one's, however
    recent.
    """
    hits = {}
    for sessions in (False, True):
        core, log = bench.core(
            dataclasses.replace(bench.CONFIG, enable_session_radix_cache=sessions)
        )
        core.submit(bench.request(0, 200, 2))
        now = bench.finish(core, 0)
        core.submit(bench.request(1, 200, 2, ready_ms=now // bench.MS, last=True))
        now = bench.finish(core, now)
        core.session_ended(1)
        core.submit(bench.request(2, 350, 2, ready_ms=now // bench.MS))
        now = bench.finish(core, now)
        core.submit(bench.request(0, 220, 1, turn=1, reused=202, ready_ms=now // bench.MS))
        bench.finish(core, now)
        hits[sessions] = bench.told(log, "scheduled first")[3][2][0]
    assert hits[True] == 201
    assert hits[False] < 201


@pytest.mark.parametrize("seed", range(8))
def test_the_books_balance_at_every_step(bench, seed):
    """Random cells over all of SGLang's rules: no token is lost or counted twice, and two runs are
    the same.
    """
    from marsbench.engine.sglang.core import SglangCore

    class Checked(SglangCore):
        def _run(self, batch):
            finished = super()._run(batch)
            self.check_books()
            return finished

    config, sessions = random_cell(seed)
    first, again = (
        run(
            lambda listener, kind=kind: kind(config, bench.COST, Policies(), listener),
            sessions,
            until_ps=to_ps(0.3),
        )
        for kind in (Checked, SglangCore)
    )
    assert first_difference(first, again, ("once", "again")) is None
    assert summary(first) == summary(again)


def random_cell(seed):
    """A cell of the adversary with flags of SGLang, and memory for its largest turn."""
    case = make_case(300 + seed)
    page = (1, 1, 16, case.config.block_size)[seed % 4]
    largest = max(p.prompt_tokens + p.output_tokens for s in case.sessions for p in s.turns)
    blocks = -(
        -max(case.config.num_blocks * case.config.block_size, largest + 2 * page + 4) // page
    )
    priority = seed % 7 == 3
    flags = {
        "long_prefill_token_threshold": 0,
        "long_prefill_token_threshold_adaptive": False,
        "scheduler_reserve_full_isl": True,
        "enable_prefix_caching": seed != 7,
        "block_size": page,
        "num_blocks": blocks,
        "max_num_batched_tokens": max(case.config.max_num_batched_tokens, 2 * page),
        "policy": "priority" if priority else "fcfs",
        "retraction_policy": "priority" if priority else "length",
        "schedule_policy": "fcfs" if priority else ORDERS[seed % len(ORDERS)],
        "radix_eviction_policy": EVICTIONS[seed % len(EVICTIONS)],
        "prefill_decode_interval": (0, 0, 3)[seed % 3],
    }
    return dataclasses.replace(case.config, **flags), case.sessions


def test_two_engines_at_once_do_not_disturb_each_other(bench):
    """Two cores of one process with different flags, taken in turns, do as each does alone."""
    flags = [bench.CONFIG, dataclasses.replace(bench.ROOMY, schedule_policy="lpm", policy="fcfs")]
    sizes = [(0, 90, 30), (1, 120, 20), (2, 40, 40)]
    alone, together = [], []
    for config in flags:
        core, log = bench.core(config)
        for size in sizes:
            core.submit(bench.request(*size))
        bench.finish(core, 0)
        alone.append(log.steps)
    pair = [bench.core(config) for config in flags]
    for size in sizes:
        for core, _ in pair:
            core.submit(bench.request(*size))
    now = [0, 0]
    while not all(core.idle() for core, _ in pair):
        for index, (core, _) in enumerate(pair):
            if not core.idle():
                now[index] = core.advance(now[index], now[index] + 1)
    together = [log.steps for _, log in pair]
    assert together == alone


def test_the_machines_clock_is_not_seen(bench, monkeypatch):
    """With a clock that jumps about, decisions stay the same, and no module of SGLang has it."""
    from marsbench.engine.sglang.clock import leaks
    from marsbench.engine.sglang.core import SglangCore

    config, sessions = random_cell(2)  # hrrn: it weighs how long requests wait

    def play():
        return run(
            lambda listener: SglangCore(config, bench.COST, Policies(), listener),
            sessions,
            until_ps=to_ps(0.3),
        )

    calm = play()
    noise = random.Random(1)
    for name in ("time", "monotonic", "perf_counter"):
        monkeypatch.setattr(time, name, lambda: noise.random() * 1e9)
    for name in ("time_ns", "monotonic_ns", "perf_counter_ns"):
        monkeypatch.setattr(time, name, lambda: noise.randrange(10**18))
    noisy = play()
    monkeypatch.undo()
    assert first_difference(calm, noisy, ("calm", "noisy")) is None
    assert leaks() == []


def test_flags_sglang_does_not_have_are_refused(bench):
    """vLLM's chunk threshold is none of SGLang's; SGLang's own complaints come through as one line."""
    with pytest.raises(EngineError, match="has no long_prefill_token_threshold; leave it at 0"):
        bench.core(dataclasses.replace(bench.CONFIG, long_prefill_token_threshold=512))
    with pytest.raises(EngineError, match=r"SGLang refuses the engine flags: .*tlru"):
        bench.core(
            dataclasses.replace(bench.CONFIG, radix_eviction_policy="tlru", tlru_threshold=1)
        )


def test_only_known_releases_are_driven(bench, monkeypatch):
    """Another release is refused with what to do, before anything of it is imported."""
    from marsbench.engine.sglang import runtime

    monkeypatch.setattr(runtime, "installed_version", lambda: "0.4.9")
    with pytest.raises(EngineError, match=r"supports sglang==0\.5\.23, installed is 0\.4\.9"):
        bench.core()
