"""What host memory for KV changes: it makes places, and a pin no longer pays."""

from __future__ import annotations

import pytest
from mars_gate import ask, mars_of


def let_in(build, host_blocks, **params):
    """Of six sessions of 6,000 tokens, those that have a place; the GPU holds 16,000 tokens."""
    mars, story = mars_of(build, host_blocks=host_blocks, **params)
    for session in range(6):
        story.arrive(session, 0.0, 6000).submit(session, 0.0).start(session, 0.0)
    for session in range(6):
        story.end(session, 1.0).ready(session, 2.0, 6000, turn=1)
        mars.state.seat(mars.state.sessions[session])
    mars.state.growth.mean = 800.0
    return ask(mars, build, [(n, 0.0, 6000, 1) for n in range(6)], 2.0)


@pytest.mark.parametrize(
    ("host_blocks", "places"),
    [(0, 2), (500, 3), (1000, 4), (100_000, 4)],
    ids=["none", "half a GPU's worth", "one GPU's worth", "plenty"],
)
def test_host_memory_makes_places_up_to_one_gpu_s_worth(build, host_blocks, places):
    """A working set is 6,800 tokens: two fit 16,000, three 24,000 and four 32,000; more host memory
    than the GPU's makes no more places."""
    assert let_in(build, host_blocks) == list(range(places))


def test_how_many_places_is_a_parameter(build):
    """With ``host_places`` 0 host memory makes none."""
    assert let_in(build, 1000, host_places=0) == [0, 1]


@pytest.mark.parametrize(
    ("host_blocks", "host_pins", "share"), [(0, 0, True), (1000, 0, False), (1000, 1, True)]
)
def test_nothing_is_pinned_where_host_memory_has_it(build, host_blocks, host_pins, share):
    """A warm return then saves a transfer, not a prefill."""
    mars, _ = mars_of(build, host_blocks=host_blocks, host_pins=host_pins)
    assert (mars.max_share > 0) == share
    if not share:
        assert mars.on_turn_end(build.turn(), ["bash"], False, build.engine(), 5.0) is None
