"""Where sessions come from: a file of any known format, or a workload by name or path."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from marsbench import registry
from marsbench.core import Session, Turn
from marsbench.errors import ConfigError, TraceError
from marsbench.trace import io
from marsbench.trace.importer import Importer, Sample
from marsbench.trace.workload import SPLITS, Workload

CANONICAL = "canonical"
PROVENANCE_KEY = "x_provenance"
"""Key on the first line of an imported trace: how the importer knew each field."""


class CanonicalImporter:
    """marsbench's own format: one session a line, ``trace_version`` in each."""

    name = CANONICAL
    summary = "marsbench's own JSON lines, one session each"

    def __init__(self, provenance: Mapping[str, str] | None = None) -> None:
        self.provenance: Mapping[str, str] = provenance or {}

    def sniff(self, sample: Sample) -> bool:
        return "trace_version" in _first_object(sample)

    def read(self, path: Path) -> Iterator[Session]:
        if path.is_dir():
            problem = "is a directory; give one canonical file (join several with cat)"
            raise TraceError(problem, path=str(path))
        return io.read_sessions(path)


def importers() -> dict[str, Importer]:
    """All known formats by name, canonical first."""
    found: dict[str, Importer] = {CANONICAL: CanonicalImporter()}
    for name in registry.table("IMPORTERS"):
        found[name] = find_importer(name)
    return found


def find_importer(name: str) -> Importer:
    """The importer called ``name``; ConfigError with the closest match if there is none."""
    if name == CANONICAL:
        return CanonicalImporter()
    known = registry.table("IMPORTERS")
    if name not in known and "." not in name:
        raise registry.unknown("format", name, [CANONICAL, *known])
    return cast("Importer", _instance(registry.load("IMPORTERS", name)))


def open_trace(path: Path, format_name: str | None = None) -> tuple[Importer, Iterator[Session]]:
    """The importer of a file or directory, found by content, and its sessions.

    Raises TraceError if no format or several fit, ConfigError if ``format_name`` is unknown.
    """
    if not path.exists():
        raise TraceError("no such file or directory", path=str(path))
    if format_name is not None:
        importer = find_importer(format_name)
        sample = io.sample(path) if format_name == CANONICAL else None
    else:
        sample = io.sample(path)
        importer = _recognise(sample)
    if sample is not None and isinstance(importer, CanonicalImporter):
        importer = CanonicalImporter(_carried_provenance(sample))
    return importer, importer.read(path)


def open_workload(spec: str, format_name: str | None = None) -> Workload:
    """The workload a user named: a registered name, a path, or a dotted path of an object."""
    names = registry.table("WORKLOADS")
    if spec in names:
        return cast("Workload", _instance(registry.load("WORKLOADS", spec)))
    path = Path(spec)
    if path.exists():
        return RecordedWorkload(path, format_name)
    if "/" in spec or path.suffix in {".jsonl", ".json", ".gz", ".zst", ".csv", ".traj"}:
        raise ConfigError(f"workload {spec!r}: no such file or directory")
    if "." in spec:
        return cast("Workload", _instance(registry.load("WORKLOADS", spec)))
    raise registry.unknown("workload", spec, names)


class RecordedWorkload:
    """Sessions of a trace file: shuffled by seed, repeated when asked for more than it has."""

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
    """Which half a recorded session belongs to: by its id alone, the same in every run."""
    return ("tuning", "reporting")[hashlib.sha256(session_id.encode()).digest()[0] & 1]


def _copy(session: Session, repeat: int, span_s: float) -> Session:
    if repeat == 1:
        return session
    arrival_s = session.arrival_s
    if arrival_s is not None:
        arrival_s += (repeat - 1) * span_s
    return replace(
        session,
        session_id=f"{session.session_id}~{repeat}",
        arrival_s=arrival_s,
        turns=tuple(_copy_turn(turn, repeat, span_s) for turn in session.turns),
    )


def _copy_turn(turn: Turn, repeat: int, span_s: float) -> Turn:
    if not turn.children:
        return turn
    return replace(turn, children=tuple(_copy(child, repeat, span_s) for child in turn.children))


def _arrival_span_s(pool: list[Session]) -> float:
    """Length of a recorded trace including one mean gap, so that repeats keep its rate."""
    arrivals = [s.arrival_s for s in pool if s.arrival_s is not None]
    if len(arrivals) < 2:
        return 0.0
    return (max(arrivals) - min(arrivals)) * len(arrivals) / (len(arrivals) - 1)


def _recognise(sample: Sample) -> Importer:
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
        return fitting[0]
    if not fitting:
        problem = f"is in no known format ({', '.join(known)}); name one with --format"
    else:
        names = ", ".join(importer.name for importer in fitting)
        problem = f"looks like several formats ({names}); choose one with --format"
    raise TraceError(problem, path=str(sample.path))


def _carried_provenance(sample: Sample) -> dict[str, str]:
    carried = _first_object(sample).get(PROVENANCE_KEY)
    return {str(k): str(v) for k, v in carried.items()} if isinstance(carried, dict) else {}


def _first_object(sample: Sample) -> dict[str, Any]:
    """The first line as an object; of a line longer than the head, its keys before the turns."""
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
