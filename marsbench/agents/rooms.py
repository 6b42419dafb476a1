"""Workspaces of a cell's agents: made before time begins, gone after it whatever happens."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from marsbench.agents.task import ContainerTask, Task
from marsbench.errors import EngineError

if TYPE_CHECKING:
    from marsbench.agents.containers import Containers

SEEN_AT = "/mnt/workspace"
"""Where agents see their workspace, if each can have a mount of its own. /mnt is on every Linux, so that
nothing has to be made outside the run's own folder."""
NAME = Path(SEEN_AT).name


class Rooms:
    """A temporary folder with one room for each session. Use as a context manager."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="marsbench-agents-"))
        self.home = self.folder / "home"
        self.home.mkdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.remove()

    def build(self, index: int, task: Task) -> Path:
        """A workspace with the task's files, as a git repository; returns its path."""
        workspace = self.folder / f"s{index}" / NAME
        workspace.mkdir(parents=True)
        task.build(workspace)
        env = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.home), **_AUTHOR}
        for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "start"]):
            _git(command, workspace, env)
        return workspace

    def take(self, index: int, task: ContainerTask, containers: Containers) -> Path:
        """A workspace with the repository of a task's image, whose history it keeps."""
        workspace = self.folder / f"s{index}" / NAME
        workspace.mkdir(parents=True)
        containers.copy_out(task, workspace)
        return workspace

    def trajectory(self, index: int) -> Path:
        """Where an agent writes its trajectory."""
        return self.folder / f"s{index}" / "trajectory.json"

    def remove(self) -> bool:
        """Remove everything; whether nothing is left."""
        shutil.rmtree(self.folder, ignore_errors=True)
        return not self.folder.exists()


_AUTHOR = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    **{
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (
            ("NAME", "tasks"),
            ("EMAIL", "tasks@localhost"),
            ("DATE", "2026-01-01T00:00:00Z"),  # the same commit in every run
        )
    },
}


def _git(command: list[str], folder: Path, env: Mapping[str, str]) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - our own commands
            ["git", *command],  # noqa: S607 - the user's git
            cwd=folder, env=dict(env), capture_output=True, check=False, text=True,
        )  # fmt: skip
    except FileNotFoundError:
        raise EngineError("tasks of live agents need git, which is not installed") from None
    if done.returncode:
        raise EngineError(f"git {command[0]} in a task's workspace: {done.stderr.strip()[:300]}")
