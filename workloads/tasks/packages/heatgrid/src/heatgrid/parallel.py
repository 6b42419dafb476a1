"""The same steps by several processes, a strip of rows each."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

from heatgrid.grid import Grid
from heatgrid.step import step_rows


def strips(height: int, workers: int) -> list[tuple[int, int]]:
    """Bounds of strips that cover all rows, as equal as can be."""
    workers = max(1, min(workers, height))
    size, rest = divmod(height, workers)
    bounds = []
    first = 0
    for index in range(workers):
        last = first + size + (1 if index < rest else 0)
        bounds.append((first, last))
        first = last
    return bounds


def advance(rows: list[list[int]], first: int, last: int, steps: int) -> list[list[int]]:
    """Rows ``first`` to ``last`` after some steps; ``rows`` has what they depend on around them."""
    low = max(0, first - steps)
    high = min(len(rows), last + steps)
    part = rows[low:high]
    for _ in range(steps):
        part = step_rows(part, 0, len(part))
    return part[first - low : last - low]


def run_parallel(grid: Grid, steps: int, workers: int, halo: int = 8) -> Grid:
    """As ``run``; strips exchange their edges every ``halo`` steps."""
    bounds = strips(grid.height, workers)
    rows = grid.rows
    with ProcessPoolExecutor(len(bounds)) as pool:
        done = 0
        while done < steps:
            now = min(halo, steps - done)
            futures = [pool.submit(advance, rows, first, last, now) for first, last in bounds]
            rows = [row for future in futures for row in future.result()]
            done += now
    return Grid(rows)
