"""Reads rows of trace files and names file, line and field when one is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from marsbench.errors import TraceError
from marsbench.trace import faults, io
from marsbench.trace.importer import TraceSample

_SAMPLED_FILES = 3
"""Files of a directory that are looked at to recognise it."""
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[{}\[\],]', re.DOTALL)


class Row(NamedTuple):
    """One JSON object of a trace, which knows where it stands."""

    value: dict[str, Any]
    path: str
    line: int | None = None

    def error(self, problem: str, field: str = "") -> TraceError:
        return TraceError(problem, path=self.path, line=self.line, field=field)

    def text(self, field: str, default: str | None = None) -> str:
        found = self.value.get(field)
        if isinstance(found, str):
            return found
        if found is None and default is not None:
            return default
        raise self.error(f"expected text, found {found!r}", field)

    def integer(self, field: str, default: int | None = None) -> int:
        """Return a field that is a whole number >= 0."""
        found = self.number(field, default)
        if found != int(found):
            raise self.error(f"expected a whole number, found {found!r}", field)
        return int(found)

    def number(self, field: str, default: float | None = None) -> float:
        """Return a field that is a number >= 0."""
        found = self.value.get(field)
        if found is None and default is not None:
            return default
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise self.error(f"expected a number, found {found!r}", field)
        if 0 <= found < float("inf"):
            return found
        repaired = faults.current().nonnegative(found, self.path, self.line, field)
        if repaired is None:
            hint = "; `marsbench trace import --on-error repair` reads it as 0" if found < 0 else ""
            raise self.error(f"expected a number >= 0, found {found!r}{hint}", field)
        return repaired

    def items(self, field: str) -> list[Any]:
        """Return a field that is a list; a missing one is empty."""
        found = self.value.get(field)
        if found is None:
            return []
        if not isinstance(found, list):
            raise self.error(f"expected a list, found {type(found).__name__}", field)
        return found

    def rows(self, field: str) -> list[Row]:
        """Return a field that is a list of objects; a missing one is empty."""
        return [self.child(item, f"{field}[{i}]") for i, item in enumerate(self.items(field))]

    def child(self, value: object, field: str) -> Row:
        if not isinstance(value, dict):
            raise self.error(f"expected an object, found {type(value).__name__}", field)
        return Row(value, self.path, self.line)

    def mapping(self, field: str) -> dict[str, Any]:
        """Return a field that is an object; a missing one is empty."""
        found = self.value.get(field)
        if found is None:
            return {}
        return self.child(found, field).value


RowSource = Callable[[], Iterator[Row]]
"""Starts a new pass over the rows: importers that need two passes call it twice."""


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the objects of a file, or of every trace file below a directory in the order of names.

    A JSONL file gives a row a line, streamed; a JSON file gives its object, or the objects of
    its list.
    """
    for file in trace_files(path):
        yield from _file_rows(file)


def trace_files(path: Path) -> list[Path]:
    """Return the file itself, or the JSON-like files below a directory."""
    if not path.exists():
        raise TraceError("no such file or directory", path=str(path))
    if path.is_file():
        return wanted([path])
    found = sorted(f for f in path.rglob("*") if f.is_file() and io.is_trace_name(f.name))
    if not found:
        raise TraceError(f"no {', '.join(io.TRACE_SUFFIXES)} file below it", path=str(path))
    return wanted(found)


def wanted(files: Iterable[Path]) -> list[Path]:
    """Return the files that the reading in progress does not leave out."""
    return [file for file in files if not faults.current().leaves_out(str(file), None)]


def read_document(path: Path) -> Any:
    """Return the one JSON value of a file."""
    with io.open_binary(path) as stream:
        return _decode(stream.read(), path, None)


def head_of(path: Path) -> bytes:
    """Return the first 64 KiB of content, or none if the file cannot be read: recognising never raises."""
    try:
        return io.head(path)
    except TraceError:
        return b""


def sampled_files(sample: TraceSample) -> list[tuple[Path, bytes]]:
    """Return path and head of each file that is looked at: the file itself, or a directory's first few."""
    if sample.head:
        return [(sample.path, sample.head)]
    names = [name for name in sorted(sample.names) if io.is_trace_name(name)][:_SAMPLED_FILES]
    return [(sample.path / name, head_of(sample.path / name)) for name in names]


def recognise(sample: TraceSample, matches: Callable[[Any], bool]) -> bool:
    """Tell whether each file that is looked at holds a value that the format knows."""
    files = [head_values(head) for _, head in sampled_files(sample)]
    return bool(files) and all(any(matches(value) for value in values) for values in files)


def head_values(head: bytes) -> list[Any]:
    """Return the JSON values of the lines of a head, or the one value that spans it, though it be cut."""
    values: list[Any] = []
    for line in head.splitlines():
        if not line.strip():
            continue
        try:
            values.append(msgspec.json.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError):
            break
    if values and isinstance(values[0], dict | list):
        return values
    whole = _close_cut(head)
    return [] if whole is None else [whole]


def _close_cut(head: bytes) -> Any:
    """Decode a JSON value that may be cut anywhere by ending it at the last comma."""
    stack: list[bytes] = []
    cut: tuple[int, bytes] | None = None
    end = None
    for match in _TOKEN.finditer(head):
        token = match.group()
        if token in (b"{", b"["):
            stack.append(b"}" if token == b"{" else b"]")
        elif token in (b"}", b"]"):
            if not stack or stack.pop() != token:
                return None
            if not stack:
                end = match.end()
                break
        elif token == b"," and stack:
            cut = (match.start(), b"".join(reversed(stack)))
    if end is None and cut is None:
        return None
    text = head[:end] if end is not None else head[: cut[0]] + cut[1] if cut else b""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _file_rows(file: Path) -> Iterator[Row]:
    """Yield the rows of a file; ``faults.current()`` decides what becomes of what is no row."""
    try:
        if _is_jsonl(file):
            yield from _line_rows(file)
            return
        document = read_document(file)
        for value in document if isinstance(document, list) else [document]:
            yield _as_row(value, str(file), None)
    except TraceError as error:
        faults.current().note(error)


def _line_rows(file: Path) -> Iterator[Row]:
    tolerance, path = faults.current(), str(file)
    for line, content in io.read_lines(file):
        if tolerance.leaves_out(path, line):
            continue
        try:
            row = _as_row(_decode(content, file, line), path, line)
        except TraceError as error:
            tolerance.note(error)
            continue
        if not tolerance.leaves_out(path, line, row.value):
            yield row


def _is_jsonl(file: Path) -> bool:
    values = head_values(head_of(file))
    if not values:
        raise TraceError("not JSON or JSONL", path=str(file), line=1)
    if ".jsonl" in file.suffixes or len(values) > 1:
        return True
    if not isinstance(values[0], dict):
        return False
    # One object, or the beginning of one: JSONL if more lines follow its first.
    lines = io.read_lines(file)
    first = next(lines, (0, b""))[1]
    return first.startswith(b"{") and first.endswith(b"}") and next(lines, None) is not None


def _as_row(value: object, path: str, line: int | None) -> Row:
    if not isinstance(value, dict):
        raise TraceError(f"expected an object, found {type(value).__name__}", path=path, line=line)
    return Row(value, path, line)


def _decode(content: bytes, path: Path, line: int | None) -> Any:
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TraceError(f"not JSON ({error})", path=str(path), line=line) from error


def timestamp_s(value: object) -> float | None:
    """Return the seconds of an ISO time, which counts as UTC without a zone, or None if it is no time."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp()


def between_s(start: float | None, end: float | None) -> float:
    """Return the seconds from start to end, or 0 if one is not known or the clock went back."""
    return 0.0 if start is None or end is None else max(0.0, end - start)


def has_keys(value: object, *keys: str) -> bool:
    """Tell whether a value is an object with all these keys."""
    return isinstance(value, Mapping) and all(key in value for key in keys)
