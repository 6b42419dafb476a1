"""What a deployment knows about itself."""

from __future__ import annotations

import pytest

from marsbench.core import PolicyContext

CONTEXT = PolicyContext(
    num_blocks=1000,
    block_size=16,
    max_num_batched_tokens=8192,
    max_num_seqs=256,
    tool_cores=0,
    prefill_tokens_per_s=1000.0,
    prefill_s_per_pair=1e-6,
)


@pytest.mark.parametrize(("new", "prompt", "pairs"), [(2000, 2000, 2e6), (500, 2000, 875_000)])
def test_prefill_is_linear_plus_the_pairs_that_attention_sees(new, prompt, pairs):
    """From nothing n²/2 pairs; the last 500 of 2000 see 1500 each, and half of one another."""
    assert CONTEXT.prefill_s(new, prompt) == pytest.approx(new / 1000 + pairs * 1e-6)
