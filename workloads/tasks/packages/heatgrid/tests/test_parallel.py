"""Any number of workers gives the same grid."""

import pytest
from heatgrid import Grid, run, run_parallel
from heatgrid.parallel import advance, strips


@pytest.mark.parametrize(("height", "workers"), [(10, 3), (7, 7), (5, 9), (100, 1)])
def test_strips_cover(height, workers):
    bounds = strips(height, workers)
    assert bounds[0][0] == 0
    assert bounds[-1][1] == height
    assert all(one[1] == other[0] for one, other in zip(bounds, bounds[1:]))
    sizes = [last - first for first, last in bounds]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


def test_advance_is_exact():
    grid = Grid.random(30, 40, 5)
    assert advance(grid.rows, 10, 20, 6) == run(grid, 6).rows[10:20]
    assert advance(grid.rows, 0, 7, 6) == run(grid, 6).rows[:7]


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_same_as_alone(workers):
    grid = Grid.random(120, 90, 9)
    assert run_parallel(grid, 50, workers) == run(grid, 50)


@pytest.mark.parametrize("halo", [1, 5, 64])
def test_any_halo(halo):
    grid = Grid.random(100, 64, 2)
    assert run_parallel(grid, 40, 2, halo) == run(grid, 40)
