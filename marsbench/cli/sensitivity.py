"""``marsbench sensitivity``: what each parameter of a system is worth, one at a time."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marsbench.cli import EXIT_FAILED, EXIT_INTERRUPTED, RunFailed, options
from marsbench.config import Value, load_config
from marsbench.errors import ConfigError, MarsbenchError

if TYPE_CHECKING:
    from marsbench.experiment.lab import Lab
    from marsbench.experiment.sensitivity import Effect, Grid

HEADER = ["parameter", "value", "mean s", "ratio", "95 % interval", "p99 ratio"]


def command(
    system: Annotated[str, typer.Option("--system", "-s", help="Registered name or dotted path.")],
    workload: options.Workload = None,
    param: Annotated[
        list[str] | None,
        typer.Option(
            "--param",
            metavar="NAME=A,B,C",
            show_default="the system's own grid",
            help="Values of a parameter, in place of those in the system's grid or beside it.",
        ),
    ] = None,
    profile: options.Profile = None,
    load: options.Load = None,
    rate: options.Rate = None,
    tool_cores: options.ToolCores = None,
    host_kv: options.HostKv = None,
    sessions: options.Sessions = None,
    seeds: options.Seeds = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="sim, vllm-core or sglang-core.", show_default=options.default_of("engine")
        ),
    ] = None,
    config: options.Config = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE.csv", help="Write the rows there.")
    ] = None,
    jobs: options.Jobs = "1",
    cache: options.Cache = None,
    no_cache: options.NoCache = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Move one parameter at a time from its default, on the tuning split, with paired sessions.

    Ratios are of session latency to that of the defaults: above 1 is slower.
    """
    from marsbench.cli.progress import make_reporter
    from marsbench.experiment.lab import Lab
    from marsbench.experiment.memo import Memo
    from marsbench.experiment.pool import Pool
    from marsbench.experiment.sensitivity import check, grid_of, named_system
    from marsbench.report.intervals import MIN_SEEDS

    if out is not None and not out.absolute().parent.is_dir():
        raise ConfigError(f"--out {out}: no such folder {out.parent}; make it first")
    flags = options.experiment_flags(
        system=options.names([system]), workload=options.names(workload),
        profile=options.names(profile), load=load, rate_per_s=rate, tool_cores=tool_cores,
        host_kv_gib=host_kv, sessions=sessions, seeds=seeds, engine=engine, split="tuning",
    )  # fmt: skip
    loaded = load_config(flags=flags, overrides=options.overrides(config))
    reporter = make_reporter(quiet=quiet)
    memo = Memo(options.cache_folder(cache, no_cache=no_cache), reporter.note)
    with Pool(options.number_of_jobs(jobs)) as pool:
        lab = Lab(loaded, memo, pool, reporter)
        grid = grid_of(named_system(lab), values(param or ()))
        check(lab, grid)
        rows, problem = _measured(lab, grid)
    _write(rows, out, as_json=as_json)
    if loaded.seeds < MIN_SEEDS:
        reporter.note(
            f"warning: fewer than {MIN_SEEDS} seeds: the intervals do not cover variation between "
            f"arrivals; give --seeds {MIN_SEEDS} or more"
        )
    if problem is not None:
        raise problem


def values(given: Sequence[str]) -> dict[str, list[Value]]:
    """Return the values of each parameter from texts ``NAME=A,B,C``; any other text is a ConfigError."""
    found: dict[str, list[Value]] = {}
    for text in given:
        name, _, listed = text.partition("=")
        parts = [part.strip() for part in listed.split(",")]
        if not name.strip() or not all(parts):
            raise ConfigError(f"--param {text}: expected NAME=VALUE,VALUE,... without gaps")
        found.setdefault(name.strip(), []).extend(map(_value, parts))
    return found


def _value(text: str) -> Value:
    """Return a number or a switch where the text is one, else the text."""
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _measured(lab: Lab, grid: Grid) -> tuple[list[Effect], RunFailed | None]:
    """Return all rows, or those that were finished and why there are no more."""
    from marsbench.experiment.sensitivity import sensitivity

    rows: list[Effect] = []
    try:
        for found in sensitivity(lab, grid):
            rows += found
    except (MarsbenchError, KeyboardInterrupt) as error:
        if not rows:
            raise
        stopped = isinstance(error, KeyboardInterrupt)
        said = "interrupted" if stopped else str(error)
        code = EXIT_INTERRUPTED if stopped else EXIT_FAILED
        return rows, RunFailed(f"{said}; the {len(rows)} rows before that are kept", code=code)
    return rows, None


def _write(rows: Sequence[Effect], out: Path | None, *, as_json: bool) -> None:
    """Write rows to the file, and to stdout as JSON or as a table for each place."""
    from dataclasses import asdict
    from itertools import groupby

    from marsbench.experiment.sensitivity import frame
    from marsbench.report.table import print_table
    from marsbench.runfolder import to_json

    if out is not None:
        frame(rows).to_csv(out, index=False, float_format="%.6g")
    if as_json:
        sys.stdout.write(to_json({"rows": [asdict(row) for row in rows]}))
        return
    for place, found in groupby(rows, _place):
        print(f"{place}:")
        print_table(HEADER, [_cells(row) for row in found], sys.stdout, num_text=2)


def _place(row: Effect) -> str:
    """Say in words what was run."""
    pressure = "at its own pace"
    if row.load is not None:
        pressure = f"at load {row.load:g}"
    elif row.rate_per_s is not None:
        pressure = f"at {row.rate_per_s:g} sessions/s"
    cores = row.tool_cores or "unlimited"
    host = f", {row.host_kv_gib:g} GiB of host memory for KV" if row.host_kv_gib else ""
    return f"{row.workload} {pressure} on {row.profile} ({cores} tool cores{host})"


def _cells(row: Effect) -> list[str]:
    from marsbench.report.table import number

    value = row.value
    shown = "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    mean = "-" if row.mean_latency_s is None else number(row.mean_latency_s)
    ratio = "-" if row.ratio is None else f"{row.ratio:.3f}"
    interval = "-" if row.low is None or row.high is None else f"{row.low:.3f}-{row.high:.3f}"
    tail = "-" if row.p99_ratio is None else f"{row.p99_ratio:.3f}"
    return [row.parameter, shown, mean, ratio, interval, tail]
