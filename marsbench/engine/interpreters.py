"""Finds the interpreter of an environment that has an engine's package.

vLLM and SGLang are heavy and pin their dependencies, so each may live in an environment of its own:
the one a user names, or the project's ``.venv-NAME`` that ``scripts/setup_NAME_cpu.sh`` makes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from marsbench.errors import EngineError

CHECK_TIMEOUT_S = 60.0


def available(package: str) -> bool:
    """Whether this interpreter has the package."""
    return find_spec(package) is not None


def find_python(package: str, given: str = "") -> Path:
    """Return an interpreter that has the package; EngineError with the remedy if there is none.

    It is looked for in this order: ``given`` (what the user set), the variable
    ``MARSBENCH_NAME_PYTHON``, this interpreter, and ``.venv-NAME`` in the current folder or beside
    the marsbench package.
    """
    variable = f"MARSBENCH_{package.upper()}_PYTHON"
    for source, named in (("engine.params.python", given), (variable, os.environ.get(variable))):
        if named:
            _require(package, named, source)
            return Path(named)
    if available(package):
        return Path(sys.executable)
    for folder in dict.fromkeys((Path.cwd(), Path(__file__).resolve().parents[2])):
        python = folder / f".venv-{package}" / "bin" / "python"
        if python.exists():
            _require(package, str(python), str(folder))
            return python
    raise EngineError(
        f"{package} is not installed here: make its environment with "
        f"`scripts/setup_{package}_cpu.sh .venv-{package}`, or set {variable} to an interpreter "
        "that has it"
    )


@cache
def _require(package: str, python: str, source: str) -> None:
    """EngineError unless the interpreter runs and has the package."""
    test = f"import importlib.util as u, sys; sys.exit(u.find_spec({package!r}) is None)"
    try:
        done = subprocess.run(  # noqa: S603 - the interpreter is the user's choice
            [python, "-c", test], capture_output=True, timeout=CHECK_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"{source}: cannot run {python}: {error}") from error
    if done.returncode:
        raise EngineError(f"{source}: {python} has no package {package!r}; install it there")
