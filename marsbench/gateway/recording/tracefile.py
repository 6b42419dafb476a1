"""A trace that grows by whole sessions: each line is its own gzip member or zstd frame.

A process that dies leaves at most one torn line at the end, which the next ``append`` cuts off;
every session before it stays readable.
"""

from __future__ import annotations

import fcntl
import gzip
import os
import zlib
from pathlib import Path
from typing import Any

import zstandard

from marsbench.errors import ConfigError, ResultsError
from marsbench.trace.io import read_sessions
from marsbench.trace.schema import session_ids

_CHUNK_BYTES = 1 << 20


class TraceFile:
    """Appends lines to a canonical trace, safe against a crash at any moment."""

    def __init__(self, path: Path, *, append: bool = False) -> None:
        self.path = path
        self.num_lines = 0
        self.ids: set[str] = set()
        """Session ids in the file."""
        existed = path.exists() and path.stat().st_size > 0
        if existed and not append:
            raise ConfigError(f"{path}: exists; give another --out, or --append to add to it")
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ResultsError(
                f"{path}: cannot write it: {error.strerror}; choose another --out"
            ) from error
        self._lock()
        self._end = 0
        if existed:
            self._end = whole_bytes(path)
            os.ftruncate(self._file, self._end)
            for session in read_sessions(path) if self._end else ():
                self.num_lines += 1
                self.ids.update(session_ids(session))
        os.lseek(self._file, self._end, os.SEEK_SET)

    def write(self, line: bytes) -> None:
        """Append one session. OSError leaves the file as it was."""
        data = self._packed(line + b"\n")
        try:
            sent = 0
            while sent < len(data):
                sent += os.write(self._file, data[sent:])
        except OSError:
            os.ftruncate(self._file, self._end)
            os.lseek(self._file, self._end, os.SEEK_SET)
            raise
        self._end += len(data)
        self.num_lines += 1

    def sync(self) -> None:
        """Bring what was written onto the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Bring what was written onto the disk, and let go of the file."""
        self.sync()
        os.close(self._file)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise ConfigError(
                f"{self.path}: another gateway writes it; give another --out"
            ) from None

    def _packed(self, line: bytes) -> bytes:
        if self.path.suffix == ".gz":
            return gzip.compress(line, mtime=0)
        if self.path.suffix == ".zst":
            return zstandard.ZstdCompressor().compress(line)
        return line


def whole_bytes(path: Path) -> int:
    """Return the length of a trace file up to the end of its last complete member, frame or
    line.
    """
    if path.suffix in {".gz", ".zst"}:
        return _whole_members(path, path.suffix)
    data = path.read_bytes()
    return data.rfind(b"\n") + 1


def _whole_members(path: Path, suffix: str) -> int:
    good = 0
    fed = 0
    with path.open("rb") as stream:
        decoder: Any = None
        data = stream.read(_CHUNK_BYTES)
        while data:
            decoder = decoder or _decoder(suffix)
            try:
                decoder.decompress(data)
            except (zlib.error, zstandard.ZstdError):
                return good
            rest: bytes = decoder.unused_data if decoder.eof else b""
            fed += len(data) - len(rest)
            if decoder.eof:
                good = fed
                decoder = None
            data = rest or stream.read(_CHUNK_BYTES)
    return good


def _decoder(suffix: str) -> Any:
    if suffix == ".gz":
        return zlib.decompressobj(wbits=31)
    return zstandard.ZstdDecompressor().decompressobj()
