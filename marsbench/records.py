"""Where a run's events are kept: fixed-width integer rows, appended in the hot loop."""

from __future__ import annotations

import struct
from array import array
from typing import TYPE_CHECKING

from marsbench.events import NUM_PAYLOAD, Kind

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ROW = 5 + NUM_PAYLOAD
"""Integers per row: time_ps, kind, session, turn, call, then the payload."""
pack_row = struct.Struct(f"{ROW}q").pack
"""Bytes of one row for ``rows.frombytes``, which takes half the time of ``rows.extend``."""


class EventLog:
    """Append-only event rows of one cell.

    Rows are in order of time; ties keep the order they happened in. ``session`` is the index
    of the session in ``session_ids``; -1 where an event belongs to no session.
    """

    def __init__(self) -> None:
        self.rows: array[int] = array("q")
        self.strings: list[str] = []
        self._codes: dict[str, int] = {}
        self.session_ids: list[str] = []

    def intern(self, text: str) -> int:
        """Code of a string in this log's string table."""
        code = self._codes.get(text)
        if code is None:
            code = self._codes[text] = len(self.strings)
            self.strings.append(text)
        return code

    def append(
        self, time_ps: int, kind: int, session: int, turn: int = -1, call: int = -1, *payload: int
    ) -> None:
        """Add one row; the payload follows ``events.FIELDS[kind]``, what is left out of it is 0."""
        rest = (0,) * (NUM_PAYLOAD - len(payload))
        self.rows.frombytes(pack_row(time_ps, kind, session, turn, call, *payload, *rest))

    def __len__(self) -> int:
        return len(self.rows) // ROW

    def to_numpy(self) -> npt.NDArray[np.int64]:
        """All rows as an (n, ROW) int64 array, without copying."""
        import numpy as np

        return np.frombuffer(self.rows, dtype=np.int64).reshape(-1, ROW)

    def count(self, kind: Kind) -> int:
        """How many rows are of this kind."""
        return int((self.to_numpy()[:, 1] == kind).sum()) if self.rows else 0
