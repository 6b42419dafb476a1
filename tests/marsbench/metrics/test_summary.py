"""Every metric against two small timelines worked out by hand, and the shape of summary.json."""

from __future__ import annotations

import json

import pytest

from marsbench.attribution import COMPONENTS
from marsbench.core import to_ps
from marsbench.events import Kind, Status, Unpin
from marsbench.metrics import CellFacts, Cut, catalogue, summarise
from marsbench.metrics.base import metric
from marsbench.tables import CellKey, build_tables

KEY = CellKey("demo", "mars", "sim", "h100", 0.9, 0.5, 1, 4)


@pytest.fixture
def cell(timeline):
    """Three sessions from 0 to 20 s; latencies 4 and 16, the third is rejected."""
    line = timeline
    one, two, big = (line.session(name, at) for name, at in (("one", 0), ("two", 4), ("big", 5)))
    line.turn(one, 0, ready=0, sched=1, first=2, end=4, prompt=100, cached=20, output=11)
    line.end(one, 4)
    line.turn(
        two, 0, ready=4, submit=5, sched=6, first=8, end=10,
        prompt=100, cached=0, output=21, num_tools=2,
    )  # fmt: skip
    line.tool(two, 0, 0, 10, 10, 11, cpu_s=1.0)
    line.tool(two, 0, 1, 10, 12, 14, cpu_s=4.0)
    line.add(10, Kind.KV_PIN, two, 0, -1, 7, to_ps(14))
    line.add(14, Kind.KV_UNPIN, two, 0, -1, 7, int(Unpin.RETURN), to_ps(4))
    line.add(15, Kind.KV_UNPIN, one, 0, -1, 10, int(Unpin.EXPIRE), to_ps(0.5))
    line.turn(
        two, 1, ready=14, sched=15, first=16, end=20,
        prompt=200, cached=120, recomputed=30, output=1, is_last=1,
    )  # fmt: skip
    line.end(two, 20)
    line.end(big, 5, Status.TOO_LARGE)
    line.add(10, Kind.KV_STATS, -1, -1, -1, 0, 0, 0, 0, 40_000, 0)
    line.add(20, Kind.KV_STATS, -1, -1, -1, 0, 0, 0, 0, 80_000, 3)
    line.add(10, Kind.CPU_STATS, -1, -1, -1, 1, 0, to_ps(1.0), to_ps(5.0))
    line.add(20, Kind.CPU_STATS, -1, -1, -1, 0, 0, to_ps(5.0), to_ps(15.0))
    line.run_end(20, evicted=3, busy_s=15.0, blocks=100, cores=4)
    return build_tables(line.log(), ideal_s=[2.0, 3.0, 1.0])


FACTS = CellFacts(wall_s=0.25, num_gpus=2, theoretical_prefix_cache_hit_rate=0.5)


def test_counts_and_key(cell):
    """An entry names its cell and counts sessions; the rejected one has failed."""
    entry = summarise(KEY, cell, FACTS)
    assert list(entry)[:8] == [
        "workload", "system", "engine", "profile", "load", "rate_per_s", "seed", "tool_cores",
    ]  # fmt: skip
    assert entry["sessions"] == {"arrived": 3, "distinct": 3, "completed": 2, "failed": 1}
    assert entry["window"] == {"warmup_s": 0.0, "cooldown_s": 0.0, "window_s": 20.0}


def test_latency_metrics(cell):
    """Latencies from arrival, slowdowns against the own ideal, turn times from ready."""
    metrics = summarise(KEY, cell, FACTS)["metrics"]
    # latencies 4 and 16: p90 by linear interpolation = 4 + 0.9 * 12
    expected = {"mean": 10.0, "p50": 10.0, "p90": 14.8, "p95": 15.4, "p99": 15.88}
    assert metrics["session_latency_s"] == pytest.approx(expected)
    assert metrics["session_slowdown"]["mean"] == pytest.approx((4 / 2 + 16 / 3) / 2)
    assert metrics["ttft_s"]["mean"] == pytest.approx((2 + 4 + 2) / 3)
    assert metrics["queueing_s"]["mean"] == pytest.approx((1 + 2 + 1) / 3)
    assert metrics["turn_latency_s"]["mean"] == pytest.approx((4 + 6 + 6) / 3)
    # the last turn has one token only: 2 s / 10 gaps and 2 s / 20 gaps are left
    assert metrics["tpot_s"]["mean"] == pytest.approx((0.2 + 0.1) / 2)
    assert metrics["admission_s"]["mean"] == pytest.approx(0.5)
    assert metrics["max_wait_s"] == 2.0


def test_breakdown_sums_to_the_mean_latency(cell):
    """Backlog 1, queue 1+1+1, ... over two sessions; the sum is the mean latency."""
    metrics = summarise(KEY, cell, FACTS)["metrics"]
    breakdown = metrics["latency_breakdown_s"]
    assert list(breakdown) == list(COMPONENTS)
    # sessions one, two: prefill 1 | 2 + 5/8 (50 of 80 new), recompute 0 | 3/8, decode 2 | 2 + 4
    assert breakdown == {
        "backlog": 0.5, "queue": 1.5, "prefill": 1.8125, "recompute": 0.1875,
        "decode": 4.0, "tool_queue": 1.0, "tool": 1.0, "other": 0.0,
    }  # fmt: skip
    assert sum(breakdown.values()) == metrics["session_latency_s"]["mean"]


def test_rates_and_goodput(cell):
    """Rates are per window of 20 s; SLOs count all arrivals, failed sessions are misses."""
    metrics = summarise(KEY, cell, FACTS)["metrics"]
    assert metrics["sessions_per_s"] == 2 / 20
    assert metrics["sessions_per_gpu_hour"] == 2 * 3600 / 40
    assert metrics["output_tokens_per_s"] == (11 + 21 + 1) / 20
    assert metrics["turns_per_s"] == 3 / 20
    assert metrics["makespan_s"] == 20.0
    assert metrics["wall_s"] == 0.25
    # slowdowns 2 and 5.33
    met = {"1.5": 0, "2": 1, "3": 1, "5": 1, "10": 2}
    assert metrics["session_goodput_per_s"] == {alpha: n / 20 for alpha, n in met.items()}
    assert metrics["slo_attainment"] == {alpha: n / 3 for alpha, n in met.items()}


def test_cache_metrics(cell):
    """Hit rate is token-weighted; occupancy is weighted by time; pins are useful or wasted."""
    metrics = summarise(KEY, cell, FACTS)["metrics"]
    assert metrics["prefix_cache_hit_rate"] == (20 + 0 + 120) / 400
    assert metrics["theoretical_prefix_cache_hit_rate"] == 0.5
    assert metrics["recomputed_tokens"] == 30
    assert metrics["prefilled_tokens"] == 80 + 100 + 80
    assert metrics["preemptions"] == 0
    assert metrics["evicted_blocks"] == 3
    assert metrics["kv_utilisation"] == pytest.approx(0.6)  # 10 s at 40 blocks, 10 s at 80
    assert metrics["retained_useful_block_s"] == 28.0
    assert metrics["retained_wasted_block_s"] == 5.0


def test_what_a_server_does_not_tell_is_unknown(timeline):
    """Counters of -1 become null; preemptions known only as a number count over the whole run, and
    are unknown in a part of it."""

    def measured(evicted, preemptions, cut=None):
        one, two = timeline.session("one", 0), timeline.session("two", 4)
        timeline.turn(one, 0, ready=0, sched=1, first=2, end=4, is_last=1)
        timeline.end(one, 4)
        timeline.turn(two, 0, ready=4, sched=5, first=6, end=8, is_last=1)
        timeline.end(two, 8)
        timeline.add(5, Kind.KV_STATS, -1, -1, -1, 50, 50, 0, -1, 40_000, -1)
        timeline.run_end(8, steps=-1, evicted=evicted, preemptions=preemptions)
        tables = build_tables(timeline.log(), ideal_s=[1.0, 1.0])
        timeline.__init__()
        return tables, summarise(KEY, tables, FACTS, cut=cut or Cut())["metrics"]

    tables, metrics = measured(-1, -1)
    assert (metrics["evicted_blocks"], metrics["preemptions"]) == (None, None)
    assert tables.totals.steps is None
    assert tables.kv[["cached_blocks", "evicted_blocks"]].isna().all(axis=None)
    assert tables.kv["referenced_blocks"].tolist() == [50]
    assert measured(-1, 3)[1]["preemptions"] == 3
    assert measured(-1, 3, Cut(warmup_s=2))[1]["preemptions"] is None
    assert measured(0, 0)[1]["preemptions"] == 0


def test_tool_and_fairness_metrics(cell):
    """Tool times are per call; utilisation is of 4 cores over 20 s; Jain over two slowdowns."""
    metrics = summarise(KEY, cell, FACTS)["metrics"]
    assert metrics["tool_queue_s"]["mean"] == 1.0
    assert metrics["tool_run_s"]["mean"] == 1.5
    assert metrics["tool_wait_s"]["mean"] == 4.0
    assert metrics["tool_utilisation"] == 5 / 80
    assert metrics["gpu_utilisation"] == 15 / 20
    a, b = 4 / 2, 16 / 3
    assert metrics["jain_slowdown"] == pytest.approx((a + b) ** 2 / (2 * (a * a + b * b)))
    assert metrics["max_slowdown"] == pytest.approx(b)


def test_cut_keeps_sessions_by_arrival(cell):
    """A warm-up of 3 s leaves out the session that arrived at 0; rates use the shorter window."""
    entry = summarise(KEY, cell, FACTS, Cut(warmup_s=3.0))
    assert entry["sessions"] == {"arrived": 2, "distinct": 2, "completed": 1, "failed": 1}
    assert entry["window"] == {"warmup_s": 3.0, "cooldown_s": 0.0, "window_s": 17.0}
    assert entry["metrics"]["session_latency_s"]["mean"] == 16.0
    assert entry["metrics"]["sessions_per_s"] == 2 / 17  # both ended in 3..20
    # cool-down: the window ends 0.5 s before the last arrival (5)
    entry = summarise(KEY, cell, FACTS, Cut(cooldown_s=0.5))
    assert entry["sessions"] == {"arrived": 2, "distinct": 2, "completed": 2, "failed": 0}
    assert entry["metrics"]["sessions_per_s"] == 1 / 4.5


def test_nothing_finished_is_null_not_an_error(timeline):
    """A cell whose only session is rejected has nulls where there is nothing to measure."""
    big = timeline.session("big", 1)
    timeline.end(big, 1, Status.TOO_LARGE)
    timeline.run_end(1)
    metrics = summarise(KEY, build_tables(timeline.log(), ideal_s=[1.0]))["metrics"]
    assert metrics["session_latency_s"] == dict.fromkeys(("mean", "p50", "p90", "p95", "p99"))
    assert metrics["slo_attainment"]["3"] == 0.0
    assert metrics["sessions_per_s"] is None
    assert metrics["kv_utilisation"] is None
    json.dumps(metrics, allow_nan=False)


def test_without_ideals_there_is_no_slo(two_turns):
    """Goodput and slowdown are null, not zero, where ideal latencies are unknown."""
    metrics = summarise(KEY, build_tables(two_turns.log()))["metrics"]
    assert metrics["session_slowdown"]["mean"] is None
    assert set(metrics["slo_attainment"].values()) == {None}
    assert metrics["jain_slowdown"] is None


def test_every_metric_declares_unit_direction_and_formula():
    """The catalogue is complete; a second metric of the same name is refused."""
    names = [entry.name for entry in catalogue()]
    required = {
        "session_latency_s", "session_slowdown", "session_goodput_per_s", "slo_attainment",
        "sessions_per_s", "output_tokens_per_s", "ttft_s", "tpot_s", "queueing_s", "tool_queue_s",
        "prefix_cache_hit_rate", "recomputed_tokens", "preemptions", "evicted_blocks",
        "theoretical_prefix_cache_hit_rate", "kv_utilisation", "gpu_utilisation",
        "tool_utilisation", "jain_slowdown", "sessions_per_gpu_hour", "makespan_s", "wall_s",
        "latency_breakdown_s",
    }  # fmt: skip
    assert required <= set(names)
    assert len(names) == len(set(names))
    for entry in catalogue():
        assert entry.unit
        assert entry.formula.endswith(".")
        assert entry.name.endswith("_s") <= (entry.unit in {"s", "1/s", "block s"})
    with pytest.raises(AssertionError, match="twice"):

        @metric("s", "lower")
        def wall_s(cell):
            """Again."""


def test_a_lone_sessions_slowdown_is_one(timeline):
    """A session whose latency is its ideal has slowdown 1, meets every SLO, and has waited for nothing."""
    one = timeline.session("one", 3)
    timeline.turn(one, 0, ready=3, sched=3, first=5, end=9, is_last=1)
    timeline.end(one, 9)
    timeline.run_end(9)
    metrics = summarise(KEY, build_tables(timeline.log(), ideal_s=[6.0]))["metrics"]
    assert set(metrics["session_slowdown"].values()) == {1.0}
    assert set(metrics["slo_attainment"].values()) == {1.0}
    assert metrics["latency_breakdown_s"]["queue"] == metrics["latency_breakdown_s"]["backlog"] == 0


def arrivals(timeline, latencies, *, every=10.0, ideal=5.0):
    """A cell whose k-th session arrives at k * every and takes latencies[k]."""
    for k, latency in enumerate(latencies):
        session, at = timeline.session(f"s{k}", k * every), k * every
        end = at + latency
        timeline.turn(session, 0, ready=at, sched=end - 2, first=end - 1, end=end, is_last=1)
        timeline.end(session, end)
    timeline.run_end(len(latencies) * every + max(latencies))
    tables = build_tables(timeline.log(), ideal_s=[ideal] * len(latencies))
    timeline.__init__()
    return summarise(KEY, tables)["metrics"]


def test_a_queue_that_grows_as_long_as_sessions_arrive_is_unstable(timeline):
    """Each session takes 8 s longer than the one before and they come every 10 s: the last third is
    slowed down 4.5 times as much as the first, and 14 of 30 are there when the last one comes."""
    metrics = arrivals(timeline, [10.0 + 8 * k for k in range(30)])
    first, last = (10 + 8 * 4.5) / 5, (10 + 8 * 24.5) / 5
    assert metrics["slowdown_growth"] == pytest.approx(last / first)
    # session k ends at 10 k + 10 + 8 k: after 290 from k = 16 on
    assert metrics["backlog_at_end"] == pytest.approx(14 / 30)
    assert metrics["unstable"] == 1


def test_slow_is_not_unstable(timeline):
    """High but steady latencies, a burst in the middle, and a growth that is over when sessions stop
    coming are no instability; of a handful of sessions nothing is said."""
    assert arrivals(timeline, [200.0 + k % 3 for k in range(30)])["unstable"] == 0
    burst = [20.0] * 10 + [300.0] * 10 + [25.0] * 10
    assert arrivals(timeline, burst)["unstable"] == 0
    assert arrivals(timeline, [10.0 + k for k in range(30)])["unstable"] == 0
    assert arrivals(timeline, [10.0 + 8 * k for k in range(9)])["unstable"] is None
