"""Commands in the documents: those of the site run as they are written, all others would be accepted."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
from test_docs import DOCUMENTS, PAGES, ROOT, console_lines, named
from typer.main import get_command

from marsbench.cli import main
from marsbench.cli.group import app
from marsbench.registry import tables

NEEDS_MORE = ("record", "serve", "calibrate", "watch", "validate")
"""Commands of the site that need a server, another environment, or another command beside them."""
NEEDS_OPTIONS = ("--endpoint", "--stream", "--engine")
SHELL = ("python3 -m venv .venv && . .venv/bin/activate",)
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "optional-dependencies"
]


def accepted(words: list[str]) -> None:
    """Command, options and values are what the command line knows; nothing is run."""
    group = get_command(app)
    context = group.make_context("marsbench", [], resilient_parsing=True)
    name, *rest = words
    command = group.get_command(context, name)
    while hasattr(command, "get_command") and rest:
        name, *rest = rest
        command = command.get_command(context, name)
        assert command is not None, name
    command.make_context(name, rest, parent=context)


def indented_lines(path: Path) -> list[str]:
    """Commands in blocks of code without a prompt, as older pages write them."""
    text = re.sub(r"\\\n\s+", "", path.read_text(encoding="utf-8"))
    return re.findall(r"^ {4,}(marsbench .*)$", text, re.MULTILINE)


ACCEPTED = [
    (named(path), line)
    for path in DOCUMENTS
    for line in [*console_lines(path), *indented_lines(path)]
    if line.startswith("marsbench ") and not re.search(r"\.\.\.|[\[\]|]", line.partition("'")[0])
]


@pytest.mark.parametrize(("page", "line"), ACCEPTED)
def test_commands_would_be_accepted(page, line):
    """Each line of a document that calls marsbench has a command, options and values that exist."""
    accepted(shlex.split(line, comments=True)[1:])


def test_commands_in_tables_would_be_accepted():
    """So does each command of the README's table of what one can do."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    wanted = [row for line in lines for row in re.findall(r"`(marsbench [^`]+)`", line)]
    assert len(wanted) >= 15
    for row in wanted:
        accepted(shlex.split(row)[1:])


def shell_line(line: str) -> None:
    """A line that is not ours is one of a few kinds, and what it names exists."""
    words = shlex.split(line)
    if words[0] == "pip":
        extra = re.search(r"\[(.+)\]", words[-1])
        assert words[:2] == ["pip", "install"]
        assert words[-1].partition("[")[0] == ".", "from a checkout"
        assert extra is None or extra[1] in EXTRAS
    elif words[0].startswith("scripts/"):
        assert (ROOT / words[0]).is_file()
    else:
        assert line in SHELL


@pytest.fixture
def forgotten(tmp_path):
    """Modules that a page writes are gone afterwards, so that others may use their names."""
    before = list(sys.path)  # the command line adds the current folder
    yield
    sys.path[:] = before
    for name, module in list(sys.modules.items()):
        if str(tmp_path) in (getattr(module, "__file__", None) or ""):
            del sys.modules[name]


@pytest.mark.slow
@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("page", [p for p in PAGES if console_lines(p)], ids=named)
def test_commands_of_a_page_run(page, tmp_path, monkeypatch, capsys):
    """A page's commands run one after the other as they stand, from an empty folder with the files that
    the page shows.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    for name, content in re.findall(r'```python title="([^"]+)"\n(.*?)```', text, re.DOTALL):
        Path(name).write_text(content)
    tables.cache_clear()
    for line in console_lines(page):
        words = shlex.split(line)
        if words[0] != "marsbench":
            shell_line(line)
        elif words[1] not in NEEDS_MORE and not set(NEEDS_OPTIONS) & set(words):
            with pytest.raises(SystemExit) as stopped:
                main(words[1:])
            assert not stopped.value.code, (line, capsys.readouterr().err)


def test_the_notebook_page_is_what_its_code_gives(tmp_path):
    """Every block of the page runs, prints what stands behind it, and draws its picture."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("nb", ROOT / "scripts/docs_notebook.py")
    assert spec is not None
    assert spec.loader is not None
    notebook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(notebook)
    text = notebook.PAGE.read_text(encoding="utf-8")
    assert notebook.executed(text, tmp_path) == text
    assert (tmp_path / notebook.PICTURE).stat().st_size > 10_000
    assert text.count("```text") >= 5


def test_the_sample_is_what_its_readme_says(tmp_path, monkeypatch):
    """The command in its README writes the shipped lines again."""
    from marsbench.trace.io import read_lines
    from workloads.sample import PATH

    monkeypatch.chdir(tmp_path)
    (line,) = [row for row in console_lines(PATH.with_name("README.md")) if " synth " in row]
    with pytest.raises(SystemExit):
        main(shlex.split(line)[1:])
    made = [text for _, text in read_lines(tmp_path / "sessions.jsonl.gz")]
    assert made == [text for _, text in read_lines(PATH)]
    assert len(made) == 40
