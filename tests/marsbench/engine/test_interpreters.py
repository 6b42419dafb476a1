"""The interpreter that has an engine's package is found, or the error says how to get one."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from marsbench.engine.interpreters import available, find_python
from marsbench.errors import EngineError

PACKAGE = "no_such_engine"


def interpreter(path: Path, status: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\nexit {status}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return path


def test_this_interpreter_first():
    """A package that is installed here needs no other interpreter."""
    assert available("pytest")
    assert find_python("pytest") == Path(sys.executable)


def test_the_project_s_own_environment_is_found(tmp_path, monkeypatch):
    """``.venv-NAME`` in the current folder, as the set-up script makes it."""
    monkeypatch.chdir(tmp_path)
    python = interpreter(tmp_path / f".venv-{PACKAGE}" / "bin" / "python", 0)
    assert find_python(PACKAGE) == python


def test_what_the_user_says_wins(tmp_path, monkeypatch):
    """The parameter before the variable, the variable before what would be found."""
    interpreter(tmp_path / f".venv-{PACKAGE}" / "bin" / "python", 0)
    monkeypatch.chdir(tmp_path)
    given, variable = (interpreter(tmp_path / name, 0) for name in ("given", "variable"))
    monkeypatch.setenv(f"MARSBENCH_{PACKAGE.upper()}_PYTHON", str(variable))
    assert find_python(PACKAGE, str(given)) == given
    assert find_python(PACKAGE) == variable


@pytest.mark.parametrize("source", ["parameter", "variable"])
def test_an_interpreter_without_the_package(tmp_path, monkeypatch, source):
    """Named with where it was set: it is never passed over for another one."""
    wrong = str(interpreter(tmp_path / "wrong", 1))
    given = wrong if source == "parameter" else ""
    if source == "variable":
        monkeypatch.setenv(f"MARSBENCH_{PACKAGE.upper()}_PYTHON", wrong)
    where = "engine.params.python" if given else f"MARSBENCH_{PACKAGE.upper()}_PYTHON"
    with pytest.raises(EngineError, match=f"{where}: .*has no package '{PACKAGE}'"):
        find_python(PACKAGE, given)


def test_a_path_that_cannot_run(tmp_path):
    """The operating system's reason is in the line."""
    with pytest.raises(EngineError, match=r"cannot run .*nowhere: "):
        find_python(PACKAGE, str(tmp_path / "nowhere"))


def test_none_is_found(tmp_path, monkeypatch):
    """The error names the script that makes the environment, and the variable."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EngineError, match=f"setup_{PACKAGE}_cpu.sh .* set MARSBENCH_"):
        find_python(PACKAGE)
