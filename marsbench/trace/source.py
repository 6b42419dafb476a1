"""Finds sessions: in a file of any known format, or in a workload by its name or path."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np

from marsbench import registry
from marsbench.core import Session, Turn
from marsbench.errors import ConfigError, TraceError
from marsbench.trace import faults, io
from marsbench.trace.faults import Faults
from marsbench.trace.importer import ColumnImporter, Importer, TraceSample
from marsbench.trace.workload import SPLITS, Workload, repeated_id

CANONICAL = "canonical"
TABLE_FORMAT = "csv_requests"
"""The format of a file whose columns a user names."""
PROVENANCE_KEY = "x_provenance"
"""Key on the first line of an imported trace: how the importer knew each field."""


class CanonicalImporter:
    """Reads marsbench's own format, which has one session a line and ``trace_version`` in each."""

    name = CANONICAL
    summary = "marsbench's own JSON lines, one session each"

    def __init__(self, provenance: Mapping[str, str] | None = None) -> None:
        self.provenance: Mapping[str, str] = provenance or {}

    def sniff(self, sample: TraceSample) -> bool:
        return "trace_version" in _first_object(sample)

    def read(self, path: Path) -> Iterator[Session]:
        if path.is_dir():
            problem = "is a directory; give one canonical file (join several with cat)"
            raise TraceError(problem, path=str(path))
        return io.read_sessions(path)


def importers() -> dict[str, Importer]:
    """Return all known formats by name, with the canonical one first."""
    found: dict[str, Importer] = {CANONICAL: CanonicalImporter()}
    for name in registry.table("IMPORTERS"):
        found[name] = find_importer(name)
    return found


def find_importer(name: str) -> Importer:
    """Return the importer called ``name``; ConfigError names the closest match if there is none."""
    if name == CANONICAL:
        return CanonicalImporter()
    known = registry.table("IMPORTERS")
    if name not in known and "." not in name:
        raise registry.unknown("format", name, [CANONICAL, *known])
    return cast("Importer", _instance(registry.load("IMPORTERS", name)))


def open_trace(
    path: Path,
    format_name: str | None = None,
    tolerance: Faults | None = None,
    columns: Mapping[str, str] | None = None,
) -> tuple[Importer, Iterator[Session]]:
    """Find the importer of a file or directory by its content, and return it with the sessions.

    ``tolerance`` decides what becomes of rows that cannot be read, and counts them; without it
    the first one stops the reading. ``columns`` says what the columns of a table stand for. Raises
    TraceError if no format or several fit, ConfigError if ``format_name`` is unknown.
    """
    tolerance = tolerance or Faults()
    if not path.exists():
        raise TraceError("no such file or directory", path=str(path))
    sample: TraceSample | None = None
    if columns:
        importer = _with_columns(find_importer(format_name or TABLE_FORMAT), columns)
    elif format_name is not None:
        importer = find_importer(format_name)
        sample = io.sample(path) if format_name == CANONICAL else None
    else:
        sample = io.sample(path)
        importer = _recognise(sample, tolerance)
    if sample is not None and isinstance(importer, CanonicalImporter):
        importer = CanonicalImporter(_carried_provenance(sample))
    if tolerance.tolerant:
        return importer, faults.read(lambda: importer.read(path), tolerance, io.session_at)
    return importer, importer.read(path)


def _with_columns(importer: Importer, columns: Mapping[str, str]) -> Importer:
    if not hasattr(importer, "with_columns"):
        raise ConfigError(f"--map: format {importer.name!r} has no columns; leave it out")
    return cast("ColumnImporter", importer).with_columns(columns)


def open_workload(spec: str, format_name: str | None = None) -> Workload:
    """Open the workload that a user named by a registered name, a path or the dotted path of an object."""
    names = registry.table("WORKLOADS")
    if spec in names:
        return cast("Workload", _instance(registry.load("WORKLOADS", spec)))
    path = Path(spec)
    if path.exists():
        return RecordedWorkload(path, format_name)
    if "/" in spec or path.suffix in {".jsonl", ".json", ".gz", ".zst", ".csv", ".traj"}:
        raise ConfigError(f"workload {spec!r}: no such file or directory")
    if "." in spec and (loaded := _at_dotted_path(spec)) is not None:
        return loaded
    raise _no_such_workload(spec, names)


def _at_dotted_path(spec: str) -> Workload | None:
    """Return the object at a dotted path, or None if ``spec`` is rather a misspelt file name.

    A path into a package that exists is a dotted path: what is wrong with it is the registry's
    to say.
    """
    try:
        return cast("Workload", _instance(registry.load("WORKLOADS", spec)))
    except ConfigError:
        if spec.count(".") > 1 and find_spec(spec.split(".", maxsplit=1)[0]) is not None:
            raise
        return None


def _no_such_workload(spec: str, names: Iterable[str]) -> ConfigError:
    """Return the error for a name that is neither registered nor a file; it names the closest of either."""
    if "." not in spec:
        return registry.unknown("workload", spec, names)
    beside = Path(spec).parent
    files = [str(beside / file.name) for file in beside.iterdir() if file.is_file()]
    close = get_close_matches(spec, [*files, *names], n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}?" if close else "`marsbench list workloads` has the names"
    return ConfigError(f"workload {spec!r}: no such file, name or dotted path; {hint}")


class RecordedWorkload:
    """Draws the sessions of a trace file in an order set by a seed, and repeats them if it has too few."""

    def __init__(self, path: Path, format_name: str | None = None) -> None:
        self.path = path
        self._importer, self._stream = open_trace(path, format_name)
        self.name = path.name.split(".")[0] or path.resolve().name
        self.summary = f"{path.name}: {self._importer.summary}"
        self.provenance: Mapping[str, str] = self._importer.provenance
        self.sha256 = io.sha256(path)
        """Of the file's bytes; of a directory: of the names and hashes of its files."""
        self._sessions: list[Session] | None = None

    def sessions(self, num: int | None, seed: int, split: str = "all") -> list[Session]:
        """See ``workload.Workload.sessions``; a repeat arrives one trace length after the last."""
        if split not in SPLITS:
            raise registry.unknown("split", split, SPLITS)
        if num is not None and num < 1:
            raise ConfigError(f"cannot take {num} sessions; ask for at least 1")
        pool = [s for s in self._load() if split in {"all", split_of(s.session_id)}]
        if not pool:
            problem = f"no session falls in split {split!r}; use split 'all' or a longer trace"
            raise ConfigError(f"{self.path}: {problem} (it has {len(self._load())})")
        rng = np.random.default_rng(seed)
        wanted = len(pool) if num is None else num
        span_s = _arrival_span_s(pool)
        chosen: list[Session] = []
        for repeat in range(1, -(-wanted // len(pool)) + 1):
            order = rng.permutation(len(pool))[: wanted - len(chosen)]
            chosen += [_copy(pool[index], repeat, span_s) for index in order]
        return chosen

    def _load(self) -> list[Session]:
        if self._sessions is None:
            self._sessions = list(self._stream)
            if not self._sessions:
                raise TraceError(
                    "has no sessions; give a trace with at least one", path=str(self.path)
                )
        return self._sessions


def split_of(session_id: str) -> str:
    """Tell the half to which a recorded session belongs, by its id alone, so that runs agree on it."""
    return ("tuning", "reporting")[hashlib.sha256(session_id.encode()).digest()[0] & 1]


def _copy(session: Session, repeat: int, span_s: float) -> Session:
    if repeat == 1:
        return session
    arrival_s = session.arrival_s
    if arrival_s is not None:
        arrival_s += (repeat - 1) * span_s
    return replace(
        session,
        session_id=repeated_id(session.session_id, repeat),
        arrival_s=arrival_s,
        turns=tuple(_copy_turn(turn, repeat, span_s) for turn in session.turns),
    )


def _copy_turn(turn: Turn, repeat: int, span_s: float) -> Turn:
    if not turn.children:
        return turn
    return replace(turn, children=tuple(_copy(child, repeat, span_s) for child in turn.children))


def _arrival_span_s(pool: list[Session]) -> float:
    """Return the length of a recorded trace with one mean gap added, so that repeats keep its rate."""
    arrivals = [s.arrival_s for s in pool if s.arrival_s is not None]
    if len(arrivals) < 2:
        return 0.0
    return (max(arrivals) - min(arrivals)) * len(arrivals) / (len(arrivals) - 1)


def _recognise(sample: TraceSample, tolerance: Faults) -> Importer:
    if not sample.head.strip() and not sample.path.is_dir():
        next(io.read_lines(sample.path), None)  # damaged from the start: says so
        raise TraceError("is empty; a trace has at least one session", path=str(sample.path))
    if sample.path.is_dir() and not sample.names:
        raise TraceError("is an empty directory; it holds no trace", path=str(sample.path))
    canonical = CanonicalImporter()
    if canonical.sniff(sample):  # no other format has its version key: nothing else need be loaded
        return canonical
    known = importers()
    fitting = [importer for importer in known.values() if importer.sniff(sample)]
    if len(fitting) == 1:
        _refuse_mixture(fitting[0], known.values(), sample, tolerance)
        return fitting[0]
    if not fitting and (inside := _canonical_inside(sample)):
        problem = f"is a directory of canonical traces; give one file, such as {inside}"
    elif not fitting:
        problem = f"is in no known format ({', '.join(known)}); name one with --format"
    else:
        names = ", ".join(importer.name for importer in fitting)
        problem = f"looks like several formats ({names}); choose one with --format"
    raise TraceError(problem, path=str(sample.path))


def _canonical_inside(sample: TraceSample) -> Path | None:
    """Return a canonical trace that lies in a directory, which no other format has for its own."""
    files = (sample.path / name for name in sample.names if io.is_trace_name(name))
    canonical = CanonicalImporter()
    return next((file for file in files if canonical.sniff(TraceSample(file, io.head(file)))), None)


def _refuse_mixture(
    importer: Importer, known: Iterable[Importer], sample: TraceSample, tolerance: Faults
) -> None:
    """Raise an error for a file of a second format in a directory, or leave it out and count it."""
    for name in sample.names:
        file = sample.path / name
        if not io.is_trace_name(name):
            continue
        try:
            alone = TraceSample(file, io.head(file))
        except TraceError:
            continue  # the importer says what is wrong with it
        if importer.sniff(alone):
            continue
        others = [other.name for other in known if other.sniff(alone)]
        if others:
            problem = f"holds {' or '.join(others)}, the directory {importer.name}"
            hint = "give one format at a time, or leave it out with --on-error skip"
            tolerance.note(TraceError(f"{problem}; {hint}", path=str(file)))


def _carried_provenance(sample: TraceSample) -> dict[str, str]:
    carried = _first_object(sample).get(PROVENANCE_KEY)
    return {str(k): str(v) for k, v in carried.items()} if isinstance(carried, dict) else {}


def _first_object(sample: TraceSample) -> dict[str, Any]:
    """Return the first line as an object; of a line longer than the head, the keys before its turns."""
    line = sample.head.lstrip(b"\xef\xbb\xbf \r\n\t").split(b"\n", 1)[0]
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        cut = line.find(b'"turns":[')
        if cut < 0:
            return {}
        try:
            row = json.loads(line[:cut].rstrip().rstrip(b",") + b"}")
        except (ValueError, RecursionError):
            return {}
    return row if isinstance(row, dict) else {}


def _instance(found: Any) -> Any:
    return found() if isinstance(found, type) else found
