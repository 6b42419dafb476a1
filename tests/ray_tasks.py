"""Tasks that fail, in a module that workers of Ray can import by its name."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from marsbench.errors import PolicyError
from marsbench.experiment import tasks

MARKER = "MARSBENCH_TEST_MARKER"
"""Environment variable with the file that says that a worker was killed."""
cell = tasks.cell


def fails(number: int) -> int:
    """The number; 1 raises, and 2 kills its worker at its first try."""
    if number == 1:
        raise PolicyError("no order")
    if number == 2:
        marker = Path(os.environ[MARKER])
        if not marker.exists():
            marker.write_text("killed once")
            os.kill(os.getpid(), signal.SIGKILL)
    return number


def cell_that_dies_once(task: Any) -> dict[str, Any]:
    """A cell whose worker is killed in the third one the first time."""
    if task.index == 2:
        fails(2)
    return cell(task)
