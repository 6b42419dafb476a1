"""What a result depends on besides its config: code, versions, machine, seeds, inputs."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from marsbench.compiled import named_folder

PACKAGES = (
    "marsbench",
    "numpy",
    "pandas",
    "pyarrow",
    "scipy",
    "seaborn",
    "vllm",
    "sglang",
    "torch",
)
"""Distributions whose versions are recorded; null = not installed."""


def environment(
    *,
    seeds: Sequence[int],
    input_sha256: Mapping[str, str],
    server_flags: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Content of ``environment.json``. ``input_sha256``: SHA-256 of each input by name."""
    return {
        "environment_version": 1,
        "git": git_state(Path(__file__).resolve().parent),
        "python": platform.python_version(),
        "compiled_core": named_folder() is not None,
        "versions": {name: _version(name) for name in PACKAGES},
        "host": {
            "name": platform.node(),
            "system": platform.platform(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
        },
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "seeds": list(seeds),
        "input_sha256": dict(sorted(input_sha256.items())),
        "server_flags": dict(server_flags or {}),
        **(extra or {}),
    }


def git_state(folder: Path) -> dict[str, str | bool] | None:
    """Commit of the checkout that holds ``folder`` and whether it has local changes; None if
    there is no checkout (an installed package) or no git.
    """
    git = shutil.which("git")
    if git is None:
        return None
    commands = (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    outputs: list[str] = []
    for command in commands:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            [git, "-C", str(folder), *command], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            return None
        outputs.append(done.stdout.strip())
    return {"sha": outputs[0], "dirty": bool(outputs[1])}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
