"""The wall clock of a live run: picoseconds since its start, on the monotonic clock."""

from __future__ import annotations

import time
from collections.abc import Callable

PS_PER_NS = 1000


class Clock:
    """A clock that counts from the moment at which it is made or restarted."""

    def __init__(self, read_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._read_ns = read_ns
        self._start_ns = read_ns()

    def restart(self) -> None:
        """Set the clock to zero: times count from this moment."""
        self._start_ns = self._read_ns()

    def now_ps(self) -> int:
        """Return the picoseconds since the start."""
        return (self._read_ns() - self._start_ns) * PS_PER_NS
