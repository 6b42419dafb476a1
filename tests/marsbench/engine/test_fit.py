"""A cost is recovered from steps that it timed, and noise does not run away with it."""

from __future__ import annotations

import numpy as np
import pytest

from marsbench.core import to_s
from marsbench.engine.cost import StepCost
from marsbench.engine.fit import Sample, fit, turn_cost
from marsbench.errors import EngineError

DENSE = StepCost.from_coefficients(
    c_tok=4_000_000, c_pair=10_000, weights=[0], m_ctx=300_000, o_step=7_500_000_000,
    o_seq=30_000_000,
)  # fmt: skip
KNEE = 200
ROOFLINE = StepCost.from_coefficients(
    c_tok=25_000_000, c_pair=400, weights=[25_000_000 * (KNEE - n) for n in range(KNEE)] + [0],
    m_ctx=30_000, o_step=2_000_000_000, o_seq=10_000_000,
)  # fmt: skip


def measured(cost, *, delay_s=0.0, noise=0.0):
    """Prefills of many sizes in steps of 2,048, some behind a context, and decode batches."""
    rng = np.random.default_rng(0)
    plans = []
    for new in (1, 8, 32, 64, 128, 180, 256, 512, 1024, 2048, 5000, 8000):
        for before in (0, 2048, 6000):
            steps, start, end = [], before, before + new
            while start < end:
                n = min(2048, end - start)
                steps.append((n, n * start + n * (n + 1) // 2, start + n, 1))
                start += n
            plans.append(("prefill", tuple(steps)))
    for batch in (1, 4, 16, 64):
        for context in (64, 1024, 8192):
            total = batch * (context + 1)
            plans.append(("decode", ((batch, total, total, batch),) * 5))
    return [
        Sample(
            kind,
            steps,
            (to_s(sum(cost.step_ps(*step) for step in steps)) + delay_s * (kind == "prefill"))
            * rng.lognormal(0, noise),
            int(kind == "prefill"),
        )
        for kind, steps in plans
    ]


@pytest.mark.parametrize("delay_s", [0.0, 0.004])
def test_exact_measurements_give_the_cost_back(delay_s):
    """Without noise every coefficient comes back to a thousandth, and the delay beside them."""
    found = fit(measured(DENSE, delay_s=delay_s))
    assert found.knee_tokens == 0
    for name in ("c_tok", "c_pair", "m_ctx", "o_step", "o_seq"):
        assert getattr(found.cost, name) == pytest.approx(getattr(DENSE, name), rel=1e-3), name
    assert found.delay_s == pytest.approx(delay_s, abs=1e-6)
    assert found.error(100) < 1e-6


def test_weights_that_hide_behind_computing():
    """Where small steps cost as much as reading the weights, the knee is found to within the grid,
    and no step is off by more than a few percent."""
    samples = measured(ROOFLINE)
    found = fit(samples)
    assert KNEE * 0.8 < found.knee_tokens < KNEE * 1.25
    assert found.cost.c_tok == pytest.approx(ROOFLINE.c_tok, rel=0.05)
    assert found.error(95) < 0.05
    assert found.cost.weights[-1] == 0


def test_noise():
    """Measurements that are off by 5 % give a cost that is off by less in what matters: the times of
    a full prefill step and of a decode step."""
    found = fit(measured(DENSE, noise=0.05)).cost
    for step in ((2048, 2048 * 1024, 2048, 1), (16, 16 * 1024, 16 * 1024, 16)):
        assert found.step_ps(*step) == pytest.approx(DENSE.step_ps(*step), rel=0.05)


def test_errors_by_kind():
    """Percentiles are of the kind that is asked for."""
    samples = measured(DENSE)
    samples[-1] = Sample("decode", samples[-1].steps, samples[-1].seconds * 2)
    found = fit(samples)
    assert found.error(100, "decode", samples) > found.error(100, "prefill", samples)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([], "at least 3 prefill"),
        (measured(DENSE)[:20], "at least 3 decode"),
        ([*measured(DENSE), Sample("decode", ((1, 1, 1, 1),), 0.0)], "no time at all"),
    ],
)
def test_too_little_to_fit(samples, words):
    """What cannot be fitted is one clear line."""
    with pytest.raises(EngineError, match=words):
        fit(samples)


def test_noise_does_not_make_it_too_quick():
    """Times that scatter by 30 % are fitted at their mean: relative to the measured times the fit would
    be at E[1/m] / E[1/m^2], a sixth below it."""
    rng = np.random.default_rng(1)
    samples = [
        Sample(
            sample.kind, sample.steps, sample.seconds * rng.lognormal(-0.3**2 / 2, 0.3),
            sample.first_tokens,
        )
        for _ in range(4)
        for sample in measured(DENSE)
    ]  # fmt: skip
    found = fit(samples)
    ratios = [s.seconds / p for s, p in zip(samples, found.predicted_s, strict=True)]
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.03)
    assert found.cost.step_ps(2048, 2048 * 5000, 6000, 1) == pytest.approx(
        DENSE.step_ps(2048, 2048 * 5000, 6000, 1), rel=0.06
    )


def around(*times):
    """A prefill that only says what its turns took beside the steps."""
    return Sample("prefill", ((1, 1, 1, 1),), 1.0, len(times), times)


def test_what_a_turn_takes_beside_its_steps():
    """4 ms and 0.5 us a prompt token come back, with the 3 ms found in the server's own times; of the
    three repetitions of a size the one that met something else does not count."""
    samples = [
        around(*((size, 0.004 + 0.5e-6 * size + late) for late in (0.0, -1e-6, 0.2)))
        for size in (16, 1024, 4096, 8000)
    ]
    found = turn_cost(samples, delay_s=0.003)
    assert found.fixed_ps == pytest.approx(7_000_000_000, rel=1e-6)
    assert found.prompt_token_ps == pytest.approx(500_000, rel=1e-6)
    assert found.delay_ps(2000) == pytest.approx(8_000_000_000, rel=1e-6)


def test_a_turn_takes_no_negative_time():
    """Where longer prompts took less, by chance, a prompt token takes nothing."""
    assert turn_cost([around((16, 0.005)), around((8000, 0.003))]).prompt_token_ps == 0
    with pytest.raises(EngineError, match="around a first token"):
        turn_cost(measured(DENSE))
