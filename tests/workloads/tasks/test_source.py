"""The shipped tasks are what their seeds and scripts say, and can be worked on."""

from __future__ import annotations

import json

import pytest

from marsbench.agents.task import WORKSPACE, TaskSource
from marsbench.errors import ConfigError
from workloads.tasks.make import drawn, encoded, rescripted
from workloads.tasks.packages import PACKAGES
from workloads.tasks.source import FOLDER, MADE, MIXED, QUICK, TASKS

PATHS = sorted(MADE.glob("*.json"))


def test_there_are_enough_tasks():
    """At least 24, some of every package, and quick ones among them."""
    assert len(TASKS.tasks) >= 24
    assert {task.package.name for task in TASKS.tasks.values()} == set(PACKAGES)
    assert 8 <= len(QUICK.tasks) < len(MIXED.tasks) < len(TASKS.tasks)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_task_is_what_its_seed_says(path):
    """The bug is one that the seed draws in today's package, and the script follows from it."""
    made = json.loads(path.read_text(encoding="utf-8"))
    task = TASKS.tasks[made["task_id"]]
    assert (made["file"], task.mutation) in list(drawn(task.package, made["seed"]))
    assert encoded(rescripted(made)) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("task_id", list(TASKS.tasks))
def test_script_repairs_what_the_mutation_broke(task_id, tmp_path):
    """Playing back a script's edits gives the package as it was before the bug."""
    task = TASKS.tasks[task_id]
    task.build(tmp_path)
    broken = (tmp_path / task.file).read_text(encoding="utf-8")
    original = (FOLDER / "packages" / task.package.name / task.file).read_text(encoding="utf-8")
    assert broken != original
    for step in task.script:
        function = step.message["tool_calls"][0]["function"]
        given = json.loads(function["arguments"])
        if given.get("command") == "str_replace":
            assert given["path"] == f"{WORKSPACE}/{task.file}"
            assert broken.count(given["old_str"]) == 1
            broken = broken.replace(given["old_str"], given["new_str"])
    assert broken == original
    assert task.script[-1].message["tool_calls"][0]["function"]["name"] == "finish"


def test_sessions_name_their_tasks():
    """A session's id leads to its task, also when tasks are repeated; seeds change the order."""
    assert isinstance(TASKS, TaskSource)
    sessions = TASKS.sessions(2 * len(TASKS.tasks), seed=0)
    assert len({session.session_id for session in sessions}) == 2 * len(TASKS.tasks)
    for session in sessions:
        assert len(session.turns) == len(TASKS.task(session.session_id).script)
    assert [s.session_id for s in TASKS.sessions(8, 0)] != [
        s.session_id for s in TASKS.sessions(8, 1)
    ]
    with pytest.raises(ConfigError, match="no task is called 'nope'"):
        TASKS.task("tasks/nope")


def test_splits_share_no_task():
    """Tuning and reporting work on different tasks."""
    ids = [
        {TASKS.task(s.session_id).task_id for s in TASKS.sessions(None, 0, split)}
        for split in ("tuning", "reporting")
    ]
    assert not ids[0] & ids[1]
    assert ids[0] | ids[1] == set(TASKS.tasks)
