"""Arrival processes: hand-computed times, distributions, pairing, and wrong input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from marsbench.arrival import ARRIVALS, ArrivalPlan, arrival_rng, arrivals, load_process
from marsbench.core import PS_PER_S, Session, Turn
from marsbench.errors import ConfigError

S = PS_PER_S


def sessions(num: int, recorded: tuple[float, ...] = ()) -> list[Session]:
    turn = Turn(new_input_tokens=10, output_tokens=1)
    times = recorded or (None,) * num
    return [Session(f"s{i}", (turn,), arrival_s=times[i]) for i in range(num)]


def times_s(name: str, num: int, rate: float, seed: int = 0, **params: float) -> np.ndarray:
    rng = arrival_rng(seed, "swe-bench")
    plan = arrivals(name, sessions(num), rate_per_s=rate, rng=rng, params=params)
    assert plan.times_ps is not None
    return np.array(plan.times_ps) / S


def test_fixed_is_evenly_spaced() -> None:
    """At 0.2/s a session arrives every 5 s."""
    rng = arrival_rng(0, "w")
    plan = arrivals("fixed", sessions(4), rate_per_s=0.2, rng=rng)
    assert plan == ArrivalPlan((0, 5 * S, 10 * S, 15 * S))


def test_burst_keeps_the_mean_rate() -> None:
    """Groups of 3 at 1/s stand 3 s apart."""
    assert times_s("burst", 7, 1.0, size=3).tolist() == [0, 0, 0, 3, 3, 3, 6]


def test_poisson_gaps_are_exponential() -> None:
    """Gaps at 0.5/s have mean 2 s and pass a test for the exponential distribution."""
    gaps = np.diff(times_s("poisson", 4001, 0.5))
    assert gaps.mean() == pytest.approx(2.0, rel=0.05)
    assert stats.kstest(gaps, stats.expon(scale=2.0).cdf).pvalue > 0.01


def test_gamma_shape_sets_burstiness() -> None:
    """Mean gap 1 / rate for every shape; squared coefficient of variation 1 / shape."""
    for shape in (0.25, 1.0, 4.0):
        gaps = np.diff(times_s("gamma", 20001, 2.0, shape=shape))
        assert gaps.mean() == pytest.approx(0.5, rel=0.06)
        assert gaps.var() / gaps.mean() ** 2 == pytest.approx(1 / shape, rel=0.12)


def test_trace_keeps_recorded_times_from_the_first() -> None:
    """Without a rate, arrivals are the recorded ones less the earliest, in order of the sessions."""
    plan = arrivals(
        "trace", sessions(3, (107.0, 100.0, 104.0)), rate_per_s=None, rng=arrival_rng(0, "w")
    )
    assert plan.times_ps == (7 * S, 0, 4 * S)


def test_trace_is_scaled_to_the_rate() -> None:
    """Three sessions over 8 s are 0.25/s; at 0.5/s the same pattern takes 4 s."""
    plan = arrivals(
        "trace", sessions(3, (100.0, 102.0, 108.0)), rate_per_s=0.5, rng=arrival_rng(0, "w")
    )
    assert plan.times_ps == (0, 1 * S, 4 * S)


def test_closed_loop_has_no_times() -> None:
    """A closed loop is described by how many sessions it keeps in the system."""
    plan = arrivals(
        "closed", sessions(9), rate_per_s=None, rng=arrival_rng(0, "w"), params={"n": 4}
    )
    assert plan == ArrivalPlan(times_ps=None, closed_loop=4)


@given(
    name=st.sampled_from(["fixed", "poisson", "gamma", "burst"]),
    rate=st.floats(0.01, 50),
    seed=st.integers(0, 5),
)
def test_rate_scales_one_unit_draw(name: str, rate: float, seed: int) -> None:
    """At k times the rate, every arrival is k times earlier: comparisons over load stay paired."""
    unit, fast = times_s(name, 12, 1.0, seed), times_s(name, 12, rate, seed)
    assert fast * rate == pytest.approx(unit, rel=1e-9, abs=1e-9)
    assert (np.diff(fast) >= 0).all()
    assert fast[0] == 0


def test_same_seed_and_workload_give_the_same_arrivals() -> None:
    """Arrivals depend on seed and workload, and on nothing that a system could change."""
    first = times_s("poisson", 50, 1.0, seed=3)
    assert (first == times_s("poisson", 50, 1.0, seed=3)).all()
    assert (first != times_s("poisson", 50, 1.0, seed=4))[1:].all()
    other = arrivals("poisson", sessions(50), rate_per_s=1.0, rng=arrival_rng(3, "git-task"))
    assert other.times_ps is not None
    assert (np.array(other.times_ps) / S != first)[1:].all()


def test_more_sessions_extend_the_same_arrivals() -> None:
    """The first arrivals are the same however many follow."""
    for name in ("poisson", "gamma"):
        assert (times_s(name, 30, 1.0)[:10] == times_s(name, 10, 1.0)).all()


@pytest.mark.parametrize("name", sorted(ARRIVALS))
def test_every_process_is_described_and_takes_no_sessions(name: str) -> None:
    """Each has a summary; an empty workload gives an empty plan (or a closed loop)."""
    process = load_process(name)
    assert process.summary
    rate = None if name in {"closed", "trace"} else 1.0
    plan = arrivals(name, [], rate_per_s=rate, rng=arrival_rng(0, "w"))
    assert plan.times_ps == (None if name == "closed" else ())


@pytest.mark.parametrize(
    ("name", "rate", "params", "message"),
    [
        ("poison", 1.0, {}, "unknown arrival 'poison'; did you mean 'poisson'?"),
        ("no.such.process", 1.0, {}, "cannot load arrival"),
        ("gamma", 1.0, {"shap": 2.0}, "did you mean 'shape'?"),
        ("gamma", 1.0, {"shape": 0.0}, "must be positive"),
        ("burst", 1.0, {"size": 2.5}, "whole number"),
        ("closed", None, {"n": 0}, "whole number"),
        ("closed", 1.0, {}, "has no rate"),
        ("poisson", None, {}, "needs a rate"),
        ("fixed", 0.0, {}, "must be a positive number"),
        ("fixed", float("nan"), {}, "must be a positive number"),
        ("trace", None, {}, "'s0' has no recorded arrival"),
    ],
)
def test_wrong_input_is_one_line(
    name: str, rate: float | None, params: dict[str, float], message: str
) -> None:
    """Wrong names, parameters and rates say what is wrong and what to use."""
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")) as caught:
        arrivals(name, sessions(3), rate_per_s=rate, rng=arrival_rng(0, "w"), params=params)
    assert "\n" not in str(caught.value)


def test_trace_of_one_instant_has_no_rate() -> None:
    """A recording whose sessions all arrive at once cannot be scaled."""
    with pytest.raises(ConfigError, match="arrive at once"):
        arrivals("trace", sessions(2, (5.0, 5.0)), rate_per_s=1.0, rng=arrival_rng(0, "w"))
