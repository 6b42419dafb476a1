"""The grid: every combination once, cells that share sessions and arrivals side by side."""

from __future__ import annotations

from marsbench.config import ExperimentConfig
from marsbench.experiment.cells import grid


def test_every_combination_once():
    """2 workloads x 1 profile x 2 pools x (1 load + 1 rate) x 2 seeds x 2 systems = 32 cells."""
    config = ExperimentConfig(
        workload=("a", "b"),
        tool_cores=(4, 8),
        load=(0.9,),
        rate_per_s=(0.1,),
        seeds=2,
        first_seed=5,
        system=("x", "y"),
    )
    cells = grid(config)
    assert len(cells) == len({(cell.point, cell.system) for cell in cells}) == 32
    assert [cell.index for cell in cells] == list(range(32))
    assert {cell.point.seed for cell in cells} == {5, 6}


def test_systems_of_a_point_stand_together():
    """Neighbouring cells differ only in their system, in the order given."""
    cells = grid(ExperimentConfig(system=("x", "y"), seeds=2))
    assert [(cell.point.seed, cell.system) for cell in cells] == [
        (0, "x"), (0, "y"), (1, "x"), (1, "y"),
    ]  # fmt: skip


def test_own_pace_is_one_point():
    """A closed loop has neither load nor rate, and still is a cell."""
    (cell,) = grid(ExperimentConfig(arrival="closed"))
    assert (cell.point.load, cell.point.rate_per_s) == (None, None)
    assert "own pace" in cell.describe()
