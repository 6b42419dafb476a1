"""What a gateway logs, as text or as one JSON object a line. Prompts and replies are never logged."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from marsbench.errors import ConfigError

FORMATS = ("text", "json")


def log_to_stderr(form: str) -> None:
    """Log everybody's warnings and the gateway's accesses to stderr, in one of FORMATS."""
    if form not in FORMATS:
        raise ConfigError(f"--log-format {form!r}: choose one of {', '.join(FORMATS)}")
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonLines()
        if form == "json"
        else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("marsbench.gateway.access").setLevel(logging.INFO)


class JsonLines(logging.Formatter):
    """A log record as a JSON object; the access log's own fields are fields of it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        at = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        message = record.getMessage()
        if record.name == "marsbench.gateway.access":
            line |= json.loads(message)
        else:
            line["message"] = message
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
