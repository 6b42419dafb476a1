"""Checks a whole trace in one pass and lists, line by line, what is wrong with it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from marsbench.core import Session
from marsbench.errors import TraceError
from marsbench.trace import io
from marsbench.trace.faults import Faults
from marsbench.trace.schema import decode_session, session_ids
from marsbench.trace.source import CanonicalImporter, open_trace


@dataclass(frozen=True, slots=True)
class Problem:
    """Is one thing to repair in a trace."""

    line: int | None
    field: str
    problem: str
    path: str = ""
    """The file, where a directory is checked."""

    def __str__(self) -> str:
        line = f"line {self.line}" if self.line else ""
        where = ", ".join(part for part in (self.path, line) if part)
        return ": ".join(part for part in (where, self.field, self.problem) if part)


@dataclass(frozen=True, slots=True)
class Report:
    """Says what a trace holds and what is wrong with it."""

    path: str
    format: str
    num_sessions: int
    """Sessions without a problem, sub-agents not counted."""
    num_turns: int
    num_tool_calls: int
    problems: tuple[Problem, ...]
    num_problems: int
    """May exceed len(problems), which is limited."""

    @property
    def ok(self) -> bool:
        """True if the trace can be replayed as it is."""
        return self.num_problems == 0

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


class _Counter:
    """Counts good sessions and keeps the first problems; its memory grows by 8-byte ids only."""

    def __init__(self, max_problems: int) -> None:
        self.max_problems = max_problems
        self.problems: list[Problem] = []
        self.num_problems = 0
        self.totals = [0, 0, 0]  # sessions, turns, tool calls
        self._seen: set[bytes] = set()

    def add(self, session: Session, line: int | None) -> None:
        for session_id in session_ids(session):
            digest = hashlib.blake2b(session_id.encode(), digest_size=8).digest()
            if digest in self._seen:
                problem = f"{session_id!r} stands earlier in the file; give each session its own id"
                self.fail(Problem(line, "session_id", problem))
                return
            self._seen.add(digest)
        self.totals[0] += 1
        for num_tools in _tools_by_turn(session):
            self.totals[1] += 1
            self.totals[2] += num_tools

    def fail(self, problem: Problem) -> None:
        self.num_problems += 1
        if len(self.problems) < self.max_problems:
            self.problems.append(problem)


def validate(path: Path, format_name: str | None = None, max_problems: int = 20) -> Report:
    """Read a trace to its end and report up to ``max_problems`` problems.

    A canonical trace is checked line by line, past each bad line. A trace of another format is
    read as with ``--on-error skip``: past each session, line or file that cannot be read. Raises
    TraceError if the format is not recognised.
    """
    tolerance = Faults("skip")
    importer, sessions = open_trace(path, format_name, tolerance)
    counter = _Counter(max_problems)
    try:
        if isinstance(importer, CanonicalImporter) and not path.is_dir():
            _check_lines(path, counter)
        else:
            for session in sessions:
                counter.add(session, None)
    except TraceError as error:
        counter.fail(_problem(error, path))
    for fault in tolerance.errors():
        counter.fail(_problem(fault, path))
    if not counter.totals[0] and not counter.num_problems:
        counter.fail(Problem(None, "", "has no sessions; give a trace with at least one"))
    num_sessions, num_turns, num_tool_calls = counter.totals
    return Report(
        path=str(path),
        format=importer.name,
        num_sessions=num_sessions,
        num_turns=num_turns,
        num_tool_calls=num_tool_calls,
        problems=tuple(counter.problems),
        num_problems=counter.num_problems,
    )


def _problem(error: TraceError, path: Path) -> Problem:
    """Return an error as a problem, which names its file if that is not the file that was given."""
    where = error.path if error.path != str(path) else ""
    return Problem(error.line, error.field, error.problem, where)


def _check_lines(path: Path, counter: _Counter) -> None:
    for number, line in io.read_lines(path):
        try:
            session = decode_session(line, path=str(path), number=number)
        except TraceError as error:
            counter.fail(Problem(number, error.field, error.problem))
        else:
            counter.add(session, number)


def _tools_by_turn(session: Session) -> Iterator[int]:
    """Yield the number of tool calls of each turn of a session and its sub-agents."""
    for turn in session.turns:
        yield len(turn.tools)
        for child in turn.children:
            yield from _tools_by_turn(child)
