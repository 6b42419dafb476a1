"""Protocol of trace importers: one folder per format in ``workloads/``, found by content."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from marsbench.core import Session


@dataclass(frozen=True, slots=True)
class TraceSample:
    """What an importer may look at to recognise its format."""

    path: Path
    """A file or a directory."""
    head: bytes
    """First 64 KiB of the (decompressed) file; empty for a directory."""
    names: tuple[str, ...] = ()
    """For a directory: relative paths of the files below it (at most 1,000)."""


class ColumnImporter(Protocol):
    """An importer of tables whose columns a user names (``--map COLUMN=FIELD``)."""

    def with_columns(self, columns: Mapping[str, str]) -> Importer:
        """The importer for a table whose columns stand for the fields that are given.

        Raises ConfigError if there is no such field.
        """
        ...


class Importer(Protocol):
    """Reads one trace format."""

    name: str
    summary: str
    """One line: which tool writes this format."""
    provenance: Mapping[str, str]
    """Canonical field (new_input_tokens, output_tokens, resent_output, tools.wall_s, ...) ->
    "recorded", "derived: how" or "assumed: what". Fields not named are absent."""

    def sniff(self, sample: TraceSample) -> bool:
        """Whether this is certainly the importer's format. Must not raise on foreign bytes."""
        ...

    def read(self, path: Path) -> Iterator[Session]:
        """Sessions in order of the file, streamed where the format allows it.

        Raises TraceError naming file, line and field.
        """
        ...
