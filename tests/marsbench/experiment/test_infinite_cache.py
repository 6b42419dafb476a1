"""The hit rate of a cache that never evicts, by hand."""

from __future__ import annotations

import pytest

from marsbench.core import Session, SharedPrefix, Turn
from marsbench.experiment.infinite_cache import infinite_cache_hit_rate


def test_whole_blocks_of_the_previous_context():
    """Prompts 100 and 100+20+30 = 150; of the second 120 tokens are reused, 7 blocks of 16 = 112.
    112 / 250 = 0.448.
    """
    session = Session("a", (Turn(100, 20), Turn(30, 5)))
    assert infinite_cache_hit_rate([session], 16) == pytest.approx(112 / 250)


def test_first_session_computes_the_shared_prefix():
    """Two sessions with 64 shared tokens + 36: only the second finds the 64. 64 / 200 = 0.32."""
    prefix = SharedPrefix("p", 64)
    sessions = [Session(name, (Turn(36, 5),), shared_prefix=prefix) for name in "ab"]
    assert infinite_cache_hit_rate(sessions, 16) == pytest.approx(0.32)


def test_nothing_to_measure():
    """Without turns there is no rate."""
    assert infinite_cache_hit_rate([], 16) is None
