"""Reads rows out of trace files and directories, and says file, line and field when one is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from marsbench.errors import TraceError
from marsbench.trace import io
from marsbench.trace.importer import Sample

_SAMPLED_FILES = 3
"""Files of a directory that are looked at to recognise it."""
_PLAIN_SUFFIXES = (".json", ".jsonl", ".traj")
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[{}\[\],]', re.DOTALL)


class Row(NamedTuple):
    """One JSON object of a trace and where it stands."""

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
        """A whole number >= 0."""
        found = self.number(field, default)
        if found != int(found):
            raise self.error(f"expected a whole number, found {found!r}", field)
        return int(found)

    def number(self, field: str, default: float | None = None) -> float:
        """A number >= 0."""
        found = self.value.get(field)
        if found is None and default is not None:
            return default
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise self.error(f"expected a number, found {found!r}", field)
        if not 0 <= found < float("inf"):
            raise self.error(f"expected a number >= 0, found {found!r}", field)
        return found

    def items(self, field: str) -> list[Any]:
        """A list; a missing one is empty."""
        found = self.value.get(field)
        if found is None:
            return []
        if not isinstance(found, list):
            raise self.error(f"expected a list, found {type(found).__name__}", field)
        return found

    def rows(self, field: str) -> list[Row]:
        """A list of objects; a missing one is empty."""
        return [self.child(item, f"{field}[{i}]") for i, item in enumerate(self.items(field))]

    def child(self, value: object, field: str) -> Row:
        if not isinstance(value, dict):
            raise self.error(f"expected an object, found {type(value).__name__}", field)
        return Row(value, self.path, self.line)

    def mapping(self, field: str) -> dict[str, Any]:
        """An object; a missing one is empty."""
        found = self.value.get(field)
        if found is None:
            return {}
        return self.child(found, field).value


RowSource = Callable[[], Iterator[Row]]
"""Starts a new pass over the rows: importers that need two passes call it twice."""


def read_rows(path: Path) -> Iterator[Row]:
    """Objects of a file or of every trace file below a directory, in order of name.

    A JSONL file gives a row a line, streamed; a JSON file gives its object, or the objects of
    its list.
    """
    for file in trace_files(path):
        yield from _file_rows(file)


def trace_files(path: Path) -> list[Path]:
    """The file itself, or the JSON-like files below a directory."""
    if not path.exists():
        raise TraceError("no such file or directory", path=str(path))
    if path.is_file():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.is_file() and is_trace_name(file.name))
    if not found:
        raise TraceError(f"no {', '.join(_PLAIN_SUFFIXES)} file below it", path=str(path))
    return found


def is_trace_name(name: str) -> bool:
    return name.removesuffix(".gz").removesuffix(".zst").endswith(_PLAIN_SUFFIXES)


def read_document(path: Path) -> Any:
    """The one JSON value of a file."""
    with io.open_binary(path) as stream:
        return _decode(stream.read(), path, None)


def head_of(path: Path) -> bytes:
    """First 64 KiB of content; empty if the file cannot be read (recognising never raises)."""
    try:
        return io.head(path)
    except TraceError:
        return b""


def sampled_files(sample: Sample) -> list[tuple[Path, bytes]]:
    """Path and head of each file looked at: the file itself, or the first few of a directory."""
    if sample.head:
        return [(sample.path, sample.head)]
    names = [name for name in sorted(sample.names) if is_trace_name(name)][:_SAMPLED_FILES]
    return [(sample.path / name, head_of(sample.path / name)) for name in names]


def recognise(sample: Sample, matches: Callable[[Any], bool]) -> bool:
    """Whether each file looked at holds a value the format knows."""
    files = [head_values(head) for _, head in sampled_files(sample)]
    return bool(files) and all(any(matches(value) for value in values) for values in files)


def head_values(head: bytes) -> list[Any]:
    """JSON values of the lines of a head, or the one (cut) value that spans it."""
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
    """Decodes a JSON value that may be cut anywhere: ends it at the last comma seen."""
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
    values = head_values(head_of(file))
    if not values:
        raise TraceError("not JSON or JSONL", path=str(file), line=1)
    if _is_jsonl(file, values):
        for line, content in io.read_lines(file):
            yield _as_row(_decode(content, file, line), str(file), line)
        return
    document = read_document(file)
    for value in document if isinstance(document, list) else [document]:
        yield _as_row(value, str(file), None)


def _is_jsonl(file: Path, values: list[Any]) -> bool:
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
    """Seconds of an ISO time (a naive one counts as UTC), None if there is none."""
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
    """Seconds from start to end; 0 if one is not known or the clock went back."""
    return 0.0 if start is None or end is None else max(0.0, end - start)


def has_keys(value: object, *keys: str) -> bool:
    """Whether a value is an object with all these keys."""
    return isinstance(value, Mapping) and all(key in value for key in keys)
