"""Copies between the tiers take their time, one after the other each way."""

from __future__ import annotations

import pytest

from marsbench.engine.base import EngineConfig
from marsbench.engine.cost import LinkCost, StepCost
from marsbench.engine.transfers import Channel, HostLink, link_of
from marsbench.errors import EngineError

LINK = LinkCost(h2d_token_ps=10, d2h_token_ps=20, latency_ps=100, token_bytes=4)
COST = StepCost.from_coefficients(c_tok=1, c_pair=0, weights=[0], m_ctx=0, o_step=1, o_seq=0)


def test_a_channel_copies_one_job_after_the_other():
    """A copy waits for the one before it, and takes the latency and its blocks' time."""
    channel: Channel[str] = Channel(block_ps=7, latency_ps=100)
    assert channel.submit("a", 10, now_ps=1000) == 1000 + 100 + 70
    assert channel.submit("b", 1, now_ps=1001) == 1170 + 107
    assert channel.submit("c", 0, now_ps=5000) == 5100
    assert channel.next_done_ps == 1170
    assert channel.take_done(1169) == []
    assert channel.take_done(1277) == ["a", "b"]
    assert channel.take_done(9999) == ["c"]
    assert channel.next_done_ps is None
    assert (channel.busy_ps, channel.blocks) == (170 + 107 + 100, 11)


def test_both_directions_copy_at_once():
    """A load does not wait for a store."""
    link: HostLink[str] = HostLink(LINK, block_size=16)
    assert link.d2h.submit("store", 2, 0) == 100 + 2 * 16 * 20
    assert link.h2d.submit("load", 2, 0) == 100 + 2 * 16 * 10
    assert link.next_done_ps() == 420


def test_host_memory_needs_a_link_and_a_prefix_cache():
    """What cannot be modelled is refused in one line; without host memory nothing is needed."""
    config = EngineConfig(num_blocks=10, host_chunks=5)
    assert link_of(config, COST.with_link(LINK)) == LINK
    assert link_of(EngineConfig(num_blocks=10), COST) is None
    with pytest.raises(EngineError, match="`host` block"):
        link_of(config, COST)
    plain = EngineConfig(num_blocks=10, host_chunks=5, enable_prefix_caching=False)
    with pytest.raises(EngineError, match="enable_prefix_caching"):
        link_of(plain, COST.with_link(LINK))
    wrong = EngineConfig(num_blocks=10, host_chunks=5, eviction_policy="fifo")
    with pytest.raises(EngineError, match="'fifo': must be lru or arc"):
        link_of(wrong, COST.with_link(LINK))
