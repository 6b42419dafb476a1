"""A trace format: CSV with one line a turn, ``session,prompt,output``."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

from marsbench.core import Session, Turn
from marsbench.errors import TraceError
from marsbench.trace.importer import TraceSample

HEADER = b"session,prompt,output"


class Csv:
    """Reads the format; ``marsbench.trace.importer`` has the protocol."""

    name = "skeleton-csv"
    summary = "lines of session, prompt tokens and output tokens"
    provenance: Mapping[str, str] = {"new_input_tokens": "recorded", "output_tokens": "recorded"}

    def sniff(self, sample: TraceSample) -> bool:
        """Whether this is certainly the format; never raises."""
        return sample.head.startswith(HEADER)

    def read(self, path: Path) -> Iterator[Session]:
        """Sessions in order of the file."""
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for name, turns in groupby(enumerate(rows, start=2), lambda row: row[1]["session"]):
            yield Session(name, tuple(self._turn(path, line, row) for line, row in turns))

    def _turn(self, path: Path, line: int, row: Mapping[str, str]) -> Turn:
        try:
            return Turn(int(row["prompt"]), int(row["output"]))
        except ValueError as error:
            raise TraceError(str(error), path=str(path), line=line) from error


IMPORTER = Csv()
