"""``marsbench doctor``: what this machine can run, and what is missing for the rest."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from marsbench.cli import RunFailed
from marsbench.cli.serve import (
    DEFAULT_PROFILE,
    Host,
    KeyFile,
    Port,
    TokenFile,
    read_key,
    read_tokens,
)
from marsbench.errors import MarsbenchError
from marsbench.extras import require
from marsbench.gateway.settings import GatewaySettings


class Finding(NamedTuple):
    """One thing that was looked at."""

    topic: str
    state: str
    """ok, missing (something optional) or broken (nothing can run)."""
    text: str


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    serve: Annotated[
        bool,
        typer.Option("--serve", help="Look at what `marsbench serve` needs, with its options."),
    ] = False,
    upstream: Annotated[
        list[str] | None, typer.Option("--upstream", "-u", help="With --serve: a backend's URL.")
    ] = None,
    system: Annotated[str, typer.Option("--system", "-s", help="As in serve.")] = "vllm",
    profile: Annotated[str, typer.Option(help="As in serve.")] = DEFAULT_PROFILE,
    host: Host = "127.0.0.1",
    port: Port = 8080,
    metrics_port: Annotated[int, typer.Option(help="As in serve.")] = 0,
    metrics_host: Annotated[str, typer.Option(help="As in serve.")] = "127.0.0.1",
    tool_cores: Annotated[int, typer.Option(help="As in serve.")] = 0,
    token_file: TokenFile = None,
    upstream_key_file: KeyFile = None,
    publish: Annotated[str, typer.Option(help="As in serve.")] = "",
    record: Annotated[Path | None, typer.Option(help="As in serve.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="As in serve.")] = None,
    out_mib: Annotated[int, typer.Option(help="As in serve.")] = 1024,
) -> None:
    """Say what this machine can run, or with --serve what stands between you and `marsbench serve`.

    Exits with status 1 if simulations, or the gateway, cannot run.
    """
    if serve:
        require("gateway", "the gateway")
        from marsbench.gateway import preflight

        settings = GatewaySettings(
            backends=tuple(upstream or ()),
            host=host,
            port=port,
            system=system,
            profile=profile,
            metrics_port=metrics_port,
            metrics_host=metrics_host,
            tool_cores=tool_cores,
            tokens=read_tokens(token_file),
            upstream_key=read_key(upstream_key_file),
            publish=publish,
            record=record,
            out=out,
            out_bytes=out_mib << 20,
        )
        findings = [Finding(*verdict) for verdict in preflight.examine(settings)]
    else:
        findings = list(examine())
    if as_json:
        print(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        width = max(len(finding.topic) for finding in findings)
        for topic, state, text in findings:
            print(f"{state:<8} {topic:<{width}} {text}")
    broken = [finding.topic for finding in findings if finding.state == "broken"]
    if broken:
        raise RunFailed(f"cannot {'serve' if serve else 'run'}: {', '.join(broken)} broken")


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
    yield _sglang()
    yield from _extras()
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
    from marsbench.engine.profile import load_profile
    from marsbench.profiles import list_profiles

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
    """Look for vLLM here, and where runs find it when it is not."""
    from marsbench.engine.interpreters import available, find_python
    from marsbench.engine.vllm.runtime import require_vllm

    try:
        text = require_vllm() if available("vllm") else f"in {find_python('vllm')}"
    except MarsbenchError as error:
        return Finding("vllm", "missing", str(error))
    return Finding("vllm", "ok", text)


def _sglang() -> Finding:
    from marsbench.engine.interpreters import find_python
    from marsbench.engine.sglang.flags import SUPPORTED, SUPPORTED_TEXT, look_into

    try:
        python = find_python("sglang")
        found = look_into(python)
    except MarsbenchError as error:
        return Finding("sglang", "missing", str(error))
    text = f"{found.version} in {python}"
    if found.version not in SUPPORTED:
        return Finding("sglang", "missing", f"{text}: marsbench supports {SUPPORTED_TEXT}")
    if found.kernels is None:
        remedy = (
            "on a CPU run scripts/setup_sglang_cpu.sh, on a GPU install SGLang with its kernels"
        )
        return Finding("sglang", "missing", f"{text} has no sgl_kernel: {remedy}")
    return Finding("sglang", "ok", f"{text}, kernels {found.kernels}")


def _extras() -> Iterator[Finding]:
    from marsbench.extras import EXTRAS, how_to_install, missing

    for extra, (purpose, _) in EXTRAS.items():
        absent = missing(extra)
        text = f"{purpose}: {how_to_install(extra)} ({', '.join(absent)} missing)"
        yield Finding(f"[{extra}]", "missing" if absent else "ok", text if absent else purpose)


def _docker() -> Finding:
    """Whether a container engine answers; the command alone says nothing about its daemon."""
    if shutil.which("docker") is None:
        return Finding(
            "docker", "missing", "no docker command; --tools docker and the image need it"
        )
    asked = ["docker", "version", "--format", "{{.Server.Version}}"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("docker", "missing", f"the docker command does not answer: {error}")
    if done.returncode:
        reason = " ".join(done.stderr.split()) or "no reason given"
        return Finding("docker", "missing", f"its daemon does not answer: {reason}")
    return Finding("docker", "ok", f"engine {done.stdout.strip()}")
