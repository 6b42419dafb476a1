"""The chain of tools: conditioned paths against enumeration, tilting, and wrong tables."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest

from marsbench.errors import ConfigError
from workloads.synthetic.chain import ToolChain, tilted

ROWS = {
    "start": {"R": 0.8, "E": 0.2},
    "R": {"R": 0.5, "E": 0.4, "end": 0.1},
    "E": {"R": 0.3, "E": 0.3, "end": 0.4},
}


def test_paths_have_the_conditional_distribution() -> None:
    """Paths of three turns occur as often as the free chain makes them, given that it ends there.

    P(path) is start x moves x end, divided by the sum over all eight paths.
    """
    weight = {
        path: ROWS["start"][path[0]]
        * ROWS[path[0]][path[1]]
        * ROWS[path[1]][path[2]]
        * ROWS[path[2]]["end"]
        for path in product("RE", repeat=3)
    }
    total = sum(weight.values())
    chain = ToolChain(ROWS, "test")
    rng = np.random.default_rng(0)
    num = 20_000
    drawn = Counter(
        tuple(chain.states[i] for i in chain.path(3, rng.random(3).tolist())) for _ in range(num)
    )
    for path, share in weight.items():
        assert drawn[path] / num == pytest.approx(share / total, abs=0.012)


def test_length_is_as_asked_beyond_the_horizon() -> None:
    """A path has the length asked for, also none and more than the table of steps."""
    chain = ToolChain(ROWS, "test")
    for length in (0, 1, 64, 65, 200):
        assert len(chain.path(length, [0.5] * length)) == length


def test_tilting_reaches_the_mix() -> None:
    """The long-run shares of the tilted chain are the mix; the chance to end is kept."""
    rows = tilted(ROWS, {"R": 0.2, "E": 0.8}, "test")
    chain = ToolChain(rows, "test")
    assert dict(zip(chain.states, chain.long_run(), strict=True)) == pytest.approx(
        {"R": 0.2, "E": 0.8}, abs=0.001
    )
    assert rows["E"]["end"] == 0.4


def test_states_without_a_share_leave() -> None:
    """A class the agent never uses is not in its chain."""
    assert ToolChain(tilted(ROWS, {"R": 1.0}, "test"), "test").states == ("R",)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"R": {"R": 0.9, "end": 0.1}}, "needs a row 'start'"),
        ({"start": {"R": 1.0}, "R": {"X": 0.9, "end": 0.1}}, "names unknown X"),
        ({"start": {"R": 1.0}, "R": {"R": 0.5, "end": 0.1}}, "sums to 0.600"),
        ({"start": {"R": 1.0}, "R": {"R": 1.0}}, "cannot end"),
    ],
)
def test_a_wrong_table_says_where(rows: dict[str, dict[str, float]], message: str) -> None:
    """Rows that cannot be a chain are refused with their name."""
    with pytest.raises(ConfigError, match=message):
        ToolChain(rows, "mine.yaml")


def test_a_mix_needs_rows() -> None:
    """A mix cannot name a state that the chain does not know."""
    with pytest.raises(ConfigError, match="no chain rows for X"):
        tilted(ROWS, {"R": 0.5, "X": 0.5}, "mine.yaml")
