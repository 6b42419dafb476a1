"""Options that several commands take: one name, one meaning and one help text for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from marsbench.config import ExperimentConfig


def default_of(key: str) -> str:
    """The default of a key of the experiment, as help shows it."""
    value = getattr(ExperimentConfig(), key)
    value = getattr(value, "name", value)
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _option(key: str, *names: str, help: str, **more: Any) -> Any:  # noqa: A002 - typer's own name
    return typer.Option(*names, help=help, show_default=default_of(key), **more)


def _systems() -> list[str]:
    from marsbench.registry import table

    return list(table("SYSTEMS"))


def _workloads() -> list[str]:
    from marsbench.registry import table

    return list(table("WORKLOADS"))


Workload = Annotated[
    list[str] | None,
    _option(
        "workload", "--workload", "-w",
        help="Registered name, trace file or directory; several: -w a,b or -w a -w b.",
        autocompletion=_workloads,
    ),
]  # fmt: skip
System = Annotated[
    list[str] | None,
    _option(
        "system", "--system", "-s",
        help="Name, NAME-tuned, NAME-best, NAME@ROUTER or dotted path; several: -s a,b.",
        autocompletion=_systems,
    ),
]  # fmt: skip
Profile = Annotated[
    list[str] | None, _option("profile", "--profile", help="Model and GPU: name or YAML file.")
]
Load = Annotated[
    list[float] | None,
    _option("load", "--load", help="Arrival rate as share of stock vLLM's capacity."),
]
Rate = Annotated[
    list[float] | None,
    typer.Option("--rate", help="Arrival rate, sessions per second, instead of a load."),
]
ToolCores = Annotated[
    list[int] | None,
    _option("tool_cores", "--tool-cores", help="Cores of the tool pool; 0 = unlimited."),
]
HostKv = Annotated[
    list[float] | None,
    _option(
        "host_kv_gib", "--host-kv", metavar="GIB", help="Host memory for KV per GPU; 0 = none."
    ),
]
Replicas = Annotated[
    list[int] | None,
    _option(
        "replicas", "--replicas", metavar="N", help="Engines behind one front door; see @ROUTER."
    ),
]
Sessions = Annotated[
    int | None, _option("sessions", "--sessions", "-n", help="Sessions of each cell.")
]
Seeds = Annotated[int | None, _option("seeds", "--seeds", help="Number of repetitions.")]
Split = Annotated[
    str | None, _option("split", "--split", help="all, tuning or reporting: halves of a workload.")
]
EngineName = Annotated[
    str | None,
    _option("engine", "--engine", help="sim, vllm-core, sglang-core, vllm, sglang or openai."),
]
Tools = Annotated[
    str | None, _option("tools", "--tools", help="recorded, modelled, process or docker.")
]
Arrival = Annotated[
    str | None, _option("arrival", "--arrival", help="Arrival process; see `marsbench list`.")
]
Config = Annotated[
    list[str] | None,
    typer.Option(
        "--config",
        "-c",
        metavar="KEY=VALUE",
        help="Any key of the experiment, such as tools.speed=2; flags of the engine by their "
        "name alone, such as num_blocks=2000.",
    ),
]
Experiment = Annotated[
    list[Path] | None,
    typer.Argument(help="Experiment files, later ones on top; RUN/config.yaml repeats a run."),
]
RunOut = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Run folder.", show_default="out/TIME-EXPERIMENT"),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue the run in --out: its experiment, without the cells that are finished.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")]
Jobs = Annotated[
    str, typer.Option("--jobs", "-j", help="Processes; for run also ray, ray://HOST:PORT.")
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        help="Folder for measured capacities and ideals.",
        show_default="~/.cache/marsbench",
    ),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Measure everything.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def names(given: Sequence[str] | None) -> list[str]:
    """Names from repeated options and from lists with commas, in order.

    What exists as a file is one name, whatever is in it.
    """
    found: list[str] = []
    for text in given or ():
        parts = [text] if Path(text).exists() else text.split(",")
        found += [part.strip() for part in parts if part.strip()]
    return found


def overrides(given: Iterable[str] | None) -> list[str]:
    """The values of --config, with flags and options of the engine under their full names.

    Raises ConfigError for a name that is neither one of those nor a key of the experiment.
    """
    from marsbench.engine.base import EngineConfig
    from marsbench.engine.live.options import LiveOptions
    from marsbench.registry import unknown

    engines = {f.name for kind in (EngineConfig, LiveOptions) for f in dataclasses.fields(kind)}
    known = {
        **dict.fromkeys(engines, "engine.params."),
        **dict.fromkeys(ExperimentConfig.model_fields, ""),
    }
    found = []
    for text in given or ():
        key = text.partition("=")[0].strip()
        if "=" in text and "." not in key and key not in known:
            raise unknown("key", key, known)
        found.append(known.get(key, "") + text)
    return found


def cache_folder(cache: Path | None, *, no_cache: bool) -> Path | None:
    """The folder that --cache and --no-cache mean; None where everything is to be measured."""
    from marsbench.experiment.memo import default_folder

    return None if no_cache else cache or default_folder()


def experiment_flags(**given: Any) -> dict[str, Any]:
    """Keys of the experiment that the command line gives, without those left out.

    Loads and rates replace each other: one on the line removes the other from a file.
    """
    flags = {key: value for key, value in given.items() if value not in (None, [], ())}
    if ("load" in flags) != ("rate_per_s" in flags):
        flags = {"load": [], "rate_per_s": [], **flags}
    return flags


def workers(text: str) -> int | str:
    """The value of --jobs where Ray is meant too: a number of processes, or Ray's address."""
    local, cluster = text == "ray", text.startswith("ray://") and len(text) > len("ray://")
    return text if local or cluster else number_of_jobs(text)


def number_of_jobs(text: str) -> int:
    """The value of --jobs."""
    from marsbench.errors import ConfigError

    if text.startswith("ray"):
        raise ConfigError(
            f"--jobs {text}: expected a number here; marsbench run takes ray and ray://HOST:PORT too"
        )
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--jobs {text}: expected a number of processes, at least 1")
    return int(text)
