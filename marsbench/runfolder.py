"""The run folder: cells appended one by one as they finish, merged at the end, read by reports.

While a run lasts, every finished cell is a folder ``cells/NNNN`` whose ``cell.json`` is written
last; a run that is killed therefore keeps what it finished, readers see those cells, and
``finished_cells`` tells a resumed run which ones are left. ``finish`` merges them, in order of
index, into ``events.parquet``, ``sessions.parquet``, ``turns.parquet`` and ``summary.json``.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from marsbench.errors import ResultsError
from marsbench.events import EVENTS_VERSION, FIELDS, FLEET_KINDS, HOST_KINDS, Kind
from marsbench.records import EventLog
from marsbench.replicas import replica_of_rows
from marsbench.tables import CellKey, CellTables

if TYPE_CHECKING:
    from collections.abc import Iterator

    from marsbench.attribution import Ints

SUMMARY_VERSION = 1
CAPACITY_FILE = "capacity.json"
CAPACITY_VERSION = 1
Filters = list[tuple[str, str, object]]
"""Rows to keep, as (column, comparison, value); all must hold."""
TABLES = ("events", "sessions", "turns")
KEY_FIELDS = tuple(field.name for field in fields(CellKey))
"""What identifies a cell; the first columns of sessions.parquet and turns.parquet."""

_KEY_TYPES: dict[str, pa.DataType] = {
    "load": pa.float64(),
    "rate_per_s": pa.float64(),
    "seed": pa.int64(),
    "tool_cores": pa.int64(),
    "host_kv_gib": pa.float64(),
    "replicas": pa.int64(),
}
_TEXT = pa.dictionary(pa.int32(), pa.string())
_NAMED = (Kind.TOOL_ENQUEUED, Kind.TOOL_START, Kind.TOOL_END)


class RunFolder:
    """A run folder that is being written. Different processes may write different cells."""

    def __init__(self, path: Path, run_id: str) -> None:
        """Make the folder, or continue an unfinished one of the same run."""
        self.path = path
        self.run_id = run_id
        with _clear_errors(path):
            path.mkdir(parents=True, exist_ok=True)

    def is_complete(self) -> bool:
        """True if this folder holds a run that finished all its cells."""
        return (self.path / "summary.json").is_file() and not (self.path / "cells").is_dir()

    def write_text(self, name: str, text: str) -> None:
        """Write ``config.yaml`` or another small text file."""
        _atomic(self.path / name, lambda target: target.write_text(text, encoding="utf-8"))

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write ``environment.json`` or another small JSON file."""
        self.write_text(name, to_json(content))

    def write_cell(
        self, index: int, entry: Mapping[str, Any], log: EventLog, tables: CellTables
    ) -> None:
        """Keep one finished cell. ``entry`` is its ``summary.json`` entry (key, counts, metrics)."""
        folder = self.path / "cells" / f"{index:04d}"
        with _clear_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        events = _events_table(
            log, index, with_host="host_kv_gib" in entry, with_replicas="replicas" in entry
        )
        _write_parquet(folder / "events.parquet", [events])
        _write_parquet(folder / "sessions.parquet", [_keyed(tables.sessions, index, entry)])
        _write_parquet(folder / "turns.parquet", [_keyed(tables.turns, index, entry)])
        text = to_json({"index": index, "run_id": self.run_id, "entry": entry})
        _atomic(folder / "cell.json", lambda target: target.write_text(text, encoding="utf-8"))

    def give_cell(self, index: int) -> dict[str, bytes]:
        """The files of one finished cell, by name, for another folder to take."""
        folder = self.path / "cells" / f"{index:04d}"
        return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}

    def take_cell(self, index: int, files: Mapping[str, bytes]) -> None:
        """Keep a cell that was finished in another folder of the same run."""
        folder = self.path / "cells" / f"{index:04d}"
        with _clear_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        for name in sorted(files, key=lambda name: (name == "cell.json", name)):
            content = files[name]
            _atomic(folder / name, lambda target, content=content: target.write_bytes(content))  # type: ignore[misc]

    def finished_cells(self) -> dict[int, dict[str, Any]]:
        """Entries of the cells that are complete, by index; refuses those of another run."""
        cells = _cells(self.path)
        if cells and (run_id := _run_id(self.path)) != self.run_id:
            raise ResultsError(
                f"{self.path} holds cells of run {run_id}, not of {self.run_id}: "
                "choose another folder with --out, or delete this one"
            )
        return cells

    def assemble(self, cells: Mapping[int, StoredCells]) -> None:
        """Make the finished folder of cells that other folders hold."""
        order = sorted(cells)
        for name in TABLES if cells else ():
            _write_parquet(
                self.path / f"{name}.parquet",
                (cells[index].table(name, index) for index in order),
            )
        entries = {index: cells[index].entries[index] for index in order}
        self.write_json("summary.json", _summary(self.run_id, entries))

    def finish(self, *, complete: bool = True) -> None:
        """Merge all finished cells. Their parts are removed only if the run is ``complete``."""
        cells = self.finished_cells()
        folders = [self.path / "cells" / f"{index:04d}" for index in sorted(cells)]
        for name in TABLES if cells else ():
            _write_parquet(
                self.path / f"{name}.parquet",
                (_read_parquet(folder / f"{name}.parquet") for folder in folders),
            )
        self.write_json("summary.json", _summary(self.run_id, cells))
        if complete and cells:
            with _clear_errors(self.path):
                shutil.rmtree(self.path / "cells")


class StoredCells:
    """The finished cells of a run folder, complete or not, each for itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        summary = read_summary(path)
        self.entries: dict[int, dict[str, Any]] = {
            int(entry["cell"]): {key: value for key, value in entry.items() if key != "cell"}
            for entry in summary["cells"]
        }
        self._parts = (path / "cells").is_dir() and bool(_cells(path))
        self._order = sorted(self.entries)

    def table(self, name: str, index: int) -> pa.Table:
        """One of TABLES of one cell, as it was written."""
        if self._parts:
            return _read_parquet(self.path / "cells" / f"{index:04d}" / f"{name}.parquet")
        file = self.path / f"{name}.parquet"
        try:
            with pq.ParquetFile(file) as whole:
                if whole.num_row_groups != len(self._order):
                    raise ResultsError(
                        f"{file} holds {whole.num_row_groups} cells, summary.json names "
                        f"{len(self._order)}; repeat the run"
                    )
                return whole.read_row_group(self._order.index(index))
        except FileNotFoundError as error:
            raise ResultsError(f"{file} is missing: the run folder is incomplete") from error
        except (OSError, pa.ArrowInvalid) as error:
            raise ResultsError(f"cannot read {file}: {_first_line(error)}") from error


def read_summary(path: Path) -> dict[str, Any]:
    """``summary.json`` of a run folder; of an unfinished run, the cells it finished."""
    if (path / "cells").is_dir() and (cells := _cells(path)):
        return _summary(_run_id(path), cells)
    file = path / "summary.json"
    if not file.is_file():
        raise ResultsError(
            f"{path} is not a run folder: it has no summary.json and no finished cells; "
            "give the folder that `marsbench run --out` wrote"
        )
    summary = _read_json(file)
    if summary.get("summary_version") != SUMMARY_VERSION:
        raise ResultsError(
            f"{file}: summary_version is {summary.get('summary_version')!r}, this marsbench reads "
            f"{SUMMARY_VERSION}; repeat the run or use the version that wrote it"
        )
    return summary


def read_capacity(path: Path) -> dict[str, Any] | None:
    """``capacity.json`` of a run folder that is a capacity search; None of any other."""
    file = path / CAPACITY_FILE
    if not file.is_file():
        return None
    found = _read_json(file)
    if found.get("capacity_version") != CAPACITY_VERSION:
        raise ResultsError(
            f"{file}: capacity_version is {found.get('capacity_version')!r}, this marsbench reads "
            f"{CAPACITY_VERSION}; repeat the search or use the version that wrote it"
        )
    return found


def read_table(
    path: Path,
    name: str,
    *,
    columns: Sequence[str] | None = None,
    filters: Filters | None = None,
) -> pd.DataFrame:
    """One of TABLES of a run folder; of an unfinished run, of the cells it finished."""
    assert name in TABLES, name
    files = [path / f"{name}.parquet"]
    if (path / "cells").is_dir() and (cells := _cells(path)):
        files = [path / "cells" / f"{index:04d}" / f"{name}.parquet" for index in sorted(cells)]
    parts = [_read_parquet(file, columns=columns, filters=filters) for file in files]
    frame: pd.DataFrame = pa.concat_tables(parts).unify_dictionaries().to_pandas()
    return frame


def write_events(path: Path, logs: Mapping[int, EventLog]) -> None:
    """Event logs by cell as one table, the same as ``events.parquet`` of a run folder."""
    parts = (
        _events_table(logs[index], index, with_host=False, with_replicas=False)
        for index in sorted(logs)
    )
    _write_parquet(path, parts)


def to_json(content: Mapping[str, Any]) -> str:
    """JSON text of fixed form; NaN and infinities, which JSON has not, become null."""
    return json.dumps(_plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _cells(path: Path) -> dict[int, dict[str, Any]]:
    files = sorted((path / "cells").glob("*/cell.json"))
    found = (_read_json(file) for file in files)
    return {cell["index"]: cell["entry"] for cell in found}


def _run_id(path: Path) -> str:
    return str(_read_json(next((path / "cells").glob("*/cell.json")))["run_id"])


def _summary(run_id: str, cells: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    return {
        "summary_version": SUMMARY_VERSION,
        "run_id": run_id,
        "cells": [{"cell": index, **cells[index]} for index in sorted(cells)],
    }


def _events_table(log: EventLog, index: int, *, with_host: bool, with_replicas: bool) -> pa.Table:
    """Event rows as columns: kind and tool names as text, payload integers as ``a`` to ``f``."""
    rows = log.to_numpy()
    hidden = {*(() if with_host else HOST_KINDS), *(() if with_replicas else FLEET_KINDS)}
    known = {kind: kind.name for kind in Kind if kind not in hidden}
    names = pa.array([known.get(Kind(kind), "") for kind in range(max(known) + 1)], pa.string())
    kinds = pa.DictionaryArray.from_arrays(pa.array(rows[:, 1], pa.int32()), names)
    columns: dict[str, Any] = {
        "cell": np.full(len(rows), index, dtype=np.int32),
        "time_ps": rows[:, 0],
        "kind": kinds,
        "session": rows[:, 2].astype(np.int32),
        "session_id": _texts(rows[:, 2], rows[:, 2] >= 0, log.session_ids),
        "turn": rows[:, 3].astype(np.int32),
        "call": rows[:, 4].astype(np.int32),
    }
    if with_replicas:
        columns["replica"] = replica_of_rows(rows).astype(np.int32)
    columns |= {letter: rows[:, 5 + k] for k, letter in enumerate("abcdef")}
    named = np.isin(rows[:, 1], _NAMED)
    columns["name"] = _texts(rows[:, 5], named, log.strings)
    columns["tool_class"] = _texts(rows[:, 6], named, log.strings)
    payload = {kind.name: list(FIELDS[kind]) for kind in known}
    metadata = {"events_version": str(EVENTS_VERSION), "payload": json.dumps(payload)}
    return pa.table(columns).replace_schema_metadata(metadata)


def _texts(codes: Ints, known: np.typing.NDArray[np.bool_], texts: Sequence[str]) -> pa.Array:
    """Texts by code, null where not ``known``."""
    return pa.DictionaryArray.from_arrays(
        pa.array(np.where(known, codes, 0), pa.int32(), mask=~known), pa.array(texts, pa.string())
    )


def _keyed(frame: pd.DataFrame, index: int, entry: Mapping[str, Any]) -> pa.Table:
    """A table with the cell's index and key in front, equal in schema for all cells."""
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    for k, column in enumerate(table.schema):
        if not pa.types.is_primitive(column.type):
            table = table.set_column(k, column.name, table.column(k).cast(_TEXT))
    size = len(frame)
    front: dict[str, Any] = {"cell": pa.array(np.full(size, index, dtype=np.int32))}
    for name in KEY_FIELDS:
        if name not in entry:
            continue  # a key that only some experiments have
        if name in _KEY_TYPES:
            front[name] = pa.repeat(pa.scalar(entry[name], _KEY_TYPES[name]), size)
        else:
            codes = pa.array(np.zeros(size, dtype=np.int32))
            front[name] = pa.DictionaryArray.from_arrays(
                codes, pa.array([entry[name]], pa.string())
            )
    return pa.table({**front, **{name: table.column(name) for name in table.column_names}})


def _write_parquet(path: Path, parts: Iterable[pa.Table]) -> None:
    """One file, one group of rows per part (so that a cell can be read alone)."""

    def write(target: Path) -> None:
        writer = None
        try:
            for part in parts:
                if writer is None:
                    writer = pq.ParquetWriter(target, part.schema, compression="zstd")
                writer.write_table(part, row_group_size=max(len(part), 1))
        finally:
            if writer is not None:
                writer.close()

    _atomic(path, write)


def _read_parquet(path: Path, **options: Any) -> pa.Table:
    try:
        return pq.read_table(path, **options)
    except FileNotFoundError as error:
        raise ResultsError(f"{path} is missing: the run folder is incomplete") from error
    except (OSError, pa.ArrowInvalid) as error:
        raise ResultsError(f"cannot read {path}: {_first_line(error)}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultsError(f"cannot read {path}: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise ResultsError(f"cannot read {path}: it holds no JSON object")
    return content


def _atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Write to a temporary file beside ``path``, then rename: readers see all of it or nothing."""
    with _clear_errors(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        target = Path(name)
        try:
            write(target)
            target.chmod(0o644)
            target.replace(path)
        finally:
            target.unlink(missing_ok=True)


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    """Disk full, read-only, a file where a folder should be: one line."""
    try:
        yield
    except OSError as error:
        raise ResultsError(
            f"cannot write {path}: {_first_line(error)}; "
            "free space or choose another folder with --out"
        ) from error


def _first_line(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return text.splitlines()[0] if text else type(error).__name__
