"""Protocol of a workload: something that yields sessions, from a file or a generator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from marsbench.core import Session

SPLITS = ("all", "tuning", "reporting")
"""Halves that never share a session: parameters are tuned on one, results reported on the other."""


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
