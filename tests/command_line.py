"""What tests of the command line share: small traces, commands in a process of their own, error lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

RUN = ("run", "--rate", "0.5", "--sessions", "4", "--split", "all", "--out", "out")


def session_line(k: int, *, prompt_tokens: int = 4000, **changes) -> dict:
    turns = [
        {
            "new_input_tokens": prompt_tokens if turn == 0 else 200,
            "output_tokens": 30,
            "tools": [{"name": "bash", "class": "script", "wall_s": 0.5}],
        }
        for turn in range(3)
    ]
    return {"trace_version": 1, "session_id": f"s{k}", "agent": "t", "model": "t", "turns": turns,
            **changes}  # fmt: skip


def write_trace(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def one_line(result: tuple[int, str, str], *parts: str, status: int = 2) -> None:
    """The call failed with one line on stderr that holds all parts, and no data."""
    code, out, err = result
    assert code == status, err
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith(("...", "["))]
    assert len(lines) == 1, err
    assert lines[0].startswith("marsbench: ")
    for part in parts:
        assert part in lines[0]


def marsbench(*arguments, cwd, **options) -> subprocess.Popen:
    code = "from marsbench.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "XDG_CACHE_HOME": str(cwd)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def until(run: subprocess.Popen, beginning: str) -> None:
    """Read what a command says until a line begins so."""
    assert run.stderr is not None
    for line in run.stderr:
        if line.startswith(beginning):
            return
