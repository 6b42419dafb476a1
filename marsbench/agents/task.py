"""What a task is: files, an instruction, a check, and the messages that solve it if it has a script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

Message = Mapping[str, Any]
"""An assistant message as the chat API has it, with the tool names of OpenHands."""

WORKSPACE = "{workspace}"
"""Stands for the workspace's path in instructions and scripts."""


@dataclass(frozen=True, slots=True)
class ScriptedReply:
    """One reply of a script."""

    message: Message
    output_tokens: int
    """What the engine generates for it."""


class Task(Protocol):
    """One piece of work for an agent."""

    task_id: str
    instruction: str
    """With WORKSPACE where the path belongs."""
    script: Sequence[ScriptedReply]
    """Empty: only a real model can work on it."""
    check: Sequence[str]
    """Command that exits with 0 if, and only if, the task is solved; run in the workspace."""
    check_timeout_s: float
    env: Mapping[str, str]
    """For the agent's tools and the check."""

    def build(self, folder: Path) -> None:
        """Put the task's files into an empty folder."""
        ...


@runtime_checkable
class ContainerTask(Task, Protocol):
    """Work in a container: its ``build`` puts nothing anywhere, the files come out of the image.

    In ``check`` a leading ``bash`` is the container's.
    """

    image: str
    """With the repository and all that its tests need."""
    folder: str
    """Where the repository is in it."""


@runtime_checkable
class TaskSource(Protocol):
    """A workload that can also be worked on by live agents.

    Ids of its sessions begin with its registered name and a slash.
    """

    def task(self, session_id: str) -> Task:
        """The task behind one of its sessions. Raises ConfigError if there is none."""
        ...
