"""How a run looks while it lasts: a live bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from marsbench.experiment.cells import Cell
from marsbench.experiment.lab import Reporter

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


def make_reporter(*, quiet: bool) -> Reporter:
    """Quiet, live or plain, as the terminal allows. All of it goes to stderr."""
    if quiet:
        return Quiet()
    return Live() if sys.stderr.isatty() else Plain()


class Quiet:
    """Notes and failures only."""

    def note(self, text: str) -> None:
        print(text, file=sys.stderr)

    def stage(self, text: str) -> None:
        pass

    def begin(self, num_cells: int, num_sessions: int) -> None:
        pass

    def tick(self, done_sessions: int, now_s: float) -> None:
        pass

    def cell_done(self, cell: Cell, line: str) -> None:
        if line.startswith("failed"):
            self.note(f"{cell.describe()}: {line}")

    def end(self) -> None:
        pass


class Plain(Quiet):
    """One line per stage and per cell."""

    def __init__(self) -> None:
        self._done = 0
        self._num_cells = 0

    def stage(self, text: str) -> None:
        print(f"... {text}", file=sys.stderr, flush=True)

    def begin(self, num_cells: int, num_sessions: int) -> None:
        self._num_cells = self._done + num_cells

    def cell_done(self, cell: Cell, line: str) -> None:
        self._done += 1
        print(
            f"[{self._done}/{self._num_cells}] {cell.describe()}: {line}",
            file=sys.stderr,
            flush=True,
        )


class Live(Quiet):
    """A bar over all sessions of all cells, with the running cell's virtual time."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._done_cells = 0
        self._num_cells = 0
        self._per_cell = 0
        self._start_s = 0.0

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def stage(self, text: str) -> None:
        self.note(f"... {text}")

    def begin(self, num_cells: int, num_sessions: int) -> None:
        from rich import progress

        self._done_cells, self._num_cells = 0, num_cells
        self._per_cell = num_sessions // max(num_cells, 1)
        self._start_s = time.monotonic()
        self._progress = progress.Progress(
            progress.TextColumn("{task.fields[cells]} cells"),
            progress.BarColumn(),
            progress.TextColumn("{task.fields[virtual]}{task.fields[speed]}"),
            progress.TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._progress.start()
        self._task = self._progress.add_task(
            "", total=num_sessions, cells=f"0/{num_cells}", virtual="", speed=""
        )

    def tick(self, done_sessions: int, now_s: float) -> None:
        self._show(self._done_cells * self._per_cell + done_sessions, f"virtual {now_s:,.0f} s, ")

    def cell_done(self, cell: Cell, line: str) -> None:
        self._done_cells += 1
        self.note(f"{cell.describe()}: {line}")
        self._show(self._done_cells * self._per_cell, "")

    def end(self) -> None:
        if self._progress is not None:
            self._progress.stop()

    def _show(self, done_sessions: int, virtual: str) -> None:
        assert self._progress is not None
        assert self._task is not None
        elapsed_s = time.monotonic() - self._start_s
        speed = f"{done_sessions / elapsed_s:,.0f} sessions/s" if elapsed_s > 0 else ""
        self._progress.update(
            self._task,
            completed=done_sessions,
            cells=f"{self._done_cells}/{self._num_cells}",
            virtual=virtual,
            speed=speed,
        )
