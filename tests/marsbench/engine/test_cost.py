"""Step cost: hand-computed steps, and closed forms of decode runs against the plain loop."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from marsbench.engine.cost import StepCost
from marsbench.errors import ConfigError

HAND = StepCost.from_coefficients(
    c_tok=10, c_pair=2, weights=(100, 150, 180, 200), m_ctx=3, o_step=7, o_seq=5
)


def loop(cost, seqs, ctx, steps):
    return [cost.step_ps(seqs, ctx + i * seqs, ctx + i * seqs, seqs) for i in range(max(steps, 0))]


small = st.integers(0, 50)
large = st.integers(0, 10**13)


@st.composite
def costs(draw):
    """Coefficients of like size, so that each can decide a step."""
    size = draw(st.sampled_from([small, large]))
    return StepCost.from_coefficients(
        c_tok=draw(size),
        c_pair=draw(size),
        weights=draw(st.lists(st.integers(0, 10**5) | size, min_size=1, max_size=6)),
        m_ctx=draw(size),
        o_step=draw(st.integers(1, 100) | st.integers(1, 10**10)),
        o_seq=draw(size),
    )


def test_step_by_hand():
    """A step is the sum of its parts; the weights are looked up by tokens."""
    # 10*2 + 180 + 2*20 + 3*20 + 7 + 5*2
    assert HAND.step_ps(2, 20, 20, 2) == 317
    # 10*30 + 200 + 2*600 + 3*50 + 7 + 5*1
    assert HAND.step_ps(30, 600, 50, 1) == 1862


def test_decodes_beside_a_prefill_cost_their_kv_reads():
    """Sequences that share a step with a prefill chunk add their attention to it."""
    alone = HAND.step_ps(30, 465, 30, 1)
    # 2 decodes at 1,000 tokens: 2 tokens, 2,000 pairs, 2,000 of ctx, 2 sequences
    assert HAND.step_ps(32, 2465, 2030, 3) - alone == 10 * 2 + 2 * 2000 + 3 * 2000 + 5 * 2


def test_weights_are_constant_beyond_the_table():
    """More tokens than the table has entries touch what the last entry says."""
    quiet = StepCost.from_coefficients(
        c_tok=0, c_pair=0, weights=(1, 2, 4), m_ctx=0, o_step=1, o_seq=0
    )
    assert [quiet.step_ps(n, 0, 0, 1) for n in (0, 1, 2, 3, 10_000)] == [2, 3, 5, 5, 5]


def test_decode_run_by_hand():
    """Each step of a run costs the same amount more than the one before."""
    # 2 sequences: 20 + 180 + (2 + 3) * ctx + 17 = 217 + 5 * ctx; ctx 20, 22, 24
    assert HAND.decode_run_ps(2, 20, 3) == 317 + 327 + 337
    assert HAND.decode_steps_until(2, 20, 317 + 327, 100) == 2
    assert HAND.decode_steps_until(2, 20, 317 + 327 + 1, 100) == 3
    assert HAND.decode_steps_until(2, 20, 10**9, 100) == 100


@given(costs(), st.integers(1, 40), st.integers(0, 400), st.integers(-1, 300))
@example(HAND, 1, 0, 120)
def test_decode_run_equals_the_loop(cost, seqs, ctx, steps):
    """The closed form is the exact sum of the steps."""
    assert cost.decode_run_ps(seqs, ctx, steps) == sum(loop(cost, seqs, ctx, steps))


@given(costs(), st.integers(1, 40), st.integers(0, 400), st.integers(0, 200), st.data())
def test_decode_steps_until_equals_the_loop(cost, seqs, ctx, max_steps, data):
    """The first step count that lasts the budget, at sums, next to sums, and anywhere."""
    steps = loop(cost, seqs, ctx, max_steps)
    total = sum(steps)
    cut = data.draw(st.integers(0, max_steps))
    near = sum(steps[:cut]) + data.draw(st.integers(-1, 1))
    budget = data.draw(st.just(near) | st.integers(-5, total + 5))
    done, spent = 0, 0
    while spent < budget and done < max_steps:
        spent += steps[done]
        done += 1
    assert cost.decode_steps_until(seqs, ctx, budget, max_steps) == done


@given(st.integers(1, 256), st.integers(1, 30_000_000), st.integers(1, 10**7))
def test_decode_steps_until_is_exact_at_realistic_sizes(seqs, ctx, steps):
    """At 10^7 steps of 10^10 ps no rounding is visible: the inverse gives the count back."""
    cost = StepCost.from_coefficients(
        c_tok=11_000_000,
        c_pair=1_500,
        weights=(9 * 10**9,),
        m_ctx=29_000,
        o_step=10**9,
        o_seq=5 * 10**6,
    )
    total = cost.decode_run_ps(seqs, ctx, steps)
    assert cost.decode_steps_until(seqs, ctx, total, 10**8) == steps
    assert cost.decode_steps_until(seqs, ctx, total + 1, 10**8) == steps + 1


def test_steep_growth_from_a_short_first_step():
    """Slopes that dwarf the first step do not break the root."""
    cost = StepCost.from_coefficients(
        c_tok=0, c_pair=0, weights=(0,), m_ctx=10**16, o_step=1, o_seq=0
    )
    # steps from ctx 0: 1, 40e16 + 1, ... ps
    assert cost.decode_steps_until(40, 0, 1, 9) == 1
    assert cost.decode_steps_until(40, 0, 2, 9) == 2


@given(costs())
def test_dict_round_trip(cost):
    """Coefficients survive to_dict and from_dict."""
    again = StepCost.from_dict(cost.to_dict())
    assert again == cost
    assert hash(again) == hash(cost)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"o_step": 0}, "o_step is 0; it must be at least 1"),
        ({"c_pair": -1}, "c_pair is -1"),
        ({"weights": []}, "weights is empty"),
        ({"weights": [3, -2]}, r"weights\[1\] is -2"),
        ({"weights": 5}, "weights must be a list"),
        ({"m_ctx": 1.5}, "m_ctx must be an integer"),
        ({"m_ctx": True}, "m_ctx must be an integer"),
        ({"speed": 1}, "unknown field 'speed'"),
    ],
)
def test_wrong_coefficients_are_one_clear_line(change, message):
    """A bad coefficient is named in a ConfigError."""
    with pytest.raises(ConfigError, match=message):
        StepCost.from_dict(HAND.to_dict() | change)


def test_missing_coefficient_is_named():
    """A coefficient that is left out is named."""
    data = HAND.to_dict()
    del data["o_seq"]
    with pytest.raises(ConfigError, match="o_seq is missing"):
        StepCost.from_dict(data)
