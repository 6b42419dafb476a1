"""Tells generations of SWE-agent trajectories apart, and SWE-smith's from the others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from marsbench.errors import TraceError
from marsbench.trace import io
from marsbench.trace.importer import TraceSample
from workloads.rows import Row, sampled_files

_OLD_KEPT_OBSERVATIONS = 5
"""What 0.x kept whole by default."""
_SMITH_INSTANCE = re.compile(r"[\w.-]+__[\w.-]+\.[0-9a-f]{8}\.\w+")
_SMITH_TEXT = re.compile(
    rb'"environment":\s*"[\w.-]+__[\w.-]+\.[0-9a-f]{8}\.\w+|swesmith\.x86_64\.|"swesmith/'
)


def is_swe_smith(sample: TraceSample) -> bool:
    """Tell whether trajectories come from SWE-smith's synthetic tasks.

    Their instances are named OWNER__REPO.COMMIT8.KIND (file name or ``environment``) and run in
    swesmith images (``replay_config``), which 1.x writes at the end of the file.
    """
    files = sampled_files(sample)
    return bool(files) and all(_smith_file(path, head) for path, head in files)


def _smith_file(path: Path, head: bytes) -> bool:
    if _SMITH_INSTANCE.match(path.name):
        return True
    return bool(_SMITH_TEXT.search(head) or _SMITH_TEXT.search(_tail(path)))


def _tail(path: Path) -> bytes:
    """Return the last 64 KiB or more of content, or nothing if the file cannot be read."""
    tail = b""
    try:
        with io.open_binary(path) as stream:
            while block := stream.read(io.HEAD_BYTES):
                tail = tail[-io.HEAD_BYTES :] + block
    except TraceError:
        return b""
    return tail


def kept_observations(row: Row) -> tuple[int | None, bool]:
    """Return how many observations are kept whole (None for all), and whether the file is of
    generation 0.x.
    """
    config = row.value.get("replay_config")
    if config is None:
        first = row.items("history")[:1]
        old = bool(first) and "message_type" not in first[0]
        return (_OLD_KEPT_OBSERVATIONS if old else None), old
    if isinstance(config, str):
        try:
            config = msgspec.json.decode(config)
        except msgspec.DecodeError as error:
            raise row.error(f"not JSON ({error})", "replay_config") from error
    return _configured(config), False


def _configured(config: Any) -> int | None:
    agent = config.get("agent") if isinstance(config, dict) else None
    if not isinstance(agent, dict):
        return None
    processors = [agent.get("history_processor"), *(agent.get("history_processors") or ())]
    for processor in processors:
        if isinstance(processor, dict) and processor.get("type") == "last_n_observations":
            return int(processor.get("n") or _OLD_KEPT_OBSERVATIONS)
    return None
