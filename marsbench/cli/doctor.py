"""``marsbench doctor``: what this machine can run, and what is missing for the rest."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import Annotated, NamedTuple

import typer

from marsbench.cli import RunFailed
from marsbench.errors import MarsbenchError


class Finding(NamedTuple):
    """One thing that was looked at."""

    topic: str
    state: str
    """ok, missing (something optional) or broken (nothing can run)."""
    text: str


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine can run. Exits with status 1 if simulations cannot run."""
    findings = list(examine())
    if as_json:
        print(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        for topic, state, text in findings:
            print(f"{state:<8} {topic:<10} {text}")
    broken = [finding.topic for finding in findings if finding.state == "broken"]
    if broken:
        raise RunFailed(f"cannot run: {', '.join(broken)} broken")


def examine() -> Iterator[Finding]:
    """Everything the commands depend on, in the order they need it."""
    yield Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")
    yield Finding("machine", "ok", f"{os.cpu_count()} cores, {platform.machine()}")
    core = _core()
    yield core
    if core.state == "broken":
        return  # nothing else can be imported
    yield _plugins()
    yield _profiles()
    yield _simulation()
    yield _cache()
    yield _vllm()
    yield _docker()


def _core() -> Finding:
    from marsbench.compiled import VARIABLE, check, named_folder

    folder = named_folder()
    if folder is None:
        return Finding("core", "ok", f"pure Python ({VARIABLE} is not set)")
    try:
        check(folder)
    except MarsbenchError as error:
        return Finding("core", "broken", str(error))
    return Finding("core", "ok", f"compiled, {folder}")


def _plugins() -> Finding:
    from marsbench.registry import TABLES, load, table

    counts = []
    try:
        for kind in TABLES:
            for name in table(kind):
                load(kind, name)
            counts.append(f"{len(table(kind))} {kind.lower()}")
    except MarsbenchError as error:
        return Finding("plug-ins", "broken", str(error))
    return Finding("plug-ins", "ok", ", ".join(counts))


def _profiles() -> Finding:
    from marsbench.engine.profile import list_profiles, load_profile

    try:
        names = [load_profile(name).name for name in list_profiles()]
    except MarsbenchError as error:
        return Finding("profiles", "broken", str(error))
    return Finding("profiles", "ok", ", ".join(names))


def _simulation() -> Finding:
    from marsbench.config import ExperimentConfig
    from marsbench.experiment.wiring import Setup, try_out

    config = ExperimentConfig()
    setup = Setup.of(config, config.profile[0], config.tool_cores[0])
    try:
        latency_s = try_out(setup)
    except MarsbenchError as error:
        return Finding("simulation", "broken", str(error))
    return Finding("simulation", "ok", f"a session of two turns takes {latency_s:.2f} s")


def _cache() -> Finding:
    from marsbench.experiment.memo import default_folder

    folder = default_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        text = f"{folder}: {error.strerror}; runs measure everything anew, or give --cache"
        return Finding("cache", "missing", text)
    return Finding("cache", "ok", str(folder))


def _vllm() -> Finding:
    from marsbench.engine.vllm.runtime import require_vllm

    try:
        return Finding("vllm", "ok", require_vllm())
    except MarsbenchError as error:
        return Finding("vllm", "missing", str(error))


def _docker() -> Finding:
    path = shutil.which("docker")
    if path is None:
        return Finding("docker", "missing", "not found; only building the image needs it")
    return Finding("docker", "ok", path)
