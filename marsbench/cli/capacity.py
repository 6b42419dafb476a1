"""``marsbench capacity``: the highest load that each system sustains with an objective met."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from marsbench.cli import options
from marsbench.cli.run import stored_below
from marsbench.cli.termination import like_an_interrupt, unfinished
from marsbench.config import load_config

SEEDS = 5
"""Where nothing else is said: an interval needs three, and is half as wide with five."""


def command(
    experiment: options.Experiment = None,
    slo: Annotated[
        str | None,
        typer.Option(
            "--slo",
            metavar="'p95 slowdown <= 3'",
            help="What must hold: mean, median or p90, p95, p99 of latency, slowdown, ttft, tpot, "
            "queueing or tool queue; attainment@3, goodput@3, throughput, hit rate, fairness, failed; "
            "several with 'and'.",
        ),
    ] = None,
    closed_loop: Annotated[
        bool | None,
        typer.Option(
            "--closed-loop/--open-loop",
            help="Search the number of agents that are always there, or the arrival rate.",
            show_default="open-loop",
        ),
    ] = None,
    workload: options.Workload = None,
    system: options.System = None,
    profile: options.Profile = None,
    tool_cores: options.ToolCores = None,
    host_kv: options.HostKv = None,
    sessions: options.Sessions = None,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", help="Number of repetitions.", show_default=str(SEEDS)),
    ] = None,
    split: options.Split = None,
    engine: options.EngineName = None,
    tools: options.Tools = None,
    arrival: options.Arrival = None,
    least: Annotated[
        float | None,
        typer.Option(
            help="Low end of the search, sessions per hour or agents.",
            show_default="load 0.05, 1 agent",
        ),
    ] = None,
    most: Annotated[
        float | None,
        typer.Option(
            help="High end of the search, sessions per hour or agents.",
            show_default="load 10, 1024 agents",
        ),
    ] = None,
    precision: Annotated[
        float | None,
        typer.Option(help="Distance of neighbouring rates, as a share.", show_default="0.03"),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="System that ratios are to.", show_default="first, as tuned if that is run"
        ),
    ] = None,
    config: options.Config = None,
    out: options.RunOut = None,
    jobs: options.Jobs = "1",
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    cache: options.Cache = None,
    no_cache: options.NoCache = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print capacity.json.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Find how many sessions an hour, or agents, each system sustains with an objective met.

    A load at which the queue grows as long as sessions arrive is not sustained, whatever the objective.
    Loads and rates of an experiment file are not used.
    """
    wanted = {
        "slo": slo,
        "closed_loop": closed_loop,
        "precision": precision,
        "least": least,
        "most": most,
    }
    wanted = {name: value for name, value in wanted.items() if value is not None}
    flags = options.experiment_flags(
        workload=options.names(workload), system=options.names(system),
        profile=options.names(profile), tool_cores=tool_cores, host_kv_gib=host_kv,
        sessions=sessions, seeds=seeds, split=split, engine=engine, tools=tools, arrival=arrival,
        sustain=wanted or None,
    )  # fmt: skip
    files = stored_below(experiment, out, resume=resume, given=bool(flags or config))
    defaults = {"seeds": SEEDS}
    loaded = load_config(files, flags=flags, overrides=options.overrides(config), defaults=defaults)
    with like_an_interrupt() as terminated:
        result = _find(
            loaded, out, jobs=jobs, resume=resume, overwrite=overwrite, cache=cache,
            no_cache=no_cache, quiet=quiet, baseline=baseline,
        )  # fmt: skip
    _show(result, baseline, as_json=as_json)
    _complain(result, terminated=terminated())


def _find(
    experiment: Any,
    out: Path | None,
    *,
    jobs: str,
    cache: Path | None,
    no_cache: bool,
    quiet: bool,
    baseline: str | None,
    **given: Any,
) -> Any:
    from marsbench.cli.progress import make_reporter
    from marsbench.experiment.sustained import find_capacity
    from marsbench.registry import unknown

    if baseline is not None and baseline not in experiment.system:
        raise unknown("baseline", baseline, experiment.system)
    return find_capacity(
        experiment,
        out,
        reporter=make_reporter(quiet=quiet),
        jobs=options.number_of_jobs(jobs),
        cache=options.cache_folder(cache, no_cache=no_cache),
        **given,
    )


def _show(result: Any, baseline: str | None, *, as_json: bool) -> None:
    """Print a table for each scenario, or the JSON document with the rows of these tables."""
    from marsbench.report import capacity
    from marsbench.report.table import print_table
    from marsbench.runfolder import read_capacity, to_json

    found = read_capacity(result.folder)
    assert found is not None
    rows = capacity.rows_of(found, baseline)
    notes = capacity.warnings_of(found)
    if as_json:
        shown = {**found, "rows": [row.to_json() for row in rows], "warnings": notes}
        sys.stdout.write(to_json(shown))
        return
    closed = found["loop"] == "closed"
    for scenario, group in groupby(rows, lambda row: row.scenario):
        part = list(group)
        print(f"{scenario}, {found['slo']}:")
        header, table = capacity.capacity_table(part, closed=closed)
        print_table(header, table, sys.stdout, num_text=1)
        print()
        for row in part:
            print(f"  {capacity.sentence(row, found)}")
            for note in row.notes:
                print(f"warning: {row.system}: {note}", file=sys.stderr)
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    print(f"run folder: {result.folder}", file=sys.stderr)


def _complain(result: Any, *, terminated: bool) -> None:
    """Raise RunFailed for a search that is not complete."""
    if not result.complete:
        kept = f"finished cells are kept; continue with --resume --out {result.folder}"
        raise unfinished(result, kept, terminated=terminated)
