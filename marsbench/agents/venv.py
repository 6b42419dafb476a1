"""Where the agents' own Python environment is, and how a worker is started in it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import marsbench
from marsbench.errors import ConfigError

FOLDER = ".venv-openhands"
OTHER_FOLDERS = {"openhands-cli": ".venv-openhands-cli"}
"""Of agents whose packages do not go with the others'."""
SETUP = {FOLDER: "scripts/setup_openhands.sh"} | {
    ".venv-openhands-cli": "scripts/setup_openhands.sh .venv-openhands-cli openhands"
}
PACKAGE = Path(marsbench.__file__).resolve().parent

_BOOT = """\
import importlib.util as u, runpy, sys
root = sys.argv.pop(1)
spec = u.spec_from_file_location("marsbench", root + "/__init__.py", submodule_search_locations=[root])
module = sys.modules["marsbench"] = u.module_from_spec(spec)
spec.loader.exec_module(module)
runpy.run_module("marsbench.agents.runner", run_name="__main__", alter_sys=True)
"""
"""Makes marsbench importable there and nothing beside it: what is installed next to marsbench is made
for another Python."""


def find_python(given: str = "", agent: str = "openhands") -> Path:
    """The interpreter of the environment of a kind of agents.

    ``given`` is an interpreter or an environment's folder; else the kind's own (.venv-openhands for
    most) is looked for in the current folder and beside marsbench. Raises ConfigError that says how to
    make one.
    """
    own = OTHER_FOLDERS.get(agent, FOLDER)
    if given:
        path = Path(given).absolute()  # not resolved: an environment's interpreter is a link
        if path.is_dir():
            path /= "bin/python"
        found = path if path.is_file() else shutil.which(given)
        if not found:
            raise ConfigError(
                f"driver.params.python: {given!r} is no interpreter and no environment"
            )
        return Path(found)
    for folder in (Path.cwd(), PACKAGE.parent):
        path = folder / own / "bin" / "python"
        if path.is_file():
            return path
    raise ConfigError(
        f"{agent} agents need an environment of their own, and there is no {own} here: make it with "
        f"{SETUP[own]}, or name one with -c driver.params.python=PATH"
    )


def worker_command(python: Path, agent: str, folder: Path) -> list[str]:
    """The command of a worker; ``folder`` goes with its driver."""
    return [str(python), "-c", _BOOT, str(PACKAGE), agent, str(folder)]


def tool_env(python: Path, home: Path) -> dict[str, str]:
    """Environment of agents and their tools: their own home, and the environment's Python first."""
    kept = {name: os.environ[name] for name in ("LANG", "LC_ALL", "TZ") if name in os.environ}
    return {
        **kept,
        "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "HOME": str(home),
        "TMPDIR": str(home),
        "TERM": "dumb",
        "PYTHONDONTWRITEBYTECODE": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
    }
