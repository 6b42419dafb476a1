"""Compile the simulator's hot loop with mypyc into a folder of its own, and check that it agrees.

The folder is used only by processes that name it: `MARSBENCH_COMPILED=build/compiled marsbench run
...`; marsbench refuses it once a source file has changed. `--clean` removes it. Needs a C compiler.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "compiled"
SYSTEMS = ("vllm", "vllm-priority", "session-fcfs", "infercept", "continuum", "thunderagent",
           "oracle", "mars", "sglang", "sglang-lpm", "sglang-priority")  # fmt: skip
"""Between them they use every branch of the core: pins, quanta, reordering, gates, tool slots."""

LATE_S = 9_000
"""Some runs begin this late: after 2^53 ps, 9,007.2 s, a clock no longer fits a double exactly."""


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--clean", action="store_true", help="remove the folder and stop")
    parser.add_argument("--digests", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def build(folder: Path) -> None:
    """Compile the modules of the loop; the manifest comes last, so an unfinished folder is never used."""
    from marsbench import compiled
    from marsbench.extras import how_to_install

    try:
        from mypyc.build import mypycify
        from setuptools import Distribution
        from setuptools.errors import CompileError
    except ImportError as error:
        sys.exit(f"compile_core: {error}; install the tools: {how_to_install('compile')}")
    wanted = compiled.manifest()
    paths = [f"{module.replace('.', '/')}.py" for module in compiled.modules()]
    os.chdir(ROOT)
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        extensions = mypycify(
            ["--config-file=pyproject.toml", f"--cache-dir={scratch}/mypy", *paths],
            opt_level="3",
            group_name=compiled.GROUP,
            target_dir=f"{scratch}/c",
        )
        command = Distribution({"name": compiled.GROUP, "ext_modules": extensions}).get_command_obj(
            "build_ext"
        )
        command.build_lib, command.build_temp = str(folder), f"{scratch}/o"
        command.ensure_finalized()
        try:
            command.run()
        except CompileError as error:
            sys.exit(f"compile_core: the C compiler failed: {error}")
    if compiled.manifest() != wanted:
        sys.exit("compile_core: a source file changed during the build; run it again")
    (folder / compiled.MANIFEST).write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")


def digests() -> dict[str, str]:
    """Hash of every event row of short runs of several systems, by system and tool model."""
    from marsbench.arrival import ArrivalPlan
    from marsbench.core import PS_PER_S
    from marsbench.engine import replay
    from marsbench.experiment.wiring import Setup, simulate, system_named
    from marsbench.trace.source import open_workload

    found = {"replay": Path(replay.__file__ or "").suffix}
    sessions = open_workload("hybrid").sessions(16, 3) + open_workload("dev-interactive").sessions(
        4, 3
    )
    crowd = ArrivalPlan(times_ps=None, closed_loop=14)
    late = ArrivalPlan(tuple((LATE_S + 5 * i) * PS_PER_S for i in range(len(sessions))))
    for when, plan, tools, num_blocks, block_size in (
        ("", crowd, "modelled", 30_000, 16),
        ("", crowd, "recorded", 12_000, 32),
        (f" from {LATE_S} s on", late, "recorded", 12_000, 32),
    ):
        flags = {"num_blocks": num_blocks, "block_size": block_size}
        setup = Setup("sim", "h100-nvl/qwen3-coder-30b-a3b", 8, tools, engine_flags=flags)
        for name in SYSTEMS:
            outcome = simulate(setup, system_named(name), {}, sessions, plan, seed=1)
            log = outcome.log
            told = json.dumps([log.strings, log.session_ids, str(outcome.ran.stats)])
            rows = hashlib.sha256(log.rows.tobytes() + told.encode())
            found[f"{name}, {tools} tools{when}"] = rows.hexdigest()
    return found


def digests_of(folder: Path | None) -> dict[str, str]:
    """``digests`` in a fresh process, with the folder's core or in pure Python."""
    from marsbench.compiled import VARIABLE

    environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
    if folder is not None:
        environment[VARIABLE] = str(folder)
    command = [sys.executable, __file__, "--digests"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def compare(folder: Path) -> list[str]:
    """The runs in which compiled and pure Python differ by a single integer."""
    compiled, pure = digests_of(folder), digests_of(None)
    if (compiled.pop("replay"), pure.pop("replay")) != (".so", ".py"):
        sys.exit("compile_core: the compiled core was not the one that ran")
    return [name for name in pure if compiled[name] != pure[name]]


def main() -> None:
    given = options()
    if given.digests:
        print(json.dumps(digests()))
        return
    folder: Path = given.folder.resolve()
    if given.clean:
        shutil.rmtree(folder, ignore_errors=True)
        return
    if "MARSBENCH_COMPILED" in os.environ:
        sys.exit("compile_core: unset MARSBENCH_COMPILED first")
    build(folder)
    different = compare(folder)
    if different:
        shutil.rmtree(folder)
        sys.exit(f"compile_core: events differ from pure Python in: {', '.join(different)}")
    print(f"compiled core in {folder}: same events as pure Python; use it with")
    print(f"  export MARSBENCH_COMPILED={folder}")


if __name__ == "__main__":
    main()
