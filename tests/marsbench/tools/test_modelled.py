"""Processor sharing of tool cores: hand-computed timelines and an exact rational reference."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from marsbench.tools.base import MILLI, WEIGHTS, CallOutcome, ToolDemand
from marsbench.tools.modelled import Modelled


def job(cpu, cores=1.0, io=0, timeout=None, nice=0, after=0):
    return ToolDemand("t", "test", cpu, round(cores * MILLI), io, timeout, nice, after)


def run(cores, jobs):
    """Ends (handle -> CallOutcome) of (start, demand) jobs, driven as an engine drives the model."""
    model = Modelled(cores)
    pending = sorted(enumerate(jobs), key=lambda item: item[1][0])
    ends, order = {}, []
    while pending or model.running:
        due = model.next_completion_ps()
        if pending and (due is None or pending[0][1][0] < due):
            handle, (start, demand) = pending.pop(0)
            model.start(handle, demand, start)
            continue
        for handle in model.pop_completed(due):
            ends[handle] = model.outcome(handle)
            order.append(handle)
    assert model.next_completion_ps() is None
    return ends, order, model


def ends_of(cores, jobs):
    return [outcome.at_ps for _, outcome in sorted(run(cores, jobs)[0].items())]


def test_two_equal_jobs_on_one_core_take_twice_as_long():
    """Equal jobs share one core equally."""
    assert ends_of(1, [(0, job(1000)), (0, job(1000))]) == [2000, 2000]


def test_a_nice_call_has_its_weight():
    """Niceness 10 weighs 110 against 1024: a nice call beside another gets 110/1134 of the core."""
    # A(1024) at 1024/1134 ends at 1134; B(1000, nice) has 110 done by then, 890 left alone: 2024
    jobs = [(0, job(1024)), (0, job(1000, nice=10))]
    assert ends_of(1, jobs) == pytest.approx([1134, 2024], abs=1)  # rates round down


def test_niceness_begins_after_a_call_s_equal_share():
    """The first 500 of B are done at equal shares: until 1000 both have 500."""
    # A(1524): 1024 left at 1024/1134 from 1000 -> 2134; B(610 left after 500, nice 10): 110 of them
    # done by then, 500 left alone -> 2634
    jobs = [(0, job(1524)), (0, job(1110, nice=10, after=500))]
    assert ends_of(1, jobs) == pytest.approx([2134, 2634], abs=1)


def test_niceness_costs_nothing_without_contention():
    """Alone, or where the cores suffice, a nice call takes its own time; a share beyond all of its
    work is no niceness at all."""
    assert ends_of(1, [(0, job(1000, nice=19))]) == [1000]
    assert ends_of(2, [(0, job(1000)), (0, job(1000, nice=19, after=300))]) == [1000, 1000]
    assert ends_of(1, [(0, job(500)), (0, job(500, nice=19, after=500))]) == [1000, 1000]


def test_a_call_killed_at_its_niceness_has_the_work_of_both_phases():
    """500 at equal shares by 1000, then 110 of 1134: the call killed at 2134 had 610."""
    ends, _, _ = run(1, [(0, job(5000)), (0, job(5000, nice=10, after=500, timeout=2134))])
    assert ends[1] == CallOutcome(2134, 610, timed_out=True)


def test_late_job_shares_the_rest():
    """M/G/1-PS by hand: 600 alone, then halves, then alone again."""
    # A(1000) runs alone to 600; A and B(1000) at 1/2: A's 400 left end at 1400;
    # B has 600 left, alone: 2000 = all work done
    assert ends_of(1, [(0, job(1000)), (600, job(1000))]) == [1400, 2000]


def test_short_job_does_not_wait_behind_a_long_one():
    """Under processor sharing a job of 10 beside one of 10,000 takes 20."""
    assert ends_of(1, [(0, job(10_000)), (0, job(10))]) == [10_010, 20]


def test_uncontended_calls_take_their_own_time():
    """As long as the parallelism asked for fits the cores, nobody is slowed."""
    # 2.5 cores: ceil(1001 / 2.5) = 401, + 7 of waiting
    jobs = [(0, job(1001, 2.5, 7)), (3, job(1000, 1, 5)), (3, job(500, 0.5))]
    assert ends_of(4, jobs) == [408, 1008, 1003]


def test_unlimited_cores():
    """Zero cores means no limit."""
    assert ends_of(0, [(0, job(1000))] * 500) == [1000] * 500


def test_water_filling_by_hand():
    """4 cores, widths 0.5, 1, 8, 8: the narrow ones get all they can use, the wide ones share."""
    # rates 0.5, 1, 1.25, 1.25; the second ends 1000 at 1000; then 4 - 0.5 = 3.5 for two: 1.75
    # wide: 1250 at 1000, 5000 - 1250 = 3750 left / 1.75 = 2142.86 -> 3143
    # first: 2000 / 0.5 = 4000
    jobs = [(0, job(2000, 0.5)), (0, job(1000, 1)), (0, job(5000, 8)), (0, job(5000, 8))]
    assert ends_of(4, jobs) == [4000, 1000, 3143, 3143]


def test_wide_call_on_few_cores():
    """A call that could use 8 cores gets the 2 there are."""
    assert ends_of(2, [(0, job(1000, 8))]) == [500]


def test_waiting_calls_leave_their_cores():
    """I/O waits do not occupy cores: B computes while A waits."""
    # A and B at 1/2 each until 200; A (100 done) waits to 500; B's 200 left run alone to 400
    assert ends_of(1, [(0, job(100, io=300)), (0, job(300))]) == [500, 400]


def test_timeout_frees_the_core():
    """A killed call ends at its timeout with part of its work, and gives its share back."""
    # both at 1/2; A killed at 100 with 50 done; B: 50 + 150 alone -> 250
    ends, order, model = run(1, [(0, job(1000, timeout=100)), (0, job(200))])
    assert ends[0] == CallOutcome(100, 50, timed_out=True)
    assert ends[1] == CallOutcome(250, 200, timed_out=False)
    assert order == [0, 1]
    assert model.busy_core_ps(1000) == 250


def test_timeout_while_waiting_and_on_the_dot():
    """The timeout covers the I/O wait; a call that ends exactly then is not killed."""
    ends, _, _ = run(1, [(0, job(10, io=500, timeout=100)), (200, job(100, timeout=100))])
    assert ends[0] == CallOutcome(100, 10, timed_out=True)
    assert ends[1] == CallOutcome(300, 100, timed_out=False)


def test_ties_come_in_order_of_start():
    """Calls that end at the same time are popped as they were started."""
    jobs = [(0, job(0, io=100)), (0, job(100)), (50, job(50)), (60, job(0, io=40))]
    _, order, _ = run(0, jobs)
    assert order == [0, 1, 2, 3]


def test_late_pop_gives_ends_in_order_with_their_times():
    """A caller that comes late still gets the exact ends, sorted."""
    model = Modelled(1)
    model.start(1, job(300), 0)
    model.start(2, job(100), 0)
    assert model.busy_core_ps(900) == 400
    assert model.running == 2
    assert model.next_completion_ps() == 200
    assert model.pop_completed(900) == [2, 1]
    assert [model.outcome(h).at_ps for h in (2, 1)] == [200, 400]
    with pytest.raises(AssertionError, match="back"):
        model.start(3, job(1), 899)


def reference(cores, jobs):
    """Ends by exact rationals: work of every call is kept apart and shares are re-derived.

    ``rest[i]`` is what call i has to do at its own niceness, after ``computing[i]`` at 0.
    """
    todo = sorted(range(len(jobs)), key=lambda i: jobs[i][0])
    computing, waiting, ends, rest, nice = {}, {}, {}, {}, {}
    now = Fraction(0)
    while todo or computing or waiting:
        rates, left = {}, Fraction(cores or 10**9)
        weights = {i: WEIGHTS[nice[i]] for i in computing}
        weight_left = sum(weights.values())
        for i in sorted(computing, key=lambda i: Fraction(jobs[i][1].cores_milli, weights[i])):
            share = left * weights[i] / weight_left
            rates[i] = min(Fraction(jobs[i][1].cores_milli, MILLI), share)
            left -= rates[i]
            weight_left -= weights[i]
        times = [now + work / rates[i] for i, work in computing.items()]
        times += list(waiting.values())
        times += [Fraction(jobs[todo[0]][0])] if todo else []
        for i in [*computing, *waiting]:
            if jobs[i][1].timeout_ps is not None:
                times.append(Fraction(jobs[i][0] + jobs[i][1].timeout_ps))
        step = min(times) - now
        now += step
        for i in list(computing):
            computing[i] -= rates[i] * step
            if computing[i] <= 0 and rest[i]:
                computing[i], rest[i], nice[i] = rest[i], Fraction(0), jobs[i][1].nice
            elif computing[i] <= 0:
                del computing[i]
                waiting[i] = now + jobs[i][1].io_ps
        for i in [i for i, end in waiting.items() if end <= now]:
            del waiting[i]
            ends[i] = (now, False)
        for i in [*computing, *waiting]:
            if jobs[i][1].timeout_ps is not None and jobs[i][0] + jobs[i][1].timeout_ps <= now:
                computing.pop(i, None)
                waiting.pop(i, None)
                ends[i] = (now, True)
        while todo and jobs[todo[0]][0] <= now:
            i = todo.pop(0)
            demand = jobs[i][1]
            equal = min(demand.cpu_ps, demand.nice_after_ps) if demand.nice else 0
            computing[i], rest[i], nice[i] = Fraction(demand.cpu_ps), Fraction(0), demand.nice
            if equal:
                computing[i], rest[i], nice[i] = Fraction(equal), Fraction(demand.cpu_ps - equal), 0
            if computing[i] == 0:
                del computing[i]
                waiting[i] = now + jobs[i][1].io_ps
    return ends


random_jobs = st.lists(
    st.tuples(
        st.integers(0, 10**7),
        st.builds(
            ToolDemand,
            st.just("t"),
            st.just("test"),
            st.just(0) | st.integers(0, 10**7),
            st.sampled_from([500, 1000, 1000, 2000, 8000]) | st.integers(1, 16_000),
            st.just(0) | st.integers(0, 10**7),
            st.none() | st.integers(1, 5 * 10**7),
            st.sampled_from([0, 0, 0, 5, 19]) | st.integers(0, 19),
            st.just(0) | st.integers(0, 10**7),
        ),
    ),
    min_size=1,
    max_size=12,
)


WHOLE_AT_NICENESS_0 = [(0, job(40_000_000)), (0, job(13_000_000, 0.5, nice=5, after=13_000_000))]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 5), random_jobs)
@example(1, WHOLE_AT_NICENESS_0)
def test_random_arrivals_agree_with_the_reference(cores, jobs):
    """Every end is the exact rational one, up to the rounding of ends to whole picoseconds."""
    ends, order, _ = run(cores, jobs)
    expected = reference(cores, jobs)
    slowest = min(demand.cores_milli for _, demand in jobs)
    # each earlier end is up to 1 ps late; who gets 1 ps less of 5 cores, at 1/1000 core, is later
    slack = 2 + len(jobs) * (5 * MILLI // slowest + 2)
    if any(demand.nice for _, demand in jobs):  # the same 1 ps at the least share of all weights
        slack *= 2 * len(jobs) * WEIGHTS[0] // WEIGHTS[-1]
    for i, (end, killed) in expected.items():
        assert abs(ends[i].at_ps - end) <= slack
        timeout = jobs[i][1].timeout_ps
        if timeout is None or abs(end - jobs[i][0] - timeout) > slack:
            assert ends[i].timed_out == killed
    assert all(ends[a].at_ps <= ends[b].at_ps for a, b in pairwise(order))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 5), random_jobs)
def test_work_is_conserved(cores, jobs):
    """The integral of busy cores is the work of all calls; no call ends before its own time."""
    ends, _, model = run(cores, jobs)
    last = max(outcome.at_ps for outcome in ends.values())
    work = sum(outcome.cpu_ps for outcome in ends.values())
    # a CPU phase ends on a whole picosecond: up to its width of service is given too much
    slack = sum(demand.cores_milli // MILLI + 2 for _, demand in jobs)
    assert work - len(jobs) <= model.busy_core_ps(last) <= work + slack
    for i, (start, demand) in enumerate(jobs):
        assert ends[i].at_ps - start >= demand.alone_ps(cores)
        if not ends[i].timed_out:
            assert ends[i].cpu_ps == demand.cpu_ps
    if cores:
        first = min(start for start, _ in jobs)
        assert model.busy_core_ps(last) <= cores * (last - first)


@settings(max_examples=50, deadline=None)
@given(random_jobs, st.lists(st.integers(0, 10**8), max_size=8))
def test_asking_changes_nothing(jobs, instants):
    """Reading the busy integral at any instants leaves all ends as they are."""
    plain = run(2, jobs)[0]
    model, ends = Modelled(2), {}
    events = sorted(
        [(start, 0, i) for i, (start, _) in enumerate(jobs)]
        + [(t, 1, k) for k, t in enumerate(instants)]
    )
    for at, kind, i in events:
        if kind == 0:
            model.start(i, jobs[i][1], at)
        else:
            model.busy_core_ps(at)
    for handle in model.pop_completed(10**15):
        ends[handle] = model.outcome(handle)
    assert ends == plain
