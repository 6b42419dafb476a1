"""Agreement of two engines, on numbers made up by hand."""

from __future__ import annotations

import math

import pytest

from marsbench.experiment.agreement import (
    Played,
    disagreement,
    order_agreement,
    played,
    played_all,
    quicker_than_ideal,
    session_errors,
)


def test_session_errors():
    """Only sessions that both completed count; errors are relative to the first engine."""
    first = Played({"a": 10.0, "b": 20.0, "c": 40.0, "d": math.nan, "e": 1.0}, {})
    second = Played({"a": 11.0, "b": 18.0, "c": 40.0, "d": 5.0, "e": math.nan}, {})
    found = session_errors(first, second)
    assert dict(found.errors) == pytest.approx({"a": 0.1, "b": -0.1, "c": 0.0})
    assert found.percentile(50) == pytest.approx(0.1)
    assert found.rank_correlation == pytest.approx(1.0)


def test_nothing_in_common():
    """Without a session that both completed there is no error to tell."""
    found = session_errors(Played({"a": 1.0}, {}), Played({"a": math.nan}, {}))
    assert math.isnan(found.percentile(50))
    assert math.isnan(found.rank_correlation)


def test_order_of_systems():
    """Pairs that swap places are named; a tie on one side only is a swap as well."""
    found = order_agreement({"x": 1.0, "y": 2.0, "z": 3.0}, {"x": 1.5, "y": 1.2, "z": 9.0})
    assert (found.same, found.pairs, found.flipped) == (2, 3, (("x", "y"),))
    assert order_agreement({"x": 1.0, "y": 2.0}, {"x": 1.0, "y": 1.0}).same == 0
    assert order_agreement({"x": 1.0}, {"x": 2.0}).pairs == 0


def test_means_beyond_the_tolerance():
    """10 s against 14 s are 40 % apart: 0.25 does not pass, 0.45 does, and the worst system is named
    with its sign; a mean that one engine does not have never passes."""

    def means(first, second):
        return tuple(Played({}, {"mean_latency_s": value}) for value in (first, second))

    pairs = {"x": means(10.0, 14.0), "y": means(10.0, 7.0), "z": means(10.0, 11.0)}
    found = disagreement(pairs, ("sim", "vllm"), 0.25)
    assert found.startswith("sim and vllm do not agree on 2 of 3 systems")
    assert "latency of x on vllm is +40%" in found
    assert disagreement(pairs, ("sim", "vllm"), 0.45) is None
    lost = {"x": means(10.0, math.nan)}
    assert disagreement(lost, ("sim", "vllm"), 9.0) == "x: no session completed on vllm"


def test_sessions_quicker_than_their_ideal():
    """A slowdown below 1 cannot be of a good profile: it is said how many there are, and the least."""
    assert quicker_than_ideal([1.0, 2.5, math.nan]) is None
    found = quicker_than_ideal([0.46, 0.99, 1.2, math.nan])
    assert found.startswith("2 of 3 sessions took less time than their simulated ideal")
    assert "down to 0.46" in found


def test_totals_of_a_log(two_turns):
    """Totals of the hand-made session: 10 s of latency, first tokens after 2.5 s and 2.5 s."""
    found = played(two_turns.log())
    assert found.latency_s == {"one": 10.0}
    assert found.totals["mean_latency_s"] == found.totals["p95_latency_s"] == 10.0
    # ready 1 -> first 3.5; ready 6.5 -> first 9
    assert found.totals["mean_ttft_s"] == pytest.approx(2.5)
    assert found.totals["makespan_s"] == 11.0
    assert found.totals["recomputed_tokens"] == 40


def test_several_seeds(two_turns):
    """Sessions are told apart by seed, totals are means, and each seed's mean is kept; a single seed
    is as without."""
    log = two_turns.log()
    one, two = played_all({7: log}), played_all({7: log, 8: log})
    assert one.latency_s == {"one": 10.0}
    assert two.latency_s == {"7/one": 10.0, "8/one": 10.0}
    assert two.totals["recomputed_tokens"] == 40
    assert two.mean_latency_s == {7: 10.0, 8: 10.0}
