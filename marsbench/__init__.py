"""marsbench: how much does the scheduler matter for coding agents?

>>> import marsbench
>>> run = marsbench.load("results/reference/small")
>>> run.cells.groupby(["load", "system"])["session_latency_s.mean"].mean()  # doctest: +SKIP
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from marsbench.frames import RunFrames

__all__ = ["load"]

if os.environ.get("MARSBENCH_COMPILED"):  # marsbench.compiled.VARIABLE
    from marsbench.compiled import install

    install()


def load(path: Path | str) -> RunFrames:
    """A run folder as data frames: its cells, sessions, turns, tool calls and events.

    ``path`` is what ``marsbench run --out`` wrote; of a run that is not over, what is finished.
    Nothing is written, and tables are read when they are first asked for. Raises ResultsError if
    ``path`` is no run folder.
    """
    from marsbench.frames import RunFrames

    return RunFrames(path)
