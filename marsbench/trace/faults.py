"""Decides what becomes of rows that cannot be read: stop, leave them out, or repair them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from marsbench.core import Session
from marsbench.errors import TraceError
from marsbench.registry import unknown

MODES = ("fail", "skip", "repair")
SESSION_KEYS = ("session_id", "sessionId", "traceId", "trace_id")
"""Fields by which rows of one session are known to belong together, in this order."""

MENDED_FIELDS = frozenset({
    "arrival_s", "wall_s", "cpu_s", "think_s", "new_input_tokens", "result_tokens", "tokens",
})  # fmt: skip
"""Fields of the canonical format whose negative values ``repair`` reads as zero."""

Place = tuple[str, int | None]
"""File and line; no line for a file that holds one value."""


@dataclass(slots=True)
class Faults:
    """Holds the faults of one reading and decides what is done about them.

    ``fail`` lets the first fault stop the reading. ``skip`` leaves out the session that a faulty
    row names, else the row, the line or the file. ``repair`` counts a negative number as zero
    (clocks that went back) and leaves out what still cannot be read.
    """

    mode: str = "fail"
    left_out: dict[Place | str, TraceError] = field(default_factory=dict)
    """What is left out, a place or the id of a session, and the fault that caused it."""
    repaired: dict[tuple[str, int | None, str, float], None] = field(default_factory=dict)
    """File, line, field and value of each number that was read as zero."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise unknown("--on-error mode", self.mode, MODES)

    @property
    def tolerant(self) -> bool:
        """Tell whether reading goes on after a fault."""
        return self.mode != "fail"

    def leaves_out(self, path: str, line: int | None, value: dict[str, Any] | None = None) -> bool:
        """Tell whether a place, or the session that its row names, is left out."""
        if not self.left_out:
            return False
        return (path, line) in self.left_out or session_of(value) in self.left_out

    def note(self, error: TraceError) -> None:
        """Leave out the place of an error that the reader has stepped over; raise it if it must stop."""
        if not self.tolerant:
            raise error
        self.left_out.setdefault((error.path, error.line), error)

    def exclude(self, error: TraceError, session_id: str | None) -> None:
        """Leave out what stopped a pass: its session, else its line, else its file.

        Raises the error if all that is left out already.
        """
        places: list[Place | str] = [(error.path, error.line), (error.path, None)]
        for key in [session_id, *places] if session_id else places:
            if error.path and key not in self.left_out:
                self.left_out[key] = error
                return
        raise error

    def nonnegative(self, number: float, path: str, line: int | None, name: str) -> float | None:
        """Return zero for a negative number that may be repaired, and None if it may not be."""
        if self.mode != "repair" or not number < 0 or number == float("-inf"):
            return None
        self.repaired[path, line, name, number] = None
        return 0.0

    def summary(self) -> str:
        """Return one line for people, which is empty if there was no fault."""
        parts = []
        if self.left_out:
            first = next(iter(self.left_out.values()))
            parts.append(f"left out {self.counts()['left_out']:,} (first: {first})")
        if self.repaired:
            path, line, name, value = next(iter(self.repaired))
            where = ":".join(str(part) for part in (path, line) if part)
            parts.append(
                f"read {len(self.repaired):,} negative numbers as 0 (first: {where}: {name}: {value})"
            )
        return "; ".join(parts)

    def counts(self) -> dict[str, int]:
        """Return how much was left out and repaired, as ``trace stats`` shows it."""
        return {"left_out": len(self.left_out), "repaired": len(self.repaired)}

    def errors(self) -> list[TraceError]:
        """Return the faults that were found, in their order."""
        return list(self.left_out.values())


_STRICT = Faults()
_CURRENT: ContextVar[Faults] = ContextVar("faults", default=_STRICT)


def current() -> Faults:
    """Return what the reading in progress does about faults; without one, the first fault stops it."""
    return _CURRENT.get()


def session_of(value: dict[str, Any] | None) -> str | None:
    """Return the id of the session that a row names, or None if it names none."""
    for key in SESSION_KEYS if value else ():
        found = value.get(key) if value else None
        if isinstance(found, str) and found:
            return found
    return None


def mend(line: bytes, path: str, number: int) -> bytes | None:
    """Return a line with zero for its negative times and sizes, or None if it may not be mended."""
    if current().mode != "repair":
        return None
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    _mend_value(row, path, number)
    return msgspec.json.encode(row)


def _mend_value(value: object, path: str, number: int) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if key in MENDED_FIELDS and isinstance(item, int | float) and item < 0:
                current().nonnegative(item, path, number, key)
                value[key] = 0
            else:
                _mend_value(item, path, number)
    elif isinstance(value, list):
        for item in value:
            _mend_value(item, path, number)


def read(
    start: Callable[[], Iterator[Session]],
    faults: Faults,
    session_at: Callable[[Path, int | None], str | None],
) -> Iterator[Session]:
    """Yield the sessions of ``start()`` without those that a fault concerns.

    Importers look at a trace more than once and cannot go on after an error. So a tolerant
    reading first goes through the trace until no error is left, each time without what the last
    error named, and only then yields sessions. ``session_at`` finds the session of a place.
    """
    if faults.tolerant:
        while not _passes(start, faults, session_at):
            pass
        faults.repaired.clear()  # counted again below, without what is left out
    yield from _under(start, faults)


def _passes(
    start: Callable[[], Iterator[Session]],
    faults: Faults,
    session_at: Callable[[Path, int | None], str | None],
) -> bool:
    """Tell whether a whole pass raises no error; if it raises one, what that names is left out."""
    try:
        for _ in _under(start, faults):
            pass
    except TraceError as error:
        faults.exclude(error, session_at(Path(error.path), error.line))
        return False
    return True


def _under(start: Callable[[], Iterator[Session]], faults: Faults) -> Iterator[Session]:
    """Yield sessions that are read while ``faults`` are the current ones; the consumer does not see them."""
    with _active(faults):
        sessions = start()
    while True:
        with _active(faults):
            session = next(sessions, None)
        if session is None:
            return
        yield session


@contextmanager
def _active(faults: Faults) -> Iterator[None]:
    token = _CURRENT.set(faults)
    try:
        yield
    finally:
        _CURRENT.reset(token)
