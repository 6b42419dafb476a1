"""Makes the task files: ``python -m workloads.tasks.make [--python PYTHON]``.

For each package and seed: draws a mutation, checks that the package's tests fail with it (and pass
without), and writes what was done and a script that finds and repairs it, as one JSON file a task. The
interpreter needs pytest and pytest-xdist. Run it when a package or this file has changed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workloads.tasks.mutators import Mutation, mutations
from workloads.tasks.packages import ENV, PACKAGES, Package
from workloads.tasks.replies import script

FOLDER = Path(__file__).resolve().parent
SEEDS_PER_PACKAGE = 4
TIMEOUT_S = 600.0
NUM_TRIES = 60


def main() -> None:
    """Write every task's file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="has pytest and pytest-xdist")
    parser.add_argument("--package", action="append", help="only this one")
    parser.add_argument("--scripts-only", action="store_true", help="keep the bugs")
    options = parser.parse_args()
    target = FOLDER / "made"
    target.mkdir(exist_ok=True)
    if options.scripts_only:
        for path in sorted(target.glob("*.json")):
            path.write_text(encoded(rescripted(json.loads(path.read_text(encoding="utf-8")))))
        return
    for package in PACKAGES.values():
        if options.package and package.name not in options.package:
            continue
        seconds = _passes(package, FOLDER / "packages" / package.name, options.python)
        print(f"{package.name}: tests pass in {seconds:.1f} s of CPU time")
        used: set[tuple[str, int]] = set()
        for seed in range(SEEDS_PER_PACKAGE):
            made = make(package, seed, options.python, used)
            path = target / f"{made['task_id']}.json"
            path.write_text(encoded(made), encoding="utf-8")
            print(f"  {path.name}: {made['mutation']['mutator']} in {made['file']}")


def encoded(made: dict[str, Any]) -> str:
    """A task's file."""
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


def rescripted(made: dict[str, Any]) -> dict[str, Any]:
    """The same task with its script written again."""
    mutation, package = Mutation(**made["mutation"]), PACKAGES[made["package"]]
    written = script(package, made["file"], mutation, made["failing"], made["seed"])
    return {**made, "script": written}


def make(package: Package, seed: int, python: str, used: set[tuple[str, int]]) -> dict[str, Any]:
    """The first bug of a seed that makes tests fail, in a line that has none of another seed."""
    for file, mutation in drawn(package, seed):
        if (file, mutation.line) in used:
            continue
        failing = _failing_tests(package, file, mutation, python)
        if failing:
            used.add((file, mutation.line))
            task_id = f"{package.name}-{seed}"
            return {
                "task_id": task_id,
                "package": package.name,
                "seed": seed,
                "file": file,
                "mutation": asdict(mutation),
                "failing": failing,
                "script": script(package, file, mutation, failing, seed),
            }
    raise SystemExit(f"{package.name}: no mutation of seed {seed} makes tests fail")


def drawn(package: Package, seed: int) -> Iterator[tuple[str, Mutation]]:
    """Files and mutations in the order in which a seed tries them."""
    root = FOLDER / "packages" / package.name
    places = [
        (path.relative_to(root).as_posix(), mutation)
        for path in sorted((root / "src").rglob("*.py"))
        for mutation in mutations(path.read_text(encoding="utf-8"))
    ]
    random.Random(f"{package.name}/{seed}").shuffle(places)
    yield from places[:NUM_TRIES]


def _passes(package: Package, root: Path, python: str) -> float:
    """CPU seconds of the test suite and build; SystemExit if they fail."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, package.name)
        shutil.copytree(root, folder)
        before = os.times()
        for command in (package.test, *([package.build] if package.build else [])):
            done = _run(command, folder, python)
            if done is None or done.returncode:
                raise SystemExit(f"{package.name}: {command} fails without a bug")
        after = os.times()
    return (
        after.children_user + after.children_system - before.children_user - before.children_system
    )


def _failing_tests(package: Package, file: str, mutation: Mutation, python: str) -> list[str]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, package.name)
        shutil.copytree(FOLDER / "packages" / package.name, folder)
        path = folder / file
        path.write_text(mutation.apply(path.read_text(encoding="utf-8")), encoding="utf-8")
        command = f"{package.pytest} -q -x --tb=no -p no:cacheprovider"
        start_s = time.monotonic()
        done = _run(command, folder, python)
    if done is None or done.returncode != 1 or time.monotonic() - start_s > TIMEOUT_S:
        return []  # hangs, cannot be imported, or nothing fails: no task for anybody
    text = done.stdout.decode()
    return [line.split()[1] for line in text.splitlines() if line.startswith("FAILED ")]


def _run(command: str, folder: Path, python: str) -> subprocess.CompletedProcess[bytes] | None:
    env = {**os.environ, "PYTHONPATH": "src", "PYTHONDONTWRITEBYTECODE": "1"} | ENV
    env["PATH"] = f"{Path(python).parent}{os.pathsep}{env.get('PATH', '')}"
    try:
        return subprocess.run(  # noqa: S602 - commands of our own table
            command, shell=True, cwd=folder, env=env, capture_output=True, timeout=TIMEOUT_S,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None


if __name__ == "__main__":
    main()
