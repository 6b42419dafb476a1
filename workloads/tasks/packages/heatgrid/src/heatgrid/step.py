"""One step: every inner cell moves towards the mean of its neighbours."""

from __future__ import annotations

from heatgrid.grid import Grid


def step_rows(rows: list[list[int]], first: int, last: int) -> list[list[int]]:
    """New rows ``first`` to ``last`` (without it); the border keeps its temperature."""
    height = len(rows)
    width = len(rows[0])
    new = []
    for y in range(first, last):
        row = rows[y]
        if y in (0, height - 1):
            new.append(list(row))
            continue
        above = rows[y - 1]
        below = rows[y + 1]
        line = [row[0]]
        for x in range(1, width - 1):
            around = above[x] + below[x] + row[x - 1] + row[x + 1]
            line.append((4 * row[x] + around) // 8)
        line.append(row[-1])
        new.append(line)
    return new


def step(grid: Grid) -> Grid:
    """The grid a step later."""
    return Grid(step_rows(grid.rows, 0, grid.height))


def run(grid: Grid, steps: int) -> Grid:
    """The grid after some steps."""
    for _ in range(steps):
        grid = step(grid)
    return grid
