#!/usr/bin/env python3
"""Check the Dockerfile without Docker: its properties, and with --run its install commands.

    python scripts/check_dockerfile.py [--run] [DOCKERFILE]

--run copies what the build stage copies into a scratch folder and runs the stage's RUN commands
there as they stand, with ARG PREFIX pointing below it; then the installed entry point must find everything it needs (`doctor`).
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Stage:
    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def values(self, instruction: str) -> list[str]:
        return [value for name, value in self.steps if name == instruction]


def parse(text: str) -> list[Stage]:
    stages: list[Stage] = []
    for line in text.replace("\\\n", " ").splitlines():
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        instruction, _, value = stripped.partition(" ")
        instruction, value = instruction.upper(), value.strip()
        if instruction == "FROM":
            words = value.split()
            stages.append(Stage(words[0], words[2] if len(words) == 3 else ""))
        elif stages:
            stages[-1].steps.append((instruction, value))
        elif instruction != "ARG":
            raise SystemExit(f"Dockerfile: {instruction} before the first FROM")
    return stages


def problems(stages: list[Stage], root: Path) -> list[str]:
    """What is wrong, one line each."""
    if not stages:
        return ["no FROM"]
    found: list[str] = []
    if len(stages) < 2:
        found.append("one stage: build tools would end up in the image")
    for stage in stages:
        tag = stage.base.rpartition(":")[2] if ":" in stage.base else ""
        if tag in {"", "latest"} and stage.base not in {other.name for other in stages}:
            found.append(f"FROM {stage.base}: no version tag")
        found += [
            f"COPY {source}: no such file"
            for source in sources(stage)
            if not (root / source).exists()
        ]
    final = stages[-1]
    users = final.values("USER")
    if not users or users[-1].split(":")[0] in {"root", "0"}:
        found.append("the image runs as root: end with USER")
    elif [name for name, _ in final.steps[last(final, "USER") :]].count("RUN"):
        found.append("RUN after USER: the last commands do not run as the image's builder")
    if [json.loads(value) for value in final.values("ENTRYPOINT")] != [["marsbench"]]:
        found.append('ENTRYPOINT is not ["marsbench"]')
    copied = [value for value in final.values("COPY") if value.startswith("--from=")]
    if not copied:
        found.append("the last stage takes nothing from the build stage")
    return found


def last(stage: Stage, instruction: str) -> int:
    return max(k for k, (name, _) in enumerate(stage.steps) if name == instruction)


def sources(stage: Stage) -> list[str]:
    """Paths of the build context that a stage copies."""
    copies = [shlex.split(value) for value in stage.values("COPY")]
    return [path for words in copies if not words[0].startswith("--") for path in words[:-1]]


def run_install(stages: list[Stage], root: Path) -> None:
    """The first stage's commands, in a scratch copy of its context."""
    stage = stages[0]
    with tempfile.TemporaryDirectory() as scratch:
        source, prefix = Path(scratch) / "src", Path(scratch) / "prefix"
        source.mkdir()
        for path in sources(stage):
            if (root / path).is_dir():
                shutil.copytree(root / path, source / path)
            else:
                shutil.copy(root / path, source / path)
        env = {**os.environ, "PREFIX": str(prefix)}
        env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
        for command in stage.values("RUN"):
            print("+", command, flush=True)
            subprocess.run(["/bin/sh", "-c", command], cwd=source, env=env, check=True)
        entry = json.loads(stages[-1].values("ENTRYPOINT")[0])
        subprocess.run([prefix / "bin" / entry[0], "doctor"], check=True, cwd=scratch)


def main() -> int:
    arguments = [arg for arg in sys.argv[1:] if arg != "--run"]
    root = Path(__file__).resolve().parent.parent
    path = Path(arguments[0]) if arguments else root / "Dockerfile"
    stages = parse(path.read_text(encoding="utf-8"))
    wrong = problems(stages, root)
    for line in wrong:
        print(f"{path}: {line}", file=sys.stderr)
    if not wrong and "--run" in sys.argv:
        run_install(stages, root)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
