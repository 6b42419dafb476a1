"""Every error a user can cause, as one tree.

MarsbenchError
├── ConfigError    a flag, an experiment file or a name that does not exist
├── TraceError     a workload file: names file, line and field
├── PolicyError    a policy returned something no engine can do
├── EngineError    an engine that is missing, of the wrong version, or died
└── ResultsError   a run folder that cannot be written or read
"""


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
