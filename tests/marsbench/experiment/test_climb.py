"""The search on toy systems whose capacity is known, monotone or not."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsbench.experiment.climb import Summit, agent_ladder, climb, rate_ladder


def searched(ladder, passes: Callable[[float], bool], start: float) -> tuple[Summit, list[int]]:
    """What the search finds, and the rungs that it asked for in order."""
    search, asked = climb(ladder, start), []
    try:
        rung = next(search)
        while True:
            asked.append(rung)
            rung = search.send(passes(ladder[rung]))
    except StopIteration as stopped:
        return stopped.value, asked


def test_ladder_of_rates_goes_through_its_unit():
    """Rungs are 3 % apart, inside the bracket, and one of them is the unit itself."""
    ladder = rate_ladder(2.0, 0.5, 8.0, 0.03)
    assert 0.5 <= ladder[0] < 0.515
    assert 8.0 / 1.03 < ladder[-1] <= 8.0
    assert min(abs(rate - 2.0) for rate in ladder) < 1e-12
    steps = [high / low for low, high in pairwise(ladder)]
    assert steps == pytest.approx([1.03] * len(steps))


def test_ladder_of_agents_has_every_small_number():
    """One by one as long as a step of 3 % is less than an agent, and the bracket's end at the end."""
    ladder = agent_ladder(1, 100, 0.03)
    assert ladder[:50] == list(range(1, 51))
    assert ladder[-1] == 100
    assert max(high / low for low, high in pairwise(ladder[50:])) < 1.04


@pytest.mark.parametrize("load", [0.3, 0.8, 0.97])
def test_an_m_m_1_queue_with_a_bound_on_its_mean_slowdown(load):
    """Mean slowdown of M/M/1 with processor sharing is 1/(1-rho): a bound of s is met up to 1-1/s."""
    bound = 1 / (1 - load)
    ladder = rate_ladder(1.0, 0.05, 10.0, 0.03)
    found, asked = searched(ladder, lambda rate: rate < 1 and 1 / (1 - rate) <= bound, start=0.5)
    assert ladder[found.best] <= load < ladder[found.first_failure]
    assert found.first_failure == found.best + 1
    assert len(asked) <= 10


def test_bracket_hit_from_below():
    """A system that sustains the whole ladder has no failure: its capacity is at least the top."""
    ladder = rate_ladder(1.0, 0.1, 4.0, 0.05)
    found, _ = searched(ladder, lambda rate: True, start=0.5)
    assert found.best == len(ladder) - 1
    assert found.first_failure is None


def test_nothing_is_sustained():
    """A system that fails everywhere is asked at the lowest rung too, and at the highest."""
    ladder = rate_ladder(1.0, 0.1, 4.0, 0.05)
    found, asked = searched(ladder, lambda rate: False, start=0.5)
    assert found.best is None
    assert {0, len(ladder) - 1} <= set(asked)


def test_a_bound_from_below_fails_at_low_rates():
    """Goodput of at least 0.8 needs arrivals of 0.8: what is sustained begins there and ends at 1.2."""
    ladder = rate_ladder(1.0, 0.1, 10.0, 0.03)
    found, _ = searched(ladder, lambda rate: 0.8 <= rate <= 1.2, start=0.5)
    assert ladder[found.best] <= 1.2 < ladder[found.first_failure]
    assert min(found.tried, key=lambda rung: rung) == 0


def test_a_rate_that_passes_above_a_failure_is_said_and_not_counted():
    """Passing to 1.1 and again from 1.5 to 2: the capacity is below 1.1, the rest an island."""
    ladder = rate_ladder(1.0, 0.1, 10.0, 0.03)
    found, _ = searched(ladder, lambda rate: rate <= 1.1 or 1.5 <= rate <= 2, start=0.5)
    assert ladder[found.best] <= 1.1 < ladder[found.first_failure]
    assert found.islands
    assert all(1.5 <= ladder[rung] <= 2 for rung in found.islands)


@given(
    st.lists(st.booleans(), min_size=1, max_size=200),
    st.floats(min_value=0.001, max_value=1000),
    st.sampled_from([0.02, 0.05, 0.3]),
)
def test_any_curve(passes, start, precision):
    """On any pattern of passes: no rung twice, few of them, what is called best did pass and what is
    called the failure above it did fail, they are neighbours, and no failure that was seen lies under
    the best. A pattern with one edge is found exactly.
    """
    ladder = [math.exp(math.log1p(precision) * k) for k in range(len(passes))]
    found, asked = searched(ladder, lambda rate: passes[ladder.index(rate)], start)
    assert len(set(asked)) == len(asked)
    strides = math.log(ladder[-1] / ladder[0]) / math.log(1.5) + 2
    assert len(asked) <= 3 * strides + math.log2(len(passes) + 1) + 3
    assert found.tried == {rung: passes[rung] for rung in asked}
    if found.best is None:
        assert not any(found.tried.values())
        return
    assert passes[found.best]
    if found.first_failure is None:
        assert found.best == len(passes) - 1
    else:
        assert not passes[found.first_failure]
        assert found.first_failure == found.best + 1
        if True not in passes[passes.index(False):] and passes[0]:  # fmt: skip
            assert found.best == passes.index(False) - 1


@given(st.integers(1, 60), st.integers(0, 400), st.sampled_from([0.01, 0.03, 0.2]))
def test_ladders_ascend(least, more, precision):
    """Agents: strictly ascending whole numbers from the first to the last of the bracket."""
    ladder = agent_ladder(least, least + more, precision)
    assert (ladder[0], ladder[-1]) == (least, least + more)
    assert all(low < high for low, high in pairwise(ladder))
