"""The tasks as a workload: sessions for the simulator, and what live agents work on."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from marsbench.agents.task import WORKSPACE, ScriptedReply
from marsbench.core import Session, SharedPrefix, ToolCall, Turn
from marsbench.errors import ConfigError
from marsbench.trace.workload import SPLITS
from workloads.tasks.mutators import Mutation
from workloads.tasks.packages import ENV, PACKAGES, Package

FOLDER = Path(__file__).resolve().parent
MADE = FOLDER / "made"
PREFIX_TOKENS = 8100
"""System prompt and tool descriptions of OpenHands' default agent, by their length."""
RESULT_TOKENS = 220
"""Of a tool's output: what live runs of these tasks show in the mean."""
SHELL_S = 0.15
"""Of a command that starts no tests."""
EDIT_S = 0.01

INSTRUCTION = """\
The repository in {workspace} is {summary}. Its test suite fails: a bug was introduced in the source under \
src/. Find it and repair it with the smallest change, without touching the tests. The suite runs with

    {test}

Finish when the whole suite passes{build}."""


@dataclass(frozen=True, slots=True)
class RepositoryTask:
    """One package with one bug."""

    task_id: str
    package: Package
    file: str
    mutation: Mutation
    failing: Sequence[str]
    script: Sequence[ScriptedReply]

    @property
    def instruction(self) -> str:
        """What the agent is asked to do."""
        build = self.package.build
        return INSTRUCTION.format(
            workspace=WORKSPACE,
            summary=self.package.summary,
            test=self.package.test,
            build=f" and `{build}` works" if build else "",
        )

    @property
    def check(self) -> Sequence[str]:
        """The suite and the build, and tests and build as they were."""
        commands = [self.package.test, *([self.package.build] if self.package.build else [])]
        kept = "git diff --quiet HEAD -- tests pyproject.toml build.py"
        return ["bash", "-c", " && ".join([kept, *commands])]

    @property
    def check_timeout_s(self) -> float:
        """Many times what it takes alone."""
        return 900.0

    @property
    def env(self) -> Mapping[str, str]:
        """The suites' own."""
        return ENV

    def build(self, folder: Path) -> None:
        """Copy the package and put the bug in."""
        ignored = shutil.ignore_patterns("__pycache__", ".pytest_cache", "build")
        root = FOLDER / "packages" / self.package.name
        shutil.copytree(root, folder, dirs_exist_ok=True, ignore=ignored)
        (folder / ".gitignore").write_text(
            "__pycache__/\n.pytest_cache/\nbuild/\n", encoding="utf-8"
        )
        path = folder / self.file
        path.write_text(self.mutation.apply(path.read_text(encoding="utf-8")), encoding="utf-8")

    def session(self, session_id: str) -> Session:
        """What the script asks of an engine and of tools, for the simulator."""
        turns = []
        new = len(self.instruction) // 4
        for step in self.script:
            calls = step.message["tool_calls"]
            tools = tuple(self._tool(call["function"]) for call in calls)
            last = calls[0]["function"]["name"] == "finish"
            turns.append(
                Turn(
                    new_input_tokens=new,
                    output_tokens=step.output_tokens,
                    resent_output=0.5,
                    tools=() if last else tools,
                )
            )
            new = RESULT_TOKENS
        prefix = SharedPrefix("openhands", PREFIX_TOKENS)
        return Session(session_id, tuple(turns), agent="openhands", shared_prefix=prefix)

    def _tool(self, function: Mapping[str, str]) -> ToolCall:
        name = function["name"]
        arguments = json.loads(function["arguments"])
        if name != "terminal":
            return ToolCall(name, "edit", EDIT_S, EDIT_S, result_tokens=RESULT_TOKENS)
        command = str(arguments["command"])
        cpu_s, cores, kind = SHELL_S, 1.0, "shell_read"
        if self.package.build and self.package.build in command:
            cpu_s, kind = self.package.build_cpu_s, "build"
        elif "pytest" in command or "unittest" in command:
            cpu_s, cores, kind = self.package.test_cpu_s, self.package.cores, "test"
        wall_s = cpu_s / cores
        return ToolCall(name, kind, wall_s, cpu_s, cores, RESULT_TOKENS)


class TasksWorkload:
    """All tasks, or those whose tests and build take no more than some CPU seconds."""

    def __init__(self, name: str = "tasks", *, most_cpu_s: float = math.inf) -> None:
        self.name = name
        self._most_cpu_s = most_cpu_s

    @property
    def summary(self) -> str:
        """For the list of workloads."""
        which = (
            "all"
            if self._most_cpu_s == math.inf
            else f"up to {self._most_cpu_s:g} s of CPU a test run"
        )
        return f"repository tasks with shipped scripts ({which}); live with --driver openhands"

    @property
    def provenance(self) -> Mapping[str, str]:
        """How sessions for the simulator are made; live runs measure all of it."""
        return {
            "output_tokens": "stated in the scripts",
            "tools": "stated in the scripts; times measured alone, rounded",
            "new_input_tokens": "assumed: mean length of results",
            "shared_prefix": "derived: length of OpenHands' prompt",
        }

    @cached_property
    def tasks(self) -> Mapping[str, RepositoryTask]:
        """By id, in order."""
        found = [read_task(path) for path in sorted(MADE.glob("*.json"))]
        return {t.task_id: t for t in found if t.package.cpu_s <= self._most_cpu_s}

    def task(self, session_id: str) -> RepositoryTask:
        """See ``TaskSource.task``; ``tasks/ID~2`` is ``ID`` once more."""
        task_id = session_id.rpartition("/")[2].partition("~")[0]
        if task_id not in self.tasks:
            raise ConfigError(f"workload {self.name}: no task is called {task_id!r}")
        return self.tasks[task_id]

    def sessions(self, num: int | None, seed: int, split: str = "all") -> list[Session]:
        """See ``Workload.sessions``."""
        assert split in SPLITS
        ids = list(self.tasks)
        if split != "all":
            ids = ids[0 if split == "tuning" else 1 :: 2]
        random.Random(f"{self.name}/{seed}").shuffle(ids)
        made = []
        for index in range(len(ids) if num is None else num):
            again, place = divmod(index, len(ids))
            session_id = f"{self.name}/{ids[place]}" + (f"~{again + 1}" if again else "")
            made.append(self.task(session_id).session(session_id))
        return made


def read_task(path: Path) -> RepositoryTask:
    """A task from its file."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return RepositoryTask(
        task_id=found["task_id"],
        package=PACKAGES[found["package"]],
        file=found["file"],
        mutation=Mutation(**found["mutation"]),
        failing=tuple(found["failing"]),
        script=tuple(ScriptedReply(s["message"], s["output_tokens"]) for s in found["script"]),
    )


TASKS = TasksWorkload()
QUICK = TasksWorkload("tasks-quick", most_cpu_s=1.0)
MIXED = TasksWorkload("tasks-mixed", most_cpu_s=5.0)
