"""Heat that spreads over a grid, computed by several processes."""

from heatgrid.grid import Grid
from heatgrid.parallel import run_parallel
from heatgrid.step import run, step

__all__ = ["Grid", "run", "run_parallel", "step"]
