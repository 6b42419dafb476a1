"""SWE-bench instances are read from a local file, worked on in containers, and judged there."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import pty
import subprocess
import sys
import warnings

import pytest
from agents_cell import SmallTask, reply, run_cell

pytest.importorskip("docker")
pytest.importorskip("datasets")

from docker_engine import running

from marsbench.agents.runner import container_shell
from marsbench.agents.task import ContainerTask, TaskSource
from marsbench.errors import ConfigError
from workloads.swe_bench_tasks.source import VARIABLE, SweBenchTasks, instance

__all__ = ["run_cell"]
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

PATCH = """\
diff --git a/tests/test_add.py b/tests/test_add.py
--- a/tests/test_add.py
+++ b/tests/test_add.py
@@ -2,2 +2,5 @@
 def test_old():
     assert add(0, 0) == 0
+
+def test_new():
+    assert add(2, 3) == 5
"""
ROW = {
    "instance_id": "team__calc-1",
    "repo": "team/calc",
    "problem_statement": "add() subtracts.",
    "test_patch": PATCH,
    "FAIL_TO_PASS": '["tests/test_add.py::test_new"]',
    "PASS_TO_PASS": ["tests/test_add.py::test_old"],
    "image_name": "calc:1",
    "test_cmd": f"{sys.executable} -m pytest -rA -p no:cacheprovider tests/test_add.py",
}


@pytest.fixture(autouse=True)
def collect():
    """What docker-py leaves to the garbage collector is collected here."""
    yield
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """A Docker engine that has the instance's image."""
    repository = tmp_path / "testbed"
    (repository / "tests").mkdir(parents=True)
    (repository / "calc.py").write_text("def add(a, b):\n    return a - b\n")
    (repository / "tests/test_add.py").write_text(
        "from calc import add\ndef test_old():\n    assert add(0, 0) == 0\n"
    )
    (repository / "conftest.py").write_text("")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        subprocess.run([*git, *command], cwd=repository, check=True)
    with running(tmp_path / "docker.sock") as server:
        server.images.add("calc:1")
        server.files["calc:1"] = repository
        monkeypatch.setenv("DOCKER_HOST", f"unix://{server.server_address}")
        yield server


@pytest.fixture
def source(tmp_path, monkeypatch):
    """The instances of a local file."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROW) + "\n")
    monkeypatch.setenv(VARIABLE, str(path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return SweBenchTasks()


def test_rows_become_tasks(source):
    """A row of a local file is a task with its image, its instruction and a session."""
    assert isinstance(source, TaskSource)
    (session,) = source.sessions(1, seed=0)
    task = source.task(session.session_id)
    assert isinstance(task, ContainerTask)
    assert (task.task_id, task.image) == ("team__calc-1", "calc:1")
    assert "add() subtracts." in task.instruction
    again = source.sessions(2, seed=0)[1].session_id
    assert source.task(again) is task
    with pytest.raises(ConfigError, match="no instance is called 'nope'"):
        source.task("swe-bench-tasks/nope")


def test_image_of_a_row_without_one():
    """The published image is named as SWE-bench names it."""
    row = {name: value for name, value in ROW.items() if name != "image_name"}
    assert instance(row).image == "swebench/sweb.eval.x86_64.team_1776_calc-1:latest"


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"problem_statement": ""}, "a row without problem_statement"),
        ({"FAIL_TO_PASS": "test_new"}, "team__calc-1: FAIL_TO_PASS is no list: test_new"),
    ],
)
def test_rows_that_are_none(changed, line):
    """A row that lacks something is named, with what it lacks."""
    with pytest.raises(ConfigError, match=line):
        instance({**ROW, **changed})


def test_a_dataset_that_is_not_there(monkeypatch, tmp_path):
    """One line with the variable that names another one."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.jsonl"))
    with pytest.raises(ConfigError, match=f"cannot be loaded .*set {VARIABLE}"):
        SweBenchTasks().sessions(1, 0)


def scripted(task, *steps):
    """The instance with a script."""
    script = [
        reply("terminal", number, f"Step {number}.", command=command)
        for number, command in enumerate(steps)
    ]
    return SmallContainerTask(
        task.task_id, [*script, reply("finish", len(steps), message="done")], task
    )


class SmallContainerTask(SmallTask):
    """An instance with a script of ours."""

    def __init__(self, task_id, script, inner) -> None:
        super().__init__(task_id, script, inner.instruction, inner.check, env=inner.env)
        self.image, self.folder = inner.image, inner.folder


REPAIR = "sed -i s/a.-.b/a+b/ calc.py"


def test_agents_work_in_the_container(run_cell, engine, source):
    """Commands run there, on files that came out of the image, and the hidden tests judge them."""
    task = source.task("swe-bench-tasks/team__calc-1")
    good = scripted(task, "git log --oneline", REPAIR)
    other = dataclasses.replace(task, task_id="again")
    ran = run_cell([good, scripted(other, "cat calc.py")])
    solved, failed = ran.outcome.results
    assert solved.passed, solved.judge_output
    assert not failed.passed
    assert "not passed: tests/test_add.py::test_new" in failed.judge_output
    assert "1 of 2 tests passed" in failed.judge_output
    assert ran.outcome.left_behind == []
    assert engine.containers == {}
    started = [made for made in engine.created if made["HostConfig"].get("Binds")]
    assert len(started) == 2
    assert all(made["HostConfig"]["NetworkMode"] == "none" for made in started)


def test_without_an_engine(run_cell, source, monkeypatch, tmp_path):
    """One clear line, before any agent is started."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing.sock")
    task = scripted(source.task("swe-bench-tasks/team__calc-1"))
    with pytest.raises(ConfigError, match=r"no Docker engine answers here .*--workload tasks"):
        run_cell([task])


def test_shell_with_a_terminal(engine, tmp_path):
    """Agents that type into a shell get a terminal in the container, and its exit status."""
    created = container(engine)
    inside, outside = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, container_shell.__file__, engine.server_address, created, str(tmp_path), "-i"],
        stdin=outside, stdout=outside, stderr=outside, start_new_session=True,
        env={**os.environ, "PS1": "at> ", "HOME": str(tmp_path)},
    )  # fmt: skip
    os.close(outside)
    seen = b""
    os.write(inside, b"echo $((6 * 7)); test -t 0 && exit 5\n")
    while True:
        try:
            part = os.read(inside, 4096)
        except OSError:
            break
        if not part:
            break
        seen += part
    assert b"42" in seen
    assert process.wait() == 5
    os.close(inside)


def test_shell_without_a_terminal(engine, tmp_path):
    """Input goes in, output and status come out; an engine that refuses is a status of its own."""

    def run(name, *arguments, given=""):
        command = [sys.executable, container_shell.__file__, engine.server_address, name]
        return subprocess.run(
            [*command, str(tmp_path), *arguments], input=given, capture_output=True, text=True,
            check=False,
        )  # fmt: skip

    done = run(container(engine), "-c", "cat; exit 3", given="hello\n")
    assert (done.returncode, done.stdout) == (3, "hello\n")
    refused = run("nowhere", "-c", "true")
    assert refused.returncode == container_shell.FAILED
    assert "No such container: nowhere" in refused.stderr


def container(engine) -> str:
    """A running container."""
    import docker

    client = docker.DockerClient(base_url=f"unix://{engine.server_address}", timeout=20)
    made = client.containers.create("calc:1", ["sleep", "infinity"])
    client.close()
    return made.id
