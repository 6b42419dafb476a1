"""Documents that cannot go stale: commands run, links lead somewhere, tables are complete."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from marsbench.cli import COMMANDS, main
from marsbench.config import load_config
from marsbench.registry import table

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
FOLDER_PAGES = [
    path
    for folder in (
        "baselines",
        "deploy",
        "mars_impl",
        "marsbench",
        "results/reference",
        "workloads",
    )
    for path in sorted((ROOT / folder).rglob("*.md"))
    if "packages" not in path.parts  # data: what tasks are made of
]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "results").glob("*.md"), *(ROOT / "tests").glob("*.md"),
             *(ROOT / "scripts").glob("*.md"), *PAGES, *FOLDER_PAGES]  # fmt: skip
FOLDERS = ("baselines", "mars_impl", "results", "scripts", "tests", "workloads")
SMALL = ["--sessions", "3", "-c", "capacity.sessions=8", "-c", "tuning.sessions=2", "--quiet"]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def console_lines(path: Path) -> list[str]:
    text = re.sub(
        r" *\\\n\s*", " ", path.read_text(encoding="utf-8")
    )  # a line may go on after a backslash
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    return [line.removeprefix("$ ").partition("  #")[0] for line in lines]


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


@pytest.mark.slow
def test_readme_commands_run(tmp_path, monkeypatch, capsys):
    """The marsbench commands of the README's console blocks run as they stand, on few sessions."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(line) for line in console_lines(ROOT / "README.md")]
    ours = [words[1:] for words in commands if words[0] == "marsbench"]
    assert [words[0] for words in ours] == ["run", "report", "doctor"]
    for words in ours:
        with pytest.raises(SystemExit) as stopped:
            main([*words, *(SMALL if words[0] == "run" else [])])
        assert not stopped.value.code, capsys.readouterr().err
    assert (tmp_path / "out/demo/figures/latency_vs_load.png").is_file()


def test_make_demo_is_the_readmes_run():
    """`make demo` runs what the README shows, and the stored reference is that run."""
    readme = next(line for line in console_lines(ROOT / "README.md") if " run " in line)
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    recipe = next(line for line in makefile.splitlines() if "marsbench run" in line)
    skipped = {
        "marsbench",
        "run",
        "$(BIN)/marsbench",
        "--overwrite",
        "--out",
        "out/demo",
        "$(DEMO)",
    }
    words = [word for word in shlex.split(readme) if word not in skipped]
    assert words == [word for word in shlex.split(recipe) if word not in skipped]
    flags: dict[str, list] = {}
    for name, value in zip(words[::2], words[1::2], strict=True):
        flags.setdefault(name.removeprefix("--"), []).append(value)
    given = {**flags, "sessions": flags["sessions"][0]}
    assert load_config([ROOT / "results/reference/demo/config.yaml"]) == load_config(flags=given)


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_links_lead_somewhere(path):
    """Every relative link of a document names a file of the project, and a heading if it says so."""
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_readme_is_short():
    """The root README fits 200 lines, and shows a figure on its first screen."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200
    assert any(line.startswith("![") for line in lines[:20])
    assert len((ROOT / "Makefile").read_text().splitlines()) <= 40


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_says_what_belongs_there(folder):
    """Each top folder has a README."""
    assert (ROOT / folder / "README.md").read_text(encoding="utf-8").startswith("# ")


def test_every_script_is_in_its_table():
    """scripts/README.md has a row for each script, and none for anything else."""
    listed = set(
        re.findall(r"^\| `([\w.]+)`", (ROOT / "scripts/README.md").read_text(), re.MULTILINE)
    )
    assert listed == {p.name for p in (ROOT / "scripts").iterdir() if p.suffix in {".py", ".sh"}}


@pytest.mark.parametrize("package", ["baselines", "mars_impl"])
def test_every_system_is_described(package):
    """Each registered system is named in the README of its package."""
    text = (ROOT / package / "README.md").read_text(encoding="utf-8")
    names = [name for name, path in table("SYSTEMS").items() if path.startswith(package)]
    assert names
    assert not [name for name in names if f"`{name}`" not in text]


def test_every_workload_is_described():
    """Each workload and trace format is named in workloads/README.md."""
    text = (ROOT / "workloads/README.md").read_text(encoding="utf-8")
    names = [*table("WORKLOADS"), *table("IMPORTERS")]
    assert not [name for name in names if f"`{name}`" not in text]


def test_commands_in_documents_exist():
    """`marsbench X` in a document is a command of the table."""
    for path in DOCUMENTS:
        named_commands = re.findall(r"`marsbench (\w+)", path.read_text(encoding="utf-8"))
        assert not set(named_commands) - set(COMMANDS), path


def test_changelog_is_kept():
    """The changelog has an Unreleased heading and the usual kinds of changes only."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in text
    kinds = set(re.findall(r"^### (.*)$", text, re.MULTILINE))
    usual = {"Added", "Changed", "Changed results", "Deprecated", "Removed", "Fixed", "Security"}
    assert kinds <= usual


def test_dockerfile_is_sound():
    """Two stages, pinned bases, not root, the right entry point, nothing copied that is not there."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/check_dockerfile.py")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("USER mars\n", "", "runs as root"),
        ("USER mars\n", "USER root\n", "runs as root"),
        ('ENTRYPOINT ["marsbench"]', 'ENTRYPOINT ["sh"]', "ENTRYPOINT"),
        ("FROM python:3.12-slim AS build", "FROM python AS build", "no version tag"),
        ("COPY workloads ./workloads", "COPY workload ./workload", "no such file"),
        ("COPY --from=build", "COPY README.md", "takes nothing from the build stage"),
    ],
)
def test_dockerfile_check_finds_faults(tmp_path, old, new, line):
    """Each property the check promises is missed when it is broken."""
    text = (ROOT / "Dockerfile").read_text()
    assert old in text
    (tmp_path / "Dockerfile").write_text(text.replace(old, new))
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/check_dockerfile.py"), str(tmp_path / "Dockerfile")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert line in done.stderr


def test_commands_in_prose_exist():
    """A sentence names no command that ``marsbench`` does not have, in any folder's README."""
    paths = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]  # it tells of old ones too
    told = {
        (named(path), command)
        for path in paths
        for command in re.findall(r"`marsbench ([a-z]+)\b", path.read_text(encoding="utf-8"))
    }
    assert told
    assert not {(path, command) for path, command in told if command not in COMMANDS}
