"""The lower bound on mean session latency."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baselines.bound import SessionWork, mean_latency_bound, srpt_total_flow_s, work_of_sessions
from marsbench.core import Session, SharedPrefix, ToolCall, Turn


def test_srpt_preempts_for_shorter_work():
    """Sizes 10 at 0 s and 2 at 3 s: the short one ends at 5 (2 s), the long one at 12 (12 s)."""
    assert srpt_total_flow_s([0.0, 3.0], [10.0, 2.0]) == 14.0


def test_srpt_does_not_preempt_for_longer_work():
    """Sizes 4 at 0 s and 3 at 2 s: 2 s are left, so the first ends at 4, the second at 7 (5 s)."""
    assert srpt_total_flow_s([0.0, 2.0], [4.0, 3.0]) == 9.0


def test_srpt_waits_for_arrivals():
    """An idle machine starts the next job when it arrives: flow 1 + 1."""
    assert srpt_total_flow_s([10.0, 0.0], [1.0, 1.0]) == 2.0


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.floats(0.01, 50)),
        min_size=1,
        max_size=12,
    )
)
def test_srpt_is_no_worse_than_first_come_first_served(jobs):
    """FCFS on the same machine is one of the schedules SRPT bounds from below."""
    clock_s = flow_s = 0.0
    for arrival_s, size_s in sorted(jobs):
        clock_s = max(clock_s, arrival_s) + size_s
        flow_s += clock_s - arrival_s
    total_s = srpt_total_flow_s([a for a, _ in jobs], [s for _, s in jobs])
    assert sum(s for _, s in jobs) - 1e-6 <= total_s <= flow_s + 1e-6


def test_bound_is_the_larger_of_path_and_capacity():
    """Two sessions at once: alone 10 s each; compute 8 s each gives (8 + 16)/2 = 12 s."""
    work = [SessionWork(0.0, 10.0, (8.0, 1.0, 0.0))] * 2
    bound = mean_latency_bound(work)
    assert bound.critical_path_s == 10.0
    assert bound.capacity_s == (12.0, 1.5, 0.0)
    assert bound.mean_s == 12.0
    assert mean_latency_bound([]).mean_s == 0.0


def test_work_of_a_session(build):
    """1000 + 300 new tokens at 1000/s; 51 + 11 output tokens (50 + 10 steps of 20 ms); tool 4 s.

    Critical path 1 + 1 + 4 + 0.3 + 0.2 = 6.5 s; compute 1.3 + 60/1000 s. Prompts 1000 and
    1000 + 51 + 300 = 1351. Memory (of 16,000): 1000*1 s decode, then 1051 reused for 0.3 s and
    1351 for 0.2 s. Tools 6 core-s on 2 cores.
    """
    tool = ToolCall(name="make", tool_class="build", wall_s=4.0, cpu_s=6.0, cores=2.0)
    session = Session("s", (Turn(1000, 51, tools=(tool,)), Turn(300, 11)))
    (work,) = work_of_sessions([session], [7.0], build.context(tool_cores=2))
    assert work.arrival_s == 7.0
    assert work.solo_s == pytest.approx(6.5)
    memory_s = (1000 * 1.0 + 1051 * 0.3 + 1351 * 0.2) / 16_000
    assert work.demands_s == pytest.approx((1.360, memory_s, 3.0))


def test_children_count_for_their_parent(build):
    """The parent's turn lasts as long as its child (2 s), whose work is the parent's demand."""
    child = Session("c", (Turn(2000, 1),))
    session = Session("s", (Turn(1000, 1, children=(child,)), Turn(100, 1)))
    (work,) = work_of_sessions([session], [0.0], build.context())
    assert work.solo_s == pytest.approx(1.0 + 2.0 + 0.1)
    assert work.demands_s[0] == pytest.approx(1.0 + 2.0 + 0.1)


def test_shared_prefix_is_free(build):
    """A prefix that another session may have computed and holds is nobody's demand."""
    session = Session("s", (Turn(100, 1),), shared_prefix=SharedPrefix("p", 900))
    (work,) = work_of_sessions([session], [0.0], build.context())
    assert work.solo_s == pytest.approx(0.1)
    assert work.demands_s[1] == 0.0


def test_reading_long_contexts_is_compute(build):
    """10 decode steps over 2024 tokens at 1 us a token: 20.24 ms of compute, and the step with
    1000 tokens more than the stated one is 1 ms longer alone."""
    session = Session("s", (Turn(2024, 11),))
    context = build.context()
    (plain,) = work_of_sessions([session], [0.0], context)
    (reads,) = work_of_sessions([session], [0.0], context, kv_read_s_per_token=1e-6)
    assert reads.demands_s[0] - plain.demands_s[0] == pytest.approx(10 * 2024e-6)
    assert reads.solo_s - plain.solo_s == pytest.approx(10 * 1000e-6)
