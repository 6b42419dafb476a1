"""The kinds of agents a worker can run: one file each, found by name."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from marsbench.agents.runner.protocol import WorkOrder
from marsbench.agents.runner.tools import ToolRunner

AGENTS = {
    "openhands": "marsbench.agents.runner.openhands_sdk",
    "openhands-cli": "marsbench.agents.runner.openhands_cli",
    "mini-swe-agent": "marsbench.agents.runner.mini_swe",
    "plain": "marsbench.agents.runner.plain",
}
"""Name -> module with ``KIND``."""


@dataclass(frozen=True)
class Place:
    """What an agent is given besides its order."""

    order: WorkOrder
    seen: Path
    """The workspace, as the agent sees it."""
    tools: ToolRunner
    shell: tuple[str, ...] = ("bash",)
    """Command of a shell in which the task's commands run; takes -i, or -c and a command."""

    def shell_file(self) -> str:
        """The shell as one executable file; empty if it is the machine's own."""
        if self.shell == ("bash",):
            return ""
        path = Path(self.order.env.get("TMPDIR") or "/tmp", f"shell-{self.order.session}")  # noqa: S108
        path.write_text(f'#!/bin/sh\nexec {shlex.join(self.shell)} "$@"\n', encoding="utf-8")
        path.chmod(0o700)
        return str(path)


class Agent(Protocol):
    """One agent with one task."""

    turns: int
    """Replies of the model so far."""

    def prepare(self) -> None:
        """Everything that can be done before the task arrives: start the shell, read the prompt."""
        ...

    def run(self) -> tuple[bool, str]:
        """Work until done; whether it says that it is done, and what it says."""
        ...

    def steps(self) -> list[dict[str, Any]]:
        """What was said and done so far, as steps of a trajectory (ATIF)."""
        ...

    def close(self) -> None:
        """End its shell."""
        ...


@dataclass(frozen=True)
class AgentKind:
    """One kind of agent."""

    name: str
    packages: tuple[str, ...]
    """Whose versions are recorded."""
    env: dict[str, str]
    """Set before anything of it is imported."""
    load: Callable[[], None]
    """Import all that agents will need, before they are forked off."""
    make: Callable[[Place], Agent]


def find_kind(name: str) -> AgentKind:
    """The kind called ``name``; KeyError if there is none."""
    kind = importlib.import_module(AGENTS[name]).KIND
    assert isinstance(kind, AgentKind)
    return kind
