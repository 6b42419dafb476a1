"""A small trace that comes with marsbench: what the tutorial replays, and an example of the format."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from marsbench.core import Session
    from marsbench.trace.source import RecordedWorkload

PATH = Path(__file__).with_name("sessions.jsonl.gz")


class SampleTrace:
    """The trace beside this file, read when its sessions are first asked for."""

    name = "sample"
    summary = (
        "40 generated sessions on repository issues, as a trace file: what the tutorial replays"
    )

    @property
    def provenance(self) -> Mapping[str, str]:
        """As the first line of the file says."""
        return self._recorded.provenance

    @property
    def sha256(self) -> str:
        """Of the file's bytes."""
        return self._recorded.sha256

    def sessions(self, num: int | None, seed: int, split: str = "all") -> list[Session]:
        """See ``marsbench.trace.workload.Workload.sessions``."""
        return self._recorded.sessions(num, seed, split)

    @cached_property
    def _recorded(self) -> RecordedWorkload:
        from marsbench.trace.source import RecordedWorkload

        return RecordedWorkload(PATH)


SAMPLE = SampleTrace()
