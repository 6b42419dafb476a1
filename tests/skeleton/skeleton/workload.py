"""A generated workload: every session asks twice, with a tool call in between."""

from __future__ import annotations

import random
from collections.abc import Mapping

from marsbench.core import Session, ToolCall, Turn


class Pairs:
    """Sessions of two turns; the same arguments give the same sessions."""

    name = "skeleton-pairs"
    summary = "sessions of two turns with a tool call in between"
    provenance: Mapping[str, str] = {"new_input_tokens": "assumed: 500 to 1,500"}

    def sessions(self, num: int | None, seed: int, split: str = "all") -> list[Session]:
        """``num`` sessions of a split, which never shares a session with the other one."""
        return [self._session(f"{split}-{seed}-{index}") for index in range(num or 100)]

    def _session(self, name: str) -> Session:
        draw = random.Random(name)
        call = ToolCall("ls", "shell_read", wall_s=0.1 + draw.random())
        first = Turn(draw.randrange(500, 1500), 50, tools=(call,))
        return Session(name, (first, Turn(100, 50)))


PAIRS = Pairs()
