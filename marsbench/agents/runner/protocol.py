"""What the driver and a worker say to each other: one JSON object a line, over pipes.

Orders (driver to worker), by their ``op``: ``prepare`` (fields of ``WorkOrder``), then for that
session ``go``, ``judge`` (``command``, ``timeout_s``) and ``kill`` (``why``); without one, ``bye``. The
end of the pipe ends all; if there was no ``bye`` before it, the driver has died and its folder is
removed.
Reports (worker to driver), by their ``said``: ``ready`` (``agent``, ``versions``, ``startup_s``), and
with a ``session`` each: ``prepared`` (``prepare_s``, ``same_path``), ``tool`` (fields of
``runner.tools.ToolRecord``), ``finished`` (fields of ``Finish``), ``judged`` (``passed``, ``output``),
``gone`` (``why``; the agent's process ended before it had finished).
Times are nanoseconds of CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

VERSION = 1
MAX_LINE_BYTES = 64 << 20


@dataclass(frozen=True)
class ContainerOrder:
    """A running container in which an agent's commands run."""

    address: str
    """Of the Docker engine: a socket's path, or HOST:PORT."""
    container: str
    """Its id."""
    pid: int = 0
    """Of its first process, on this machine; 0 = it cannot be seen from here."""


@dataclass(frozen=True)
class WorkOrder:
    """Everything an agent has to know to work on one task."""

    session: str
    """Also what it calls itself in ``x-session-id`` and as its conversation's id: a UUID."""
    workspace: str
    """Folder with the task's files, as the driver sees it."""
    instruction: str
    base_url: str
    """Of the gateway, without /v1."""
    model: str
    api_key: str
    mount_at: str = ""
    """Where the agent sees its workspace (a mount of its own); empty = where it is."""
    limit_mib: int = 0
    """Size of the workspace where it is mounted; 0 = as much as the disk has."""
    cpus: tuple[int, ...] = ()
    """Processors of its tools; empty = all."""
    max_turns: int = 100
    tool_timeout_s: float = 600.0
    """A call that takes longer is killed."""
    trajectory: str = ""
    """File that takes the whole trajectory (ATIF) at the end; empty = none."""
    env: dict[str, str] = field(default_factory=dict)
    """For the agent and its tools."""
    container: ContainerOrder | None = None
    """Where commands run; None = here."""

    @classmethod
    def read(cls, message: dict[str, Any]) -> WorkOrder:
        """From a ``prepare`` message; names of a later version are left out."""
        known = {entry.name for entry in fields(cls)}
        given = {name: value for name, value in message.items() if name in known}
        inner = message.get("container")
        container = ContainerOrder(**inner) if inner else None
        return cls(**given | {"cpus": tuple(message.get("cpus", ())), "container": container})

    def message(self) -> dict[str, Any]:
        """As a ``prepare`` message."""
        return {"op": "prepare", **asdict(self)}


@dataclass(frozen=True)
class Finish:
    """How an agent ended by itself."""

    ok: bool
    """It says that it is done."""
    reason: str
    """What it said, or why it could not go on."""
    turns: int
    end_ns: int
    cpu_s: float = 0.0
    """CPU time of the agent itself, without its tools."""
    peak_bytes: int = 0
    """Most memory of the agent itself."""


def encode(message: dict[str, Any]) -> bytes:
    """One line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """The object of a line."""
    found = json.loads(line)
    if not isinstance(found, dict):
        raise TypeError(f"expected a JSON object, got {line[:80]!r}")
    return found


class Lines:
    """Takes bytes as they come and gives whole lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Messages that ``data`` completes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            raise ValueError("a message has no end")
        return [decode(line) for line in lines if line]
