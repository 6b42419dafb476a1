"""The store: a log on disk and an index of where the last value of each key is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from kvlog.record import CorruptError, decode, encode

WASTE_SHARE = 0.5
"""Compaction begins when so much of the file is overwritten or deleted."""
MIN_BYTES = 4096
"""Smaller files are never compacted."""


class Store:
    """A mapping of bytes to bytes that survives the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.compactions = 0
        self._index: dict[bytes, tuple[int, int]] = {}
        self._live = 0
        self._end = 0
        self._file = path.open("a+b")
        self._recover()

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: bytes) -> bool:
        return key in self._index

    def get(self, key: bytes, default: bytes | None = None) -> bytes | None:
        """The value of a key."""
        place = self._index.get(key)
        if place is None:
            return default
        at, end = place
        self._file.seek(at)
        return decode(self._file.read(end - at), 0)[1]

    def put(self, key: bytes, value: bytes) -> None:
        """Set a key."""
        self._append(key, value)
        self._maybe_compact()

    def delete(self, key: bytes) -> bool:
        """Remove a key; whether it was there."""
        if key not in self._index:
            return False
        self._append(key, None)
        self._maybe_compact()
        return True

    def keys(self, prefix: bytes = b"") -> Iterator[bytes]:
        """Keys in order."""
        return iter(sorted(key for key in self._index if key.startswith(prefix)))

    def sync(self) -> None:
        """Onto the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self.sync()
        self._file.close()

    def compact(self) -> None:
        """Write what is live into a new file and take its place."""
        target = self.path.with_suffix(".new")
        with target.open("wb") as new:
            for key in list(self._index):
                value = self.get(key)
                assert value is not None
                new.write(encode(key, value))
            new.flush()
            os.fsync(new.fileno())
        self._file.close()
        target.replace(self.path)
        self._file = self.path.open("a+b")
        self._index.clear()
        self._recover()
        self.compactions += 1

    def _append(self, key: bytes, value: bytes | None) -> None:
        record = encode(key, value)
        self._file.seek(0, os.SEEK_END)
        self._file.write(record)
        self._note(key, value, self._end, self._end + len(record))
        self._end += len(record)

    def _note(self, key: bytes, value: bytes | None, at: int, end: int) -> None:
        old = self._index.pop(key, None)
        if old is not None:
            self._live -= old[1] - old[0]
        if value is not None:
            self._index[key] = at, end
            self._live += end - at

    def _recover(self) -> None:
        """Read the log; what is cut off at its end is dropped."""
        self._file.seek(0)
        data = self._file.read()
        self._live = self._end = 0
        at = 0
        while at < len(data):
            try:
                key, value, end = decode(data, at)
            except CorruptError:
                self._file.truncate(at)
                break
            self._note(key, value, at, end)
            at = end
        self._end = at

    def _maybe_compact(self) -> None:
        wasted = self._end - self._live
        if self._end >= MIN_BYTES and wasted > WASTE_SHARE * self._end:
            self.compact()
