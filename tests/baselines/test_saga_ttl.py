"""SAGA's time to live: percentile of the tool's waits, memory pressure, cap."""

from __future__ import annotations

import math

import pytest

from baselines.saga_ttl import SagaTtl


def kept_s(policy, build, tool="bash", free_blocks=1000):
    engine = build.engine(free_blocks=free_blocks)
    answer = policy.on_turn_end(build.turn(), (tool,), False, engine, 100.0)
    return answer.until_s - 100.0


def test_an_unseen_tool_keeps_the_default(build):
    """Six seconds, until a wait has been seen; a wait of nothing tells nothing."""
    policy = SagaTtl(build.context())
    policy.observe_wait("bash", 0.0)
    assert kept_s(policy, build) == pytest.approx(6.0)


def test_the_percentile_follows_mean_and_spread_of_the_logarithms(build):
    """Waits of 1 s and e s: mean 0.2, variance 0.8 * 0.2 = 0.16, so exp(0.2 + 1.645 * 0.4)."""
    policy = SagaTtl(build.context())
    policy.observe_wait("bash", 1.0)
    assert kept_s(policy, build) == pytest.approx(1.0)
    policy.observe_wait("bash", math.e)
    assert kept_s(policy, build) == pytest.approx(math.exp(0.2 + 1.6448536 * 0.4))
    assert kept_s(policy, build, "pytest") == pytest.approx(6.0)


@pytest.mark.parametrize(("free_blocks", "seconds"), [(300, 6.0), (200, 4.5), (100, 3.0), (0, 3.0)])
def test_a_fuller_cache_keeps_for_less(build, free_blocks, seconds):
    """All of it up to 70 % in use, three quarters at 80 %, half from 90 % on."""
    assert kept_s(SagaTtl(build.context()), build, free_blocks=free_blocks) == pytest.approx(
        seconds
    )


def test_nothing_is_kept_for_more_than_five_minutes(build):
    """A tool of 1000 s is kept for 300 s, under pressure too: the cap comes last."""
    policy = SagaTtl(build.context())
    policy.observe_wait("build", 1000.0)
    assert kept_s(policy, build, "build") == pytest.approx(300.0)
    assert kept_s(policy, build, "build", free_blocks=0) == pytest.approx(300.0)
