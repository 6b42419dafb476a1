"""Reads trace files line by line, compressed or not, and writes them whole or not at all."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec
import zstandard

from marsbench.core import Session
from marsbench.errors import ResultsError, TraceError
from marsbench.trace import faults
from marsbench.trace.importer import TraceSample
from marsbench.trace.schema import decode_session, encode_session, session_ids

HEAD_BYTES = 65_536
MAX_NAMES = 1_000
TRACE_SUFFIXES = (".json", ".jsonl", ".traj")
"""Endings of the files that are looked at below a directory, compressed or not."""
_CHUNK_BYTES = 65_536
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_BOM = b"\xef\xbb\xbf"


class _DamagedError(TraceError):
    """Is raised when a compressed stream ends, or turns to noise, before its end mark."""


class _Stream(io.RawIOBase):
    """Shows decompressed bytes as a raw file, so that the standard library buffers and splits lines."""

    def __init__(self, chunks: Generator[bytes]) -> None:
        super().__init__()
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = chunk
        taken = self._rest[: len(buffer)]
        self._rest = self._rest[len(taken) :]
        buffer[: len(taken)] = taken
        return len(taken)

    def close(self) -> None:
        self._chunks.close()
        super().close()


@contextmanager
def open_binary(path: Path) -> Iterator[BinaryIO]:
    """Open the decompressed bytes of a file, whose first bytes, not its name, tell the compression.

    Raises TraceError if the file cannot be read or its compressed data are cut short.
    """
    with io.BufferedReader(_Stream(_chunks(path)), 1 << 20) as stream:
        yield cast("BinaryIO", stream)


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, line) for each line that is not blank, holding one line in memory at a time."""
    number = 0
    with open_binary(path) as stream:
        while True:
            try:
                line = stream.readline()
            except _DamagedError as error:
                problem = f"{error.problem} (the {number:,} lines before were readable)"
                raise _DamagedError(problem, path=str(path), line=number + 1) from error
            if not line:
                return
            number += 1
            if number == 1:
                line = line.removeprefix(_BOM)
            line = line.strip()
            if line:
                yield number, line


def is_trace_name(name: str) -> bool:
    """Tell by its name whether a file of a directory is looked at."""
    return name.removesuffix(".gz").removesuffix(".zst").endswith(TRACE_SUFFIXES)


def session_at(path: Path, line: int | None) -> str | None:
    """Return the session that the row on a line names, or None if there is no such row or name."""
    try:
        for number, content in read_lines(path) if line is not None and path.is_file() else ():
            if number == line:
                row = msgspec.json.decode(content)
                return faults.session_of(row if isinstance(row, dict) else None)
    except (TraceError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return None


def read_sessions(path: Path) -> Iterator[Session]:
    """Yield the checked sessions of a canonical trace in order; an id may stand in the file only once.

    What happens to a line that cannot be read is decided by ``faults.current()``.
    """
    seen: set[str] = set()
    for number, line in _tolerated_lines(path):
        if faults.current().leaves_out(str(path), number):
            continue
        try:
            session = _decode(line, str(path), number)
            _refuse_repeats(session, seen, path, number)
        except TraceError as error:
            faults.current().note(error)
            continue
        yield session


def _refuse_repeats(session: Session, seen: set[str], path: Path, number: int) -> None:
    for session_id in session_ids(session):
        if session_id in seen:
            problem = f"{session_id!r} stands on an earlier line; give each session its own id"
            raise TraceError(problem, path=str(path), line=number, field="session_id")
        seen.add(session_id)


def _tolerated_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file, or those before its damage if faults are tolerated."""
    try:
        yield from read_lines(path)
    except _DamagedError as error:
        faults.current().note(error)


def _decode(line: bytes, path: str, number: int) -> Session:
    """Return the session of a line, which is mended if it cannot be read as it is and may be mended."""
    try:
        return decode_session(line, path=path, number=number)
    except TraceError:
        mended = faults.mend(line, path, number)
        if mended is None:
            raise
        return decode_session(mended, path=path, number=number)


def head(path: Path, num_bytes: int = HEAD_BYTES) -> bytes:
    """Return the first decompressed bytes of a file, or what there is of a file that was cut short."""
    parts: list[bytes] = []
    with closing(_chunks(path)) as chunks, suppress(_DamagedError):
        for chunk in chunks:
            parts.append(chunk)
            if sum(map(len, parts)) >= num_bytes:
                break
    return b"".join(parts)[:num_bytes]


def sample(path: Path) -> TraceSample:
    """Return what importers look at to recognise a file or a directory."""
    if not path.is_dir():
        return TraceSample(path=path, head=head(path))
    names: list[str] = []
    for folder, folders, files in os.walk(path):
        folders.sort()
        for name in sorted(files):
            names.append((Path(folder) / name).relative_to(path).as_posix())
            if len(names) == MAX_NAMES:
                return TraceSample(path=path, head=b"", names=tuple(names))
    return TraceSample(path=path, head=b"", names=tuple(names))


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, or of the names and hashes of all files below a directory."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\0{sha256(file)}\n".encode())
        return digest.hexdigest()
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears under its name only when it is complete; .gz and .zst are compressed.

    The same bytes written give the same file. Raises ResultsError if it cannot be written.
    """
    target = path.resolve()
    in_place = target.exists() and not target.is_file()  # a device or a pipe has no second name
    scratch = target if in_place else target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        try:
            with scratch.open("wb") as raw:
                with _compressor(raw, path.suffix) as stream:
                    yield stream
                raw.flush()
                if not in_place:
                    os.fsync(raw.fileno())
            if not in_place:
                scratch.replace(target)
        finally:
            if not in_place:
                scratch.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ResultsError(f"{path}: cannot write it: {reason}; choose another --out") from error


def write_sessions(
    stream: BinaryIO, sessions: Iterable[Session], extensions: dict[str, Any] | None = None
) -> int:
    """Write canonical lines, with ``extensions`` (x_... keys) on the first, and return how many they are."""
    count = 0
    for session in sessions:
        stream.write(encode_session(session, extensions if count == 0 else None) + b"\n")
        count += 1
    return count


@contextmanager
def _compressor(raw: BinaryIO, suffix: str) -> Iterator[BinaryIO]:
    if suffix == ".gz":
        with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as stream:
            yield cast("BinaryIO", stream)
    elif suffix == ".zst":
        with zstandard.ZstdCompressor().stream_writer(raw, closefd=False) as writer:
            yield cast("BinaryIO", writer)
    else:
        yield raw


def _chunks(path: Path) -> Generator[bytes]:
    try:
        with path.open("rb") as raw:
            first = raw.read(_CHUNK_BYTES)
            if first.startswith(_GZIP_MAGIC):
                yield from _decompressed(raw, first, "gzip", path)
            elif first.startswith(_ZSTD_MAGIC):
                yield from _decompressed(raw, first, "zstd", path)
            else:
                while first:
                    yield first
                    first = raw.read(_CHUNK_BYTES)
    except OSError as error:
        raise _unreadable(path, error) from error


def _decompressed(raw: BinaryIO, data: bytes, kind: str, path: Path) -> Iterator[bytes]:
    """Yield members or frames one after another; unlike the standard file classes, never ignore a cut."""
    decoder: Any = None
    while data:
        if decoder is None:
            data = data.lstrip(b"\0") if kind == "gzip" else data  # padding after a gzip member
            decoder = _decoder(kind) if data else None
        if decoder is not None:
            try:
                out = decoder.decompress(data)
            except (zlib.error, zstandard.ZstdError) as error:
                problem = f"{kind} data are damaged ({error}); fetch or copy the file again"
                raise _DamagedError(problem, path=str(path)) from error
            if out:
                yield out
            data = decoder.unused_data if decoder.eof else b""
            if decoder.eof:
                decoder = None
        data = data or raw.read(_CHUNK_BYTES)
    if decoder is not None:
        problem = f"{kind} data end too early; fetch or copy the file again"
        raise _DamagedError(problem, path=str(path))


def _unreadable(path: Path, error: OSError) -> TraceError:
    return TraceError(f"cannot read it: {error.strerror or error}", path=str(path))


def _decoder(kind: str) -> Any:
    if kind == "gzip":
        return zlib.decompressobj(wbits=31)
    return zstandard.ZstdDecompressor().decompressobj()
