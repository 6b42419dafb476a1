"""A server that times its steps by a known cost is measured, and the cost comes back."""

from __future__ import annotations

import itertools

import pytest
from virtual_loop import run_virtually, virtual_clock

from marsbench.core import to_s
from marsbench.engine.base import EngineConfig
from marsbench.engine.cost import StepCost
from marsbench.engine.fit import fit
from marsbench.engine.live.calibrate import (
    Plan,
    _window,
    measure,
    plan,
    steps_of_prefill,
    with_sizes_of,
)
from marsbench.engine.live.client import Client, Completion
from marsbench.engine.live.fake_server import Behaviour, FakeServer, serving
from marsbench.errors import EngineError

COST = StepCost.from_coefficients(
    c_tok=20_000_000, c_pair=30_000, weights=[0], m_ctx=1_000_000, o_step=8_000_000_000,
    o_seq=500_000_000,
)  # fmt: skip
"""Steps of 8 ms and more: an event loop wakes up within a fraction of one."""
CONFIG = EngineConfig(
    num_blocks=2000, block_size=16, max_num_batched_tokens=512, max_num_seqs=8, max_model_len=4096
)


def measured(behaviour, config, probes):
    """Sizes and samples of a server with which the client shares a virtual clock, and the server."""

    async def run():
        server = FakeServer(behaviour)
        async with (
            serving(server) as url,
            Client(url, "fake", clock=virtual_clock()) as client,
        ):
            sizes = await with_sizes_of(client, config)
            return sizes, await measure(client, sizes, probes, salt="test"), server

    return run_virtually(run())


def test_a_known_cost_comes_back():
    """The times that matter are predicted within 3 %: a full prefill step, one behind a long context,
    and decodes of small and large batches; sizes are the server's own."""
    probes = Plan(
        prefills=((0, 32), (0, 512), (0, 1500), (0, 3000), (1500, 64), (3000, 64), (2000, 512)),
        decodes=((1, 64), (1, 3000), (4, 1000), (8, 64), (8, 2000)),
        repeats=1,
    )
    behaviour = Behaviour(cost=COST, max_num_batched_tokens=512, num_blocks=1500)
    sizes, samples, server = measured(behaviour, CONFIG, probes)
    assert (sizes.num_blocks, sizes.block_size) == (1500, 16)
    found = fit(samples)
    for step in ((512, 512 * 256, 512, 1), (512, 512 * 2500, 3000, 1), (1, 500, 500, 1),
                 (8, 8 * 1500, 8 * 1500, 8)):  # fmt: skip
        assert found.cost.step_ps(*step) == pytest.approx(COST.step_ps(*step), rel=0.03), step
    assert found.error(50) < 0.01
    prompts = [tuple(body["prompt"]) for body in server.requests]
    assert len(set(prompts[:8])) == 8, "each probe has content of its own"


def test_samples_count_what_was_computed():
    """Behind a cached context only whole blocks count as cached; decode steps count each sequence's
    context as it grows."""
    probes = Plan(prefills=((100, 50),), decodes=((2, 64),), repeats=1)
    behaviour = Behaviour(cost=COST, max_num_batched_tokens=512)
    _, (prefill, decode), _ = measured(behaviour, CONFIG, probes)
    # 100 tokens are 6 blocks of 16 and a bit: 96 cached, 54 computed
    assert prefill.steps == ((54, 54 * 96 + 54 * 55 // 2, 150, 1),)
    assert prefill.first_tokens == 1
    assert prefill.seconds == pytest.approx(to_s(COST.step_ps(*prefill.steps[0])), rel=1e-6)
    counts = [step[2] for step in decode.steps]
    # 64 + 2 * 4 tokens each, of which the first is the prefill's
    assert (len(counts), counts[0]) == (71, 2 * 65)
    assert [after - before for before, after in itertools.pairwise(counts)] == (
        [2] * (len(counts) - 1)
    )


def test_chunks():
    """A prompt longer than a step takes several; each counts the pairs behind it."""
    # 5 tokens behind 3 in chunks of 4: 4 * 3 + 10 pairs up to 7, then 1 * 7 + 1 up to 8
    assert steps_of_prefill(3, 5, 4) == ((4, 22, 7, 1), (1, 8, 8, 1))


def test_plan_fits_the_engine():
    """No probe needs more KV, a longer context or more sequences than there are."""
    made = plan(CONFIG, most_tokens=100_000)
    kv_tokens = CONFIG.num_blocks * CONFIG.block_size
    assert max(context + new for context, new in made.prefills) <= CONFIG.max_model_len
    assert all(batch * (context + 32) <= kv_tokens for batch, context in made.decodes)
    assert {batch for batch, _ in made.decodes} == {1, 2, 4, 8}
    assert len({context for context, _ in made.prefills}) == 4
    with pytest.raises(EngineError, match="more KV blocks"):
        plan(EngineConfig(num_blocks=10))


def test_joined_tokens():
    """Tokens of several steps that came in one message still count as steps; too few messages are
    no measurement."""
    ms = 10**9
    late = Completion(first_ps=0, token_ps=[0, *(20 * ms * k for k in range(1, 9) for _ in "ab")])
    sample = _window([late], 100)
    assert sample is not None
    # 16 tokens in 8 messages over 160 ms: 10 ms a step; the first step computes the 101st token
    assert (len(sample.steps), sample.seconds) == (16, 0.16)
    assert (sample.steps[0], sample.steps[-1]) == ((1, 101, 101, 1), (1, 116, 116, 1))
    assert _window([Completion(first_ps=0, token_ps=[0] * 24)], 100) is None


def test_a_server_that_refuses_is_named():
    """What the server said is in the error."""
    probes = Plan(prefills=((0, 200),), decodes=(), repeats=1)
    with pytest.raises(EngineError, match=r"prompt of 512 tokens failed: HTTP 500"):
        measured(Behaviour(fault_every=1, fault="500"), CONFIG, probes)
