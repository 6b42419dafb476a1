"""CONTRIBUTING.md tells the truth: each part it says can be added is added, and works."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SKELETON = ROOT / "tests" / "skeleton" / "skeleton"
PARTS = ("policy", "workload", "importer", "engine", "metric", "figure", "command")


class Installed:
    """A copy of the skeleton package, announced by an entry point, and the command line beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.package = folder / "skeleton"
        shutil.copytree(SKELETON, self.package, ignore=shutil.ignore_patterns("__pycache__"))
        announced = folder / "skeleton-1.0.dist-info"
        announced.mkdir()
        (announced / "METADATA").write_text("Metadata-Version: 2.1\nName: skeleton\nVersion: 1.0\n")
        (announced / "entry_points.txt").write_text("[marsbench.plugins]\nskeleton = skeleton\n")

    def change(self, part: str, old: str, new: str) -> None:
        """Spoil a part of the copy."""
        path = self.package / f"{part}.py"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """Status, stdout and stderr of a command."""
        search = os.pathsep.join([str(self.folder), str(ROOT)])
        done = subprocess.run(
            [sys.executable, "-m", "marsbench", *map(str, arguments)],
            cwd=self.folder, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": search, "XDG_CACHE_HOME": str(self.folder)},
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    def run(self, *more: str, system: str = "skeleton-lifo,vllm") -> tuple[int, str, str]:
        """A small run on parts of the package."""
        arguments = ["run", "-w", "skeleton-pairs", "--rate", "1", "-n", "5", "--out", "out"]
        return self(*arguments, "--quiet", "--no-cache", "-s", system, *more)


@pytest.fixture
def marsbench(tmp_path):
    return Installed(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The package, and its summary.json after a run with its policy, workload, engine and metric."""
    installed = Installed(tmp_path_factory.mktemp("plugin"))
    code, _, err = installed.run("--engine", "skeleton-sim")
    assert code == 0, err
    return installed, json.loads((installed.folder / "out/summary.json").read_text())


def test_every_part_is_listed(finished):
    """`marsbench list` and `marsbench --help` show the parts of a plug-in package with their lines."""
    installed, _ = finished
    _, out, _ = installed("list")
    for line in (
        "skeleton-lifo .* latest session first",
        "skeleton-pairs .* sessions of two turns",
        "skeleton-csv .* lines of session",
        "skeleton-sim .* the simulator under another name",
        r"skeleton_short_turns .* \[1\] Turns with at most 50 output tokens",
        "skeleton_sessions .* How many sessions did each system complete",
    ):
        assert re.search(line, out), line
    _, out, _ = installed("--help")
    assert re.search("skeleton .* Say hello", out)


def test_policy_workload_and_engine_run(finished):
    """A run names them as it names those that come with marsbench, and its sessions complete."""
    _, summary = finished
    cells = summary["cells"]
    assert [cell["system"] for cell in cells] == ["skeleton-lifo", "vllm"]
    assert {cell["workload"] for cell in cells} == {"skeleton-pairs"}
    assert {cell["engine"] for cell in cells} == {"skeleton-sim"}
    assert all(cell["sessions"]["completed"] == 5 for cell in cells)


def test_metric_is_in_the_summary(finished):
    """Five sessions of two turns with fifty tokens each are ten short turns."""
    _, summary = finished
    assert [cell["metrics"]["skeleton_short_turns"] for cell in summary["cells"]] == [10, 10]


def test_figure_is_drawn(finished):
    """`marsbench report` draws it beside its own and puts it into the page."""
    installed, _ = finished
    code, _, err = installed("report", "out")
    assert code == 0, err
    assert (installed.folder / "out/figures/skeleton_sessions.png").is_file()
    page = (installed.folder / "out/report.html").read_text()
    assert "How many sessions did each system complete?" in page


def test_importer_reads_its_format(marsbench):
    """A file is recognised by its content, converted, and replayed by its name alone."""
    (marsbench.folder / "mine.csv").write_text(
        "session,prompt,output\na,900,20\na,100,30\nb,700,10\n"
    )
    code, out, err = marsbench("trace", "import", "mine.csv")
    assert code == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert [len(line["turns"]) for line in lines] == [2, 1]
    (marsbench.folder / "mine.csv").write_text("session,prompt,output\na,many,20\n")
    code, _, err = marsbench("trace", "import", "mine.csv")
    assert code == 2
    assert "mine.csv:2" in err


def test_command_is_called(marsbench):
    """A command has options, help and errors like any other."""
    assert marsbench("skeleton", "--name", "you") == (0, "hello you\n", "")
    assert "Whom to greet" in marsbench("skeleton", "-h")[1]
    assert marsbench("skeleton", "--name", "")[0] == 2


def test_wrong_column_in_a_metric(marsbench):
    """The cells are kept without that metric; one line says what it raised and where, status 1."""
    marsbench.change("metric", '"output_tokens"', '"outptu_tokens"')
    code, out, err = marsbench.run("--json")
    assert code == 1
    last = err.splitlines()[-1]
    assert "metric 'skeleton_short_turns' raised in 2 cells: KeyError: 'outptu_tokens'" in last
    assert "(metric.py:11, in skeleton_short_turns); everything else is kept in out" in last
    assert "Traceback" not in err
    for cell in json.loads(out)["cells"]:
        assert cell["metrics"]["skeleton_short_turns"] is None
        assert cell["metrics"]["session_latency_s"]["mean"] > 0


def test_figure_that_raises(finished):
    """The other figures and the page are written; one line says what it raised and where, status 1."""
    installed, _ = finished
    installed.change("figure", '"completed"', '"compelted"')
    try:
        code, _, err = installed("report", "out", "--out", "again")
    finally:
        installed.change("figure", '"compelted"', '"completed"')
    assert code == 1
    assert "figure 'skeleton_sessions' raised KeyError" in err.splitlines()[-1]
    assert "figure.py:" in err.splitlines()[-1]
    assert (installed.folder / "again/report.html").is_file()
    assert (installed.folder / "again/figures/latency_vs_load.png").is_file()


def test_policy_that_raises(marsbench):
    """Its own cell fails with one line that says where; the cell of the other system is kept."""
    spoilt = "return sorted(pending, key=lambda s: s.prio) if now_s > 1 else list(pending)"
    marsbench.change("policy", "return list(reversed(pending))", spoilt)
    code, _, err = marsbench.run()
    assert code == 1
    last = err.splitlines()[-1]
    assert "a policy of system 'skeleton-lifo' raised AttributeError" in last
    assert "(policy.py:" in last
    assert "1 of 2 cells are kept in out" in last
    assert "Traceback" not in err
    summary = json.loads((marsbench.folder / "out/summary.json").read_text())
    assert [cell["system"] for cell in summary["cells"]] == ["vllm"]


def test_package_that_cannot_be_imported(marsbench):
    """A broken plug-in package is named in one line, and help still shows the other commands."""
    (marsbench.package / "__init__.py").write_text("import a_module_that_is_not_there\n")
    code, out, _ = marsbench("--help")
    assert code == 0
    assert "Run an experiment" in out
    assert "plug-in 'skeleton' cannot be loaded: ModuleNotFoundError" in out
    code, _, err = marsbench("list", "systems")
    assert code == 2
    assert err.startswith("marsbench: plug-in 'skeleton' cannot be loaded")


@pytest.mark.parametrize("part", PARTS)
def test_contributing_names_the_skeleton(part):
    """Each row about a part of a plug-in leads to the file that shows it."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert f"(tests/skeleton/skeleton/{part}.py)" in text
