"""Counts that all processes of a gateway share: each writes its own cell and reads all of them.

There is no lock, so that none can be left held by a process that dies. Two processes that look at the same
moment may both find room for the last request: a limit may be passed by one request for each process.
"""

from __future__ import annotations

import mmap
import os
import tempfile

CELL_BYTES = 8


class SharedCounts:
    """A table in memory: a row for each thing that is counted, a column for each process."""

    ROWS = ("bodies", "connections")

    def __init__(self, descriptor: int, columns: int) -> None:
        """``descriptor``: of the file that ``create`` has made, here or in another process."""
        self.descriptor = descriptor
        self.columns = columns
        self._map = mmap.mmap(descriptor, len(self.ROWS) * columns * CELL_BYTES)
        self._cells = memoryview(self._map).cast("q")

    @classmethod
    def create(cls, columns: int) -> SharedCounts:
        """A new table, all zero."""
        if hasattr(os, "memfd_create"):  # a container may have no folder that can be written
            descriptor = os.memfd_create("marsbench-counts")
        else:
            with tempfile.TemporaryFile() as made:
                descriptor = os.dup(made.fileno())
        os.ftruncate(descriptor, len(cls.ROWS) * columns * CELL_BYTES)
        return cls(descriptor, columns)

    def row(self, name: str, column: int) -> SharedCount:
        """What a process (``column``) counts."""
        start = self.ROWS.index(name) * self.columns
        return SharedCount(self._cells[start : start + self.columns], column)

    def clear(self, column: int) -> None:
        """A process has died: it has nothing any more."""
        for name in self.ROWS:
            self.row(name, column).own = 0

    def close(self) -> None:
        """No more use of the table; counts that were handed out keep its memory."""
        os.close(self.descriptor)


class SharedCount:
    """``marsbench.gateway.http.limits.Count`` of several processes."""

    def __init__(self, cells: memoryview[int], column: int) -> None:
        self._cells = cells
        self._column = column

    @property
    def own(self) -> int:
        """The part of this process."""
        return self._cells[self._column]

    @own.setter
    def own(self, value: int) -> None:
        self._cells[self._column] = value

    @property
    def total(self) -> int:
        """Of all processes."""
        return sum(self._cells)
