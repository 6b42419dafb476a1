"""``marsbench run``: a grid of cells into a run folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from marsbench.cli import EXIT_INTERRUPTED, RunFailed
from marsbench.errors import ConfigError


def run(
    experiment: Annotated[
        list[Path] | None,
        typer.Argument(help="Experiment files, later ones on top; RUN/config.yaml repeats a run."),
    ] = None,
    workload: Annotated[
        list[str] | None, typer.Option("--workload", "-w", help="Registered name or trace file.")
    ] = None,
    system: Annotated[
        list[str] | None,
        typer.Option("--system", "-s", help="Name, NAME-tuned, NAME-best or dotted path."),
    ] = None,
    profile: Annotated[
        list[str] | None, typer.Option(help="Model and GPU: name or YAML file.")
    ] = None,
    load: Annotated[
        list[float] | None, typer.Option(help="Arrival rate as share of stock vLLM's capacity.")
    ] = None,
    rate: Annotated[
        list[float] | None, typer.Option(help="Arrival rate, sessions per second.")
    ] = None,
    tool_cores: Annotated[
        list[int] | None, typer.Option(help="Cores of the tool pool; 0 = unlimited.")
    ] = None,
    sessions: Annotated[int | None, typer.Option("--sessions", "-n", help="Per cell.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Number of repetitions.")] = None,
    split: Annotated[str | None, typer.Option(help="all, tuning or reporting.")] = None,
    engine: Annotated[str | None, typer.Option(help="sim, vllm-core, vllm or openai.")] = None,
    tools: Annotated[
        str | None, typer.Option(help="recorded, modelled, process or docker.")
    ] = None,
    arrival: Annotated[str | None, typer.Option(help="Arrival process.")] = None,
    driver: Annotated[str | None, typer.Option(help="replay.")] = None,
    config: Annotated[
        list[str] | None,
        typer.Option("--config", "-c", metavar="KEY=VALUE", help="Any key of the experiment."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run folder.")] = None,
    jobs: Annotated[str, typer.Option("--jobs", "-j", help="Processes.")] = "1",
    resume: Annotated[bool, typer.Option("--resume", help="Skip finished cells.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in --out.")
    ] = False,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for measured capacities and ideals.")
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Measure everything.")] = False,
    stream: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Publish events there; see marsbench watch.")
    ] = "",
    stream_wait: Annotated[
        int, typer.Option(metavar="N", min=0, help="Begin when N observers have come.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Run an experiment: every combination of workload, profile, tool cores, load, seed, system."""
    from marsbench.cli.progress import make_reporter
    from marsbench.config import load_config
    from marsbench.experiment.memo import default_folder
    from marsbench.experiment.runner import RunResult, run_experiment

    given = {
        "workload": workload, "system": system, "profile": profile, "load": load,
        "rate_per_s": rate, "tool_cores": tool_cores, "sessions": sessions, "seeds": seeds,
        "split": split, "engine": engine, "tools": tools, "arrival": arrival, "driver": driver,
    }  # fmt: skip
    flags: dict[str, Any] = {key: value for key, value in given.items() if value not in (None, [])}
    if stream_wait and not stream:
        raise ConfigError("--stream-wait needs --stream ADDRESS, where observers can come")
    if ("load" in flags) != ("rate_per_s" in flags):  # one on the line replaces both in a file
        flags = {"load": [], "rate_per_s": [], **flags}
    result: RunResult = run_experiment(
        load_config(experiment or (), flags=flags, overrides=config or ()),
        out,
        reporter=make_reporter(quiet=quiet),
        jobs=_jobs(jobs),
        resume=resume,
        overwrite=overwrite,
        cache=None if no_cache else (cache or default_folder()),
        stream=stream,
        stream_wait=stream_wait,
    )
    if as_json:
        print(json.dumps(result.summary, indent=1))
    else:
        _print_table(result)
        print(f"run folder: {result.folder}", file=sys.stderr)
    _complain(result)


def _print_table(result: Any) -> None:
    from marsbench.report.data import load_runs
    from marsbench.report.table import headings, print_table, report_rows, text_cells

    if result.summary["cells"]:
        rows = report_rows(load_runs([result.folder]))
        print_table(headings(), [text_cells(row) for row in rows], sys.stdout)


def _complain(result: Any) -> None:
    """A run that is not complete ends with one line and status 1, interrupted 130."""
    if result.complete:
        return
    kept = (
        f"{len(result.summary['cells'])} of {result.num_cells} cells are kept in {result.folder}; "
        f"continue with --resume --out {result.folder}"
    )
    if result.interrupted:
        raise RunFailed(f"interrupted: {kept}", code=EXIT_INTERRUPTED)
    cell, error = result.failures[0]
    raise RunFailed(
        f"{len(result.failures)} cells failed, first {cell.describe()}: {error}; {kept}"
    )


def _jobs(text: str) -> int:
    if text.startswith("ray"):
        raise ConfigError(f"--jobs {text}: sweeps over Ray are not supported; give a number")
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--jobs {text}: expected a number of processes, at least 1")
    return int(text)
