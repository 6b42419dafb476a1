"""Importer of requests as CSV: Azure, BurstGPT and TraceLab by their headers, any other by a map."""

from __future__ import annotations

import csv
import io as memory
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from marsbench.core import Session, ToolCall
from marsbench.errors import ConfigError, TraceError
from marsbench.registry import unknown
from marsbench.trace import faults, io
from marsbench.trace.importer import TraceSample
from workloads.context import RecordedCall, build_session
from workloads.rows import Row, timestamp_s, wanted

FIELDS = {
    "time": "arrival of the request: seconds, or a date and time",
    "time_ms": "the same in milliseconds",
    "input_tokens": "the whole prompt",
    "prefix_tokens": "the part of the prompt that was there before, beside new_tokens",
    "new_tokens": "what the prompt adds to the context",
    "output_tokens": "the answer",
    "session_id": "what requests of one session have in common",
    "model": "name of the model",
    "tool_s": "wait for tools after the answer, in seconds",
    "tool_ms": "the same in milliseconds",
    "think_s": "other idle time after the answer, in seconds",
}
"""What a column can stand for."""

PRESETS: dict[str, dict[str, str]] = {
    "azure": {
        "TIMESTAMP": "time",
        "ContextTokens": "input_tokens",
        "GeneratedTokens": "output_tokens",
    },
    "burstgpt": {
        "Timestamp": "time",
        "Model": "model",
        "Request tokens": "input_tokens",
        "Response tokens": "output_tokens",
    },
    "tracelab": {
        "session_id": "session_id",
        "prefix_len": "prefix_tokens",
        "input_len": "new_tokens",
        "output_len": "output_tokens",
        "tool_wait_after_ms": "tool_ms",
        "arrival_time": "time_ms",
    },
}
"""Headers that are known without a map."""
_OPTIONAL = {"burstgpt": {"Session ID": "session_id"}}
_SUFFIX = ".csv"


class CsvRequests:
    """Holds all requests: those of one session may stand anywhere."""

    name = "csv_requests"
    summary = "requests as CSV: Azure, BurstGPT, TraceLab runner, or any columns with --map"

    def __init__(self, columns: Mapping[str, str] | None = None) -> None:
        self._columns = dict(columns or {})
        for column, field in self._columns.items():
            if field not in FIELDS:
                raise ConfigError(f"--map {column}={field}: {unknown('field', field, FIELDS)}")
        self.provenance: Mapping[str, str] = {
            "model": "recorded, where a column has it",
            "arrival_s": "recorded: time of the first request, from the first of the file",
            "turns": "recorded: rows of one session; without a session column each row is one",
            "new_input_tokens": "recorded (new_tokens), or derived: prompt growth less the output",
            "output_tokens": "recorded",
            "resent_output": "assumed: 1.0 where the prompt has room for the whole output",
            "tools.name": "assumed: one unnamed call, where a column has its wait",
            "tools.class": "assumed: shell_other",
            "tools.wall_s": "recorded, where a column has it",
            "think_s": "recorded, where a column has it; else derived: time between requests less "
            "tool waits, which contains the service of the first",
        }

    def with_columns(self, columns: Mapping[str, str]) -> CsvRequests:
        """Return the importer for a table in which the given columns stand for the fields."""
        return CsvRequests(columns)

    def sniff(self, sample: TraceSample) -> bool:
        if sample.head:
            return _preset(_header(sample.head)) is not None
        names = sorted(name for name in sample.names if _is_csv(name))
        if not names or any(io.is_trace_name(name) for name in sample.names):
            return False
        try:
            return _preset(_header(io.head(sample.path / names[0]))) is not None
        except TraceError:
            return False

    def read(self, path: Path) -> Iterator[Session]:
        rows = [row for file in _files(path) for row in self._rows(file)]
        starts = [row.value["time"] for row in rows if row.value.get("time") is not None]
        first_s = min(starts, default=0.0)
        sessions: dict[str, list[Row]] = {}
        for number, row in enumerate(rows):
            name = row.value.get("session_id") or f"request-{number}"
            sessions.setdefault(str(name), []).append(row)
        for name, requests in sessions.items():
            yield _session(name, requests, first_s)

    def _rows(self, file: Path) -> Iterator[Row]:
        """Yield rows with the names and types of FIELDS; ``faults.current()`` decides about those
        that have others.
        """
        tolerance = faults.current()
        try:
            lines = io.read_lines(file)
            header = _cells(next(lines, (1, b""))[1])
            columns = self._columns_of(header, file)
            for number, line in lines:
                if tolerance.leaves_out(str(file), number):
                    continue
                cells = dict(zip(header, _cells(line), strict=False))
                values = {field: cells.get(column, "") for column, field in columns.items()}
                try:
                    row = _typed(Row(values, str(file), number))
                except TraceError as error:
                    tolerance.note(error)
                    continue
                if not tolerance.leaves_out(row.path, number, row.value):
                    yield row
        except TraceError as error:
            tolerance.note(error)

    def _columns_of(self, header: Sequence[str], file: Path) -> dict[str, str]:
        if not self._columns:
            found = _preset(header)
            if found is None:
                names = ", ".join(header)
                problem = f"columns {names}: say what they stand for with --map COLUMN=FIELD"
                raise TraceError(f"{problem} ({', '.join(FIELDS)})", path=str(file), line=1)
            return found
        for column in self._columns:
            if column not in header:
                raise ConfigError(f"--map {column}=...: {unknown('column', column, header)}")
        if not {"input_tokens", "new_tokens"} & set(self._columns.values()):
            raise ConfigError("--map: no column stands for input_tokens or new_tokens; add one")
        return self._columns


def _is_csv(name: str) -> bool:
    return name.removesuffix(".gz").removesuffix(".zst").endswith(_SUFFIX)


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise TraceError("no such file or directory", path=str(path))
    if path.is_file():
        return wanted([path])
    found = sorted(file for file in path.rglob("*") if file.is_file() and _is_csv(file.name))
    if not found:
        raise TraceError(f"no {_SUFFIX} file below it", path=str(path))
    return wanted(found)


def _header(head: bytes) -> list[str]:
    return _cells(head.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0])


def _cells(line: bytes) -> list[str]:
    """Return the cells of a line; quoted cells may hold commas but no line ends."""
    text = memory.StringIO(line.decode("utf-8", "replace").strip("\r\n\0").replace("\0", ""))
    try:
        return [cell.strip() for cell in next(csv.reader(text), [])]
    except csv.Error:
        return []


def _preset(header: Sequence[str]) -> dict[str, str] | None:
    """Return the map of columns of a known header, or None if it is not known."""
    for name, columns in PRESETS.items():
        if columns.keys() <= set(header):
            more = _OPTIONAL.get(name, {})
            return columns | {column: more[column] for column in more if column in header}
    return None


def _typed(row: Row) -> Row:
    """Return a row with numbers in place of texts: times in seconds, tokens as whole numbers, None
    where there is nothing.
    """
    found: dict[str, Any] = {
        "session_id": row.value.get("session_id"),
        "model": row.value.get("model"),
    }
    numbers = {
        field: _number(row, field)
        for field in ("time_ms", "tool_s", "tool_ms", "think_s", "prefix_tokens", "new_tokens",
                      "input_tokens", "output_tokens")
    }  # fmt: skip
    checked = row.child({name: value for name, value in numbers.items() if value is not None}, "")
    for field in numbers:
        integer = field.endswith("_tokens")
        if field in checked.value:
            found[field] = checked.integer(field) if integer else checked.number(field)
    for field in ("time", "tool"):
        if f"{field}_ms" in found:
            found["tool_s" if field == "tool" else "time"] = found.pop(f"{field}_ms") / 1000
    if row.value.get("time"):
        found["time"] = _time(row)
    return row.child(found, "")


def _number(row: Row, field: str) -> float | None:
    text = row.value.get(field, "")
    if not text:
        return None
    try:
        return float(str(text))
    except ValueError:
        raise row.error(f"expected a number, found {text!r}", field) from None


def _time(row: Row) -> float:
    text = row.value["time"]
    try:
        found: float | None = float(text)
    except ValueError:
        # Azure writes seven digits of a second; a date holds six.
        head, dot, fraction = text.partition(".")
        found = timestamp_s(f"{head}{dot}{fraction[:6]}" if fraction.isdigit() else text)
    if found is None or not math.isfinite(found):
        raise row.error(f"expected seconds or a date and time, found {text!r}", "time")
    return found


def _session(name: str, rows: Sequence[Row], first_s: float) -> Session:
    timed = all(row.value.get("time") is not None for row in rows)
    if timed:
        rows = sorted(rows, key=lambda row: row.value["time"])
    calls: list[RecordedCall] = []
    for row in rows:
        calls.append(_call(row, calls[-1] if calls else None))
    for index, (row, following) in enumerate(pairwise(rows)):
        calls[index] = replace(calls[index], think_s=_pause_s(row, following, timed))
    return build_session(
        name,
        calls,
        model=str(rows[0].value.get("model") or ""),
        arrival_s=rows[0].value["time"] - first_s if timed else None,
    )


def _call(row: Row, before: RecordedCall | None) -> RecordedCall:
    new, prefix = row.value.get("new_tokens"), row.value.get("prefix_tokens")
    if row.value.get("input_tokens") is not None:
        prompt = row.integer("input_tokens")
    elif new is not None and prefix is not None:
        prompt = row.integer("prefix_tokens") + row.integer("new_tokens")
    else:
        grown = 0 if before is None else before.prompt_tokens + before.output_tokens
        prompt = grown + row.integer("new_tokens")
    if prompt == 0:
        raise row.error("expected at least one prompt token", "input_tokens")
    wait_s = row.value.get("tool_s") or 0.0
    tools = (ToolCall("tool", "shell_other", wait_s),) if wait_s else ()
    return RecordedCall(prompt, row.integer("output_tokens", 0), tools)


def _pause_s(row: Row, following: Row, timed: bool) -> float:
    """Return the idle time after a request: as recorded, or what time stamps leave beside its
    tools.
    """
    known = row.value.get("think_s")
    if known is not None:
        return float(known)
    if not timed or row.value.get("tool_s") is not None:
        return 0.0
    return max(0.0, float(following.value["time"]) - float(row.value["time"]))


IMPORTER = CsvRequests()
