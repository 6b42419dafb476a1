"""SWE-bench instances as a workload: rows of a dataset, each with the image in which its tests run."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from marsbench.agents.task import WORKSPACE, ScriptedReply
from marsbench.core import Session, Turn
from marsbench.errors import ConfigError
from marsbench.extras import require
from marsbench.trace.workload import SPLITS, original_session
from workloads.swe_bench_tasks.judge import judge_command, test_files

NAME = "swe-bench-tasks"
DATASET = "SWE-bench/SWE-bench_Verified"
SPLIT = "test"
VARIABLE = "MARSBENCH_SWE_BENCH"
"""Environment variable with another dataset of the same columns: its name, or a local file."""
IMAGE = "swebench/sweb.eval.x86_64.{}:latest"
LOADERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
NEEDED = ("instance_id", "repo", "problem_statement", "test_patch", "FAIL_TO_PASS", "PASS_TO_PASS")
CHARS_PER_TOKEN = 4

INSTRUCTION = """\
The repository {repo} is in {workspace}. Change its source, without touching its tests, so that this is \
resolved:

{problem}

Commands run in the repository's own environment. Finish when you are done; hidden tests are run then."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One row of the dataset (``marsbench.agents.task.ContainerTask``)."""

    task_id: str
    repo: str
    problem: str
    image: str
    check: Sequence[str]
    script: Sequence[ScriptedReply] = ()
    folder: str = "/testbed"
    check_timeout_s: float = 1800.0

    @property
    def env(self) -> Mapping[str, str]:
        """Names the images' file that makes the repository's environment the current one."""
        return {"BASH_ENV": "$HOME/.bashrc"}

    @property
    def instruction(self) -> str:
        """What the agent is asked to do."""
        return INSTRUCTION.format(repo=self.repo, workspace=WORKSPACE, problem=self.problem)

    def build(self, folder: Path) -> None:
        """Nothing: the files come out of the image."""


class SweBenchTasks:
    """The instances of a dataset. Loaded when they are asked for."""

    name = NAME
    summary = (
        "SWE-bench instances in their containers; live with --driver openhands, a model and Docker"
    )
    provenance: Mapping[str, str] = MappingProxyType(
        {"new_input_tokens": "derived: length of the task's text; what follows is up to the agent"}
    )

    @cached_property
    def tasks(self) -> Mapping[str, Instance]:
        """By id, in the dataset's order. Raises ConfigError if it cannot be read."""
        return {task.task_id: task for task in map(instance, rows(os.environ.get(VARIABLE, "")))}

    def task(self, session_id: str) -> Instance:
        """See ``TaskSource.task``."""
        task_id = original_session(session_id).partition("/")[2]
        if task_id not in self.tasks:
            raise ConfigError(f"workload {NAME}: no instance is called {task_id!r}")
        return self.tasks[task_id]

    def sessions(self, num: int | None, seed: int, split: str = "all") -> list[Session]:
        """See ``Workload.sessions``; what an agent will do is not known, so each has one turn."""
        assert split in SPLITS
        ids = list(self.tasks)
        if split != "all":
            ids = ids[0 if split == "tuning" else 1 :: 2]
        if not ids:
            raise ConfigError(f"workload {NAME}: the dataset has no instances for split {split}")
        random.Random(f"{NAME}/{seed}").shuffle(ids)
        made = []
        for index in range(len(ids) if num is None else num):
            again, place = divmod(index, len(ids))
            tokens = len(self.tasks[ids[place]].instruction) // CHARS_PER_TOKEN
            session_id = f"{NAME}/{ids[place]}" + (f"~{again + 1}" if again else "")
            made.append(Session(session_id, (Turn(tokens, 1),), agent="openhands"))
        return made


def rows(given: str) -> list[dict[str, Any]]:
    """Rows of a dataset by name, or of a local file; ConfigError if there are none to be had."""
    require("datasets", f"workload {NAME}")
    import datasets

    try:
        if given and Path(given).suffix in LOADERS:
            loader = LOADERS[Path(given).suffix]
            found = datasets.load_dataset(loader, data_files=given, split="train")
        else:
            found = datasets.load_dataset(given or DATASET, split=SPLIT)
    except Exception as error:  # noqa: BLE001 - whatever the hub, its cache, or a parser raises
        text = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"workload {NAME}: dataset {given or DATASET} cannot be loaded ({text}); set {VARIABLE} to a "
            f"local {', '.join(LOADERS)} file or to the name of a dataset that is cached"
        ) from None
    return [dict(row) for row in found]


def instance(row: Mapping[str, Any]) -> Instance:
    """A row as a task; ConfigError says which column is missing or wrong."""
    missing = [name for name in NEEDED if not row.get(name) and name != "PASS_TO_PASS"]
    if missing:
        raise ConfigError(f"workload {NAME}: a row without {missing[0]}: {str(row)[:100]}")
    task_id = str(row["instance_id"])
    image = row.get("image_name") or row.get("docker_image")
    return Instance(
        task_id=task_id,
        repo=str(row["repo"]),
        problem=str(row["problem_statement"]),
        image=str(image or IMAGE.format(task_id.lower().replace("__", "_1776_"))),
        check=judge_command(
            str(row["repo"]),
            str(row["test_patch"]),
            [*_names(row, "FAIL_TO_PASS"), *_names(row, "PASS_TO_PASS")],
            test_files(str(row["test_patch"])),
            command=_command(row),
        ),
    )


def _command(row: Mapping[str, Any]) -> str:
    """The row's own test command, as SWE-rebench and SWE-Gym have one; else empty."""
    settings = row.get("install_config") or {}
    if isinstance(settings, str):
        settings = json.loads(settings)
    return str(row.get("test_cmd") or settings.get("test_cmd") or "")


def _names(row: Mapping[str, Any], column: str) -> list[str]:
    """A list of tests, which some datasets write as text."""
    found = row.get(column) or []
    try:
        names = json.loads(found) if isinstance(found, str) else list(found)
    except ValueError:
        names = None
    if not isinstance(names, list):
        raise ConfigError(
            f"workload {NAME}: {row['instance_id']}: {column} is no list: {str(found)[:80]}"
        )
    return [str(name) for name in names]


TASKS = SweBenchTasks()
