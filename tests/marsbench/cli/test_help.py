"""What answers without doing anything: help, version, names, completion; and how fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from marsbench.cli import COMMANDS
from marsbench.config import ExperimentConfig

HEAVY = {
    "numpy", "pandas", "scipy", "pyarrow", "pydantic", "matplotlib", "seaborn", "msgspec",
    "datasets", "torch", "vllm", "rich", "typer", "click",
}  # fmt: skip


@pytest.mark.parametrize(
    "arguments", [["--help"], ["-h"], [], ["--version"], ["list"], ["list", "--json"]]
)
def test_quick_answers_import_nothing_heavy(arguments):
    """Help, version and the list of names answer without any package that takes long to import."""
    code = (
        "import sys; from marsbench.cli import main\n"
        f"try: main({arguments})\n"
        "except SystemExit as stopped: assert not stopped.code\n"
        f"print('heavy', sorted({HEAVY} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stdout.splitlines()[-1] == "heavy []"


def test_import_is_light():
    """Importing marsbench pulls in neither torch nor vllm, nor anything but the standard library."""
    code = "import sys, marsbench; print(sorted({'torch', 'vllm', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_has_a_line_for_every_command(cli):
    """The short and the long option, and no argument at all, list each command with its line."""
    for arguments in (["--help"], ["-h"], []):
        code, out, _ = cli(*arguments)
        assert code == 0
        for name, (_, summary) in COMMANDS.items():
            assert f"  {name} " in out
            assert summary in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(cli, name):
    """Each row of the table leads to a command that explains itself."""
    code, out, _ = cli(name, "--help")
    assert code == 0
    assert f"Usage: marsbench {name}" in out
    assert cli(name, "-h") == (code, out, "")


@pytest.mark.parametrize(("words", "at", "wanted"), [("marsbench va", 1, "validate"),
                                                     ("marsbench run --resu", 2, "--resume")])  # fmt: skip
def test_shells_complete_commands_and_options(words, at, wanted):
    """What --install-completion sets up asks the program itself, which knows both."""
    asked = {"_MARSBENCH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)}
    done = subprocess.run(
        [sys.executable, "-m", "marsbench"],
        capture_output=True, text=True, check=True, env={**os.environ, **asked},
    )  # fmt: skip
    assert wanted in done.stdout.split()


def test_version(cli):
    """`--version` is the version of the distribution."""
    from importlib.metadata import version

    assert cli("--version") == (0, f"marsbench {version('marsbench')}\n", "")


def test_run_shows_its_defaults(cli):
    """What an option is without being given stands in the help, from the experiment's own schema."""
    _, out, _ = cli("run", "--help")
    text = " ".join(out.split())
    config = ExperimentConfig()
    for value in (config.profile[0], config.split, config.sessions, config.load[0],
                  config.engine.name, config.arrival.name, config.tool_cores[0]):  # fmt: skip
        assert f"[default: ({value})]" in text


def test_list_names_everything(cli):
    """Each kind has names with one line each; --json gives the same as data."""
    code, out, _ = cli("list", "systems", "--json")
    assert code == 0
    systems = json.loads(out)["systems"]
    assert "vllm" in systems
    assert all(systems.values())
    code, out, _ = cli("list")
    assert code == 0
    for kind in ("systems", "workloads", "engines", "profiles", "arrivals", "tools", "metrics"):
        assert f"{kind}:" in out
