"""What grids and single steps promise."""

from heatgrid import Grid, run, step


def test_random_is_fixed():
    assert Grid.random(5, 4, 1) == Grid.random(5, 4, 1)
    assert Grid.random(5, 4, 1) != Grid.random(5, 4, 2)
    assert (Grid.random(5, 4, 1).width, Grid.random(5, 4, 1).height) == (5, 4)


def test_hottest():
    assert Grid([[1, 5, 2], [9, 0, 9]]).hottest() == (1, 0)
    assert Grid([[3]]).hottest() == (0, 0)
    assert Grid([[1, 2], [3, 4]]).total() == 10


def test_one_step():
    grid = Grid([[0, 0, 0], [0, 80, 0], [0, 0, 0]])
    assert step(grid).rows == [[0, 0, 0], [0, 40, 0], [0, 0, 0]]
    warm = Grid([[8, 8, 8, 8], [8, 0, 0, 8], [8, 8, 8, 8]])
    assert step(warm).rows[1] == [8, 3, 3, 8]


def test_border_stays():
    grid = Grid.random(20, 15, 3)
    later = run(grid, 30)
    assert later.rows[0] == grid.rows[0]
    assert later.rows[-1] == grid.rows[-1]
    assert [row[0] for row in later.rows] == [row[0] for row in grid.rows]
    assert [row[-1] for row in later.rows] == [row[-1] for row in grid.rows]


def test_settles():
    grid = Grid([[100] * 12 for _ in range(12)])
    assert run(grid, 5) == grid
    cold = Grid([[100] * 12] + [[100] + [0] * 10 + [100] for _ in range(10)] + [[100] * 12])
    assert min(min(row) for row in run(cold, 400).rows) > 40
