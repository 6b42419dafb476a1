"""Quantile tables: marginals, atoms, limits, and session effects that leave them alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from workloads.synthetic.draws import Distribution, Quantiles, session_scores

TWO = Distribution(mixture=((0.3, 1.0, 0.5), (0.7, 4.0, 0.2)))


def draw(spec: Distribution, scores: np.ndarray) -> np.ndarray:
    return Quantiles([spec])(np.zeros(len(scores), dtype=np.int64), scores)


def test_draws_follow_the_mixture() -> None:
    """Normal scores become values with the distribution function of the mixture."""
    values = draw(TWO, np.random.default_rng(0).standard_normal(20_000))

    def cdf(x: np.ndarray) -> np.ndarray:
        return 0.3 * stats.norm.cdf(np.log(x), 1.0, 0.5) + 0.7 * stats.norm.cdf(np.log(x), 4.0, 0.2)

    assert stats.kstest(values, cdf).statistic < 0.012


def test_median_of_a_single_lognormal() -> None:
    """Score 0 is the median exp(mu); score 1 is exp(mu + sigma)."""
    spec = Distribution(mixture=((1.0, 2.0, 0.5),))
    assert draw(spec, np.array([0.0, 1.0])) == pytest.approx(np.exp([2.0, 2.5]), rel=1e-3)


def test_atom_offset_and_limits() -> None:
    """A fifth is exactly zero; the rest is shifted by 10 and kept within 12 and 30."""
    spec = Distribution(mixture=((1.0, 2.0, 1.0),), p_empty=0.2, offset=10, low=12, high=30)
    values = draw(spec, np.random.default_rng(0).standard_normal(20_000))
    assert np.mean(values == 0) == pytest.approx(0.2, abs=0.01)
    assert values[values > 12 * 0.99].min() == pytest.approx(12, abs=0.1)
    assert values.max() == 30


@given(share=st.floats(0, 1))
def test_session_effects_keep_the_marginal(share: float) -> None:
    """Scores that are part session, part own noise stay standard normal across sessions."""
    rng = np.random.default_rng(0)
    scores = np.concatenate(
        [session_scores(rng.standard_normal(1), rng.standard_normal(), share) for _ in range(400)]
    )
    assert scores.std() == pytest.approx(1.0, abs=0.15)
    assert abs(scores.mean()) < 0.2


@given(scores=st.lists(st.floats(-8, 8), min_size=2, max_size=20))
def test_values_grow_with_the_score(scores: list[float]) -> None:
    """The table is a quantile function: monotone, finite and within its limits."""
    values = draw(TWO, np.sort(np.array(scores)))
    assert np.isfinite(values).all()
    assert (np.diff(values) >= 0).all()


@pytest.mark.parametrize(
    "bad",
    [
        {"mixture": []},
        {"mixture": [[0.4, 0, 1]]},
        {"mixture": [[1, 0, -1]]},
        {"mixture": [[1, 0, 1]], "p_empty": 1.0},
        {"mixture": [[1, 0, 1]], "low": 5, "high": 1},
        {"mixture": [[1, 0, 1]], "cap": 1},
    ],
)
def test_unsound_distributions_are_refused(bad: dict[str, object]) -> None:
    """Weights, widths, atoms and limits are checked when a profile is read."""
    with pytest.raises(ValidationError):
        Distribution.model_validate(bad)
