"""What block hashes tell: the size of a block, and the beginnings that sessions share."""

from __future__ import annotations

import pytest

from marsbench.core import SharedPrefix
from workloads.blocks import block_size, common_blocks, shared_prefixes


def test_common_blocks_end_at_the_first_difference():
    """Only leading blocks count, whatever is equal further on."""
    assert common_blocks([1, 2, 3, 4], [1, 2, 9, 4]) == 2
    assert common_blocks([1], []) == 0


@pytest.mark.parametrize(
    ("prompts", "size"),
    [
        ([(414, 7), (415, 7)], 64),  # 60 to 69 tokens a block: 64 is a power of two
        ([(1000, 10)], 99),  # 100 to 111 hold no power of two
        ([(50, 1)], 99),  # one block may be of any size
        ([(100, 2), (1000, 2)], 99),  # 50 to 99, and 500 to 999: none fits both
        ([], 99),
        ([(0, 0), (130, 3)], 64),
    ],
)
def test_block_size_fits_every_prompt(prompts, size):
    """(tokens, blocks) bound the size from both sides; where no power of two fits, it is not known."""
    assert block_size(prompts, 99) == size


def test_sessions_share_the_longest_common_beginning():
    """a and b share three blocks, c only the first two of them: one id, of two lengths."""
    found = shared_prefixes(
        {"a": [1, 2, 3, 7], "b": [1, 2, 3, 8], "c": [1, 2, 9], "d": [5]}, 10, "x"
    )
    assert found["a"] == found["b"]
    assert found["a"].tokens == 30
    assert found["c"] == SharedPrefix(found["a"].prefix_id, 20)
    assert "d" not in found


def test_equal_blocks_at_other_places_are_not_shared():
    """A block's id means the same text at the same place: after other blocks it is another text."""
    assert shared_prefixes({"a": [1, 2], "b": [3, 2]}, 10, "x") == {}
    found = shared_prefixes({"a": [1, 2], "b": [1, 2], "c": [3, 2], "d": [3, 2]}, 10, "x")
    assert found["a"].prefix_id != found["c"].prefix_id
