"""Protocol of a workload: something that yields sessions, from a file or a generator."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

from marsbench.core import Session

SPLITS = ("all", "tuning", "reporting")
"""Halves that never share a session: parameters are tuned on one, results reported on the other."""


REPEAT = "~"
"""Stands between the id of a session and the number of its repeat where a trace is too short."""


def repeated_id(session_id: str, repeat: int) -> str:
    """The id of the ``repeat``-th replay of a session; the first keeps the session's own."""
    return session_id if repeat == 1 else f"{session_id}{REPEAT}{repeat}"


def original_session(session_id: str) -> str:
    """The session that a replayed one was copied from; itself if it is no repeat.

    Repeats of one session are not independent: statistics count and resample originals.
    """
    return re.sub(rf"{REPEAT}\d+$", "", session_id)


class Workload(Protocol):
    """A source of sessions."""

    name: str
    summary: str
    provenance: Mapping[str, str]
    """As in ``importer.Importer``."""

    def sessions(self, num: int | None, seed: int, split: str = "all") -> list[Session]:
        """``num`` sessions of a split; the same arguments give the same sessions.

        None: as many as the source has (generators: 100). A recorded trace is shuffled by ``seed``
        and, if shorter than ``num``, repeated with new session ids ("ID~2", ...).
        """
        ...
