"""``marsbench run``: a grid of cells into a run folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from marsbench.cli import EXIT_TERMINATED, RunFailed, options
from marsbench.cli.termination import like_an_interrupt, unfinished
from marsbench.config import ExperimentConfig, load_config
from marsbench.errors import ConfigError


def run(
    experiment: options.Experiment = None,
    workload: options.Workload = None,
    system: options.System = None,
    profile: options.Profile = None,
    load: options.Load = None,
    rate: options.Rate = None,
    tool_cores: options.ToolCores = None,
    host_kv: options.HostKv = None,
    replicas: options.Replicas = None,
    sessions: options.Sessions = None,
    seeds: options.Seeds = None,
    split: options.Split = None,
    engine: options.EngineName = None,
    tools: options.Tools = None,
    arrival: options.Arrival = None,
    driver: Annotated[
        str | None,
        typer.Option(
            help="What makes sessions act: replay, or live agents: openhands.",
            show_default=options.default_of("driver"),
        ),
    ] = None,
    config: options.Config = None,
    out: options.RunOut = None,
    jobs: options.Jobs = "1",
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    shard: Annotated[
        str,
        typer.Option(
            metavar="I/N", help="Run the I-th of N parts of the grid; see marsbench merge."
        ),
    ] = "",
    cache: options.Cache = None,
    no_cache: options.NoCache = False,
    stream: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Publish events there; see marsbench watch.")
    ] = "",
    stream_wait: Annotated[
        int, typer.Option(metavar="N", min=0, help="Begin when N observers have come.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Run an experiment: every combination of workload, profile, tool cores, load, seed, system."""
    if stream_wait and not stream:
        raise ConfigError("--stream-wait needs --stream ADDRESS, where observers can come")
    flags = options.experiment_flags(
        workload=options.names(workload), system=options.names(system),
        profile=options.names(profile), load=load, rate_per_s=rate, tool_cores=tool_cores,
        host_kv_gib=host_kv, replicas=replicas, sessions=sessions, seeds=seeds, split=split, engine=engine, tools=tools, arrival=arrival,
        driver=driver,
    )  # fmt: skip
    files = stored_below(experiment, out, resume=resume, given=bool(flags or config))
    loaded = load_config(files, flags=flags, overrides=options.overrides(config))
    with like_an_interrupt() as terminated:
        try:
            result = _run(
                loaded, out, jobs=jobs, resume=resume, overwrite=overwrite, shard=shard, cache=cache,
                no_cache=no_cache, stream=stream, stream_wait=stream_wait, quiet=quiet,
            )  # fmt: skip
        except KeyboardInterrupt:
            if terminated():
                raise RunFailed(
                    "terminated before the first cell was finished", code=EXIT_TERMINATED
                ) from None
            raise
    if as_json:
        print(json.dumps(result.summary, indent=1))
    else:
        _print_table(result)
        print(f"run folder: {result.folder}", file=sys.stderr)
    _complain(result, terminated=terminated())


def stored_below(
    experiment: list[Path] | None, out: Path | None, *, resume: bool, given: bool
) -> list[Path]:
    """The files of an experiment. If a run is resumed, its own comes first, below what the command
    line says; a folder without one is no mistake where files or options are ``given``.
    """
    from marsbench.experiment.resume import stored_config

    files = list(experiment or [])
    if not resume:
        return files
    if out is None:
        raise ConfigError("--resume needs --out DIR, the folder of the run to continue")
    if not (files or given) or (out / "config.yaml").is_file():
        return [stored_config(out), *files]
    return files


def _run(
    experiment: ExperimentConfig,
    out: Path | None,
    *,
    jobs: str,
    shard: str,
    cache: Path | None,
    no_cache: bool,
    quiet: bool,
    **given: Any,
) -> Any:
    from marsbench.cli.progress import make_reporter
    from marsbench.experiment.runner import run_experiment
    from marsbench.experiment.shards import parse_shard

    return run_experiment(
        experiment,
        out,
        reporter=make_reporter(quiet=quiet),
        jobs=options.workers(jobs),
        shard=parse_shard(shard) if shard else None,
        cache=options.cache_folder(cache, no_cache=no_cache),
        **given,
    )


def _print_table(result: Any) -> None:
    from marsbench.report.data import load_runs
    from marsbench.report.table import headings, print_table, report_rows, text_cells

    if result.summary["cells"]:
        rows = report_rows(load_runs([result.folder]))
        print_table(headings(), [text_cells(row) for row in rows], sys.stdout)


def _complain(result: Any, *, terminated: bool) -> None:
    """Raise RunFailed for a run that is not complete, or in which a metric raised."""
    if result.complete:
        _complain_of_metrics(result)
        return
    finished = len(result.summary["cells"])
    kept = (
        f"{finished} of {result.num_cells} cells are kept in {result.folder}; "
        f"continue with --resume --out {result.folder}"
    )
    raise unfinished(result, kept, terminated=terminated)


def _complain_of_metrics(result: Any) -> None:
    """A metric that raised ends a complete run with one line and status 1."""
    failed: dict[str, list[str]] = {}
    for cell in result.summary["cells"]:
        for name, problem in cell.get("failed_metrics", {}).items():
            failed.setdefault(name, []).append(problem)
    for name, problems in failed.items():
        others = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise RunFailed(
            f"metric {name!r}{others} raised in {len(problems)} cells: {problems[0]}; "
            f"everything else is kept in {result.folder}"
        )
