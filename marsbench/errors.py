"""Every error a user can cause, as one tree.

MarsbenchError
├── ConfigError    a flag, an experiment file or a name that does not exist
├── TraceError     a workload file: names file, line and field
├── PolicyError    a policy returned something no engine can do
├── EngineError    an engine that is missing, of the wrong version, or died
└── ResultsError   a run folder that cannot be written or read
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePath
from traceback import walk_tb
from types import FrameType


class MarsbenchError(Exception):
    """Base of all errors that are reported in one line and exit with status 2."""


class ConfigError(MarsbenchError):
    """A flag, experiment file or name is wrong."""


class TraceError(MarsbenchError):
    """A workload file cannot be read; the message names file, line and field."""

    def __init__(
        self, problem: str, *, path: str = "", line: int | None = None, field: str = ""
    ) -> None:
        where = ":".join(part for part in (path, str(line) if line else "") if part)
        parts = [part for part in (where, field, problem) if part]
        super().__init__(": ".join(parts))
        self.problem = problem
        self.path = path
        self.line = line
        self.field = field


class PolicyError(MarsbenchError):
    """A policy broke its protocol."""


class EngineError(MarsbenchError):
    """An engine is missing, has an unsupported version, or failed."""


class ResultsError(MarsbenchError):
    """A run folder cannot be written or read."""


def raised_in(error: BaseException, theirs: Callable[[FrameType], bool]) -> str:
    """One line about an exception: its type, its text, and the innermost place that is ``theirs``,
    for whoever wrote the code there. Empty if none of the places is.
    """
    places = [(frame.f_code, line) for frame, line in walk_tb(error.__traceback__) if theirs(frame)]
    if not places:
        return ""
    code, line = places[-1]
    text = str(error).partition("\n")[0]
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"{what} ({PurePath(code.co_filename).name}:{line}, in {code.co_name})"
