"""``marsbench trace``: make, convert, describe, check, scale, fit and fetch workload traces."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marsbench.cli.output import output

if TYPE_CHECKING:
    from marsbench.core import Session
    from marsbench.trace.faults import Faults
    from marsbench.trace.stats import TraceStats

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Make, convert, describe, check, scale, fit and fetch workload traces.",
)

WIDTH_OF_FILES = 160
"""Characters of a line where the output is no terminal."""

Source = Annotated[Path, typer.Argument(help="Trace file or directory (plain, gzip or zstd).")]
Format = Annotated[
    str | None, typer.Option("--format", help="Its format, if content does not tell.")
]
Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map", metavar="COLUMN=FIELD", help="What a column of a CSV file stands for; repeatable."
    ),
]
Out = Annotated[Path | None, typer.Option("--out", help="File (.gz, .zst: compressed) or stdout.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Num = Annotated[int | None, typer.Option("--sessions", help="How many sessions of a workload.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of a workload.")]
OnError = Annotated[
    str,
    typer.Option(
        "--on-error",
        metavar="fail|skip|repair",
        help="Rows that cannot be read: stop; leave their session out; or read negative numbers "
        "as 0 and leave out what is still wrong.",
    ),
]


@app.command()
def synth(
    workload: str, sessions: Num = None, seed: Seed = 0, split: str = "all", out: Out = None
) -> None:
    """Write sessions of a workload (`marsbench list workloads`) as a canonical trace."""
    from marsbench.trace import io, source

    made = source.open_workload(workload)
    extensions = {source.PROVENANCE_KEY: dict(made.provenance)}
    with output(out) as stream:
        num = io.write_sessions(stream, made.sessions(sessions, seed, split), extensions)
    _say(f"{num:,} sessions of {made.name}, seed {seed}")


@app.command("import")
def import_(
    path: Source,
    format_name: Format = None,
    columns: Map = None,
    on_error: OnError = "fail",
    out: Out = None,
) -> None:
    """Convert a trace of any known format to the canonical one."""
    from marsbench.errors import TraceError
    from marsbench.trace import io, source
    from marsbench.trace.faults import Faults

    faults = Faults(on_error)
    importer, sessions = source.open_trace(path, format_name, faults, _columns(columns))
    extensions = {source.PROVENANCE_KEY: dict(importer.provenance)}
    with output(out) as stream:
        num = io.write_sessions(stream, sessions, extensions)
        if not num:
            raise TraceError("has no sessions; give a trace with at least one", path=str(path))
    _say(f"{num:,} sessions, format {importer.name}: {importer.summary}")
    _say_faults(faults)


@app.command()
def stats(
    trace: Annotated[str, typer.Argument(help="Trace file, directory or workload name.")],
    against: Annotated[
        str | None, typer.Option(help="Second trace: how far apart are they?")
    ] = None,
    format_name: Format = None,
    sessions: Num = None,
    seed: Seed = 0,
    on_error: OnError = "fail",
    as_json: Json = False,
) -> None:
    """Say what was recorded, derived or assumed, and how the trace's numbers are distributed."""
    from marsbench.trace.stats import compare_stats
    from marsbench.trace.tables import distance_tables, stats_tables

    mine = _collect(trace, format_name, sessions, seed, on_error)
    other = _collect(against, None, sessions, seed, on_error) if against else None
    distances = compare_stats(mine, other) if other else []
    if as_json:
        found: dict[str, Any] = mine.to_json()
        if other:
            found |= {"against": other.to_json(), "distances": [asdict(d) for d in distances]}
        print(json.dumps(found))
    else:
        _show(partial(distance_tables, distances) if other else partial(stats_tables, mine))


@app.command()
def validate(
    path: Source, format_name: Format = None, max_problems: int = 20, as_json: Json = False
) -> None:
    """Check a whole trace; exits 1 and lists the problems by line if there are any."""
    from marsbench.trace.validate import validate as check

    report = check(path, format_name, max_problems)
    if as_json:
        print(json.dumps(report.to_json()))
    else:
        for problem in report.problems:
            print(problem)
        verdict = "ok" if report.ok else f"{report.num_problems:,} problems"
        _say(
            f"{path}: {verdict} ({report.format}, {report.num_sessions:,} good sessions, "
            f"{report.num_turns:,} turns, {report.num_tool_calls:,} tool calls)"
        )
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def export(
    path: Source,
    format_name: Annotated[
        str,
        typer.Option(
            "--format",
            help="canonical, agentic-mooncake, agentic-mooncake-v2, trie or tracelab-csv.",
        ),
    ],
    source_format: Annotated[str | None, typer.Option("--from", help="Format of PATH.")] = None,
    block_size: Annotated[int, typer.Option(help="Tokens per hash id.")] = 512,
    on_error: OnError = "fail",
    out: Out = None,
) -> None:
    """Write a trace in another tool's format; one line on stderr says what that cannot express."""
    from marsbench.trace import export as exporter
    from marsbench.trace import io, source
    from marsbench.trace.faults import Faults

    faults = Faults(on_error)
    _, sessions = source.open_trace(path, source_format, faults)
    with output(out) as stream:
        losses = exporter.export(
            sessions,
            stream,
            format_name,
            block_size=block_size,
            source_digest=f"sha256:{io.sha256(path)}",
        )
    _say(f"lost in {format_name}: {losses.summary()}" if losses.summary() else "nothing lost")
    _say_faults(faults)


@app.command()
def scale(
    trace: Annotated[str, typer.Argument(help="Trace file, directory or workload name.")],
    prompts: Annotated[float, typer.Option(help="Factor of prompts, results and prefixes.")] = 0.25,
    outputs: Annotated[float, typer.Option(help="Factor of outputs.")] = 0.25,
    format_name: Format = None,
    sessions: Num = None,
    seed: Seed = 0,
    on_error: OnError = "fail",
    out: Out = None,
) -> None:
    """Write a trace with its tokens scaled, for engines too small for real contexts."""
    from marsbench.trace import io, source
    from marsbench.trace.scale import scale_sessions

    faults, provenance, found = _open(trace, format_name, sessions, seed, on_error)
    with output(out) as stream:
        scaled = scale_sessions(found, prompts, outputs)
        num = io.write_sessions(stream, scaled, {source.PROVENANCE_KEY: dict(provenance)})
    _say(f"{num:,} sessions, prompts x {prompts:g}, outputs x {outputs:g}")
    _say_faults(faults)


@app.command()
def fit(
    path: Source,
    against: Annotated[
        list[str] | None, typer.Option(help="Workload to compare instead of fitting; repeatable.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="Document whose table between the fit markers is renewed.")
    ] = None,
    format_name: Format = None,
    on_error: OnError = "fail",
) -> None:
    """Fit lognormal mixtures to one half of a trace, or compare workloads with the other half."""
    from marsbench.errors import ConfigError
    from marsbench.markdown import write_block
    from marsbench.trace import fit as fitting
    from marsbench.trace import source
    from marsbench.trace.faults import Faults

    if write is not None and not against:
        raise ConfigError("--write: there is a table only with --against WORKLOAD; add one")
    faults = Faults(on_error)
    _, sessions = source.open_trace(path, format_name, faults)
    recorded = fitting.halves(sessions, path)
    _say_faults(faults)
    if not against:
        print("\n".join(fitting.mixtures(recorded.tuning)))
        return
    drawn = {name: source.open_workload(name) for name in against}
    generated = {n: w.sessions(fitting.NUM_GENERATED, 0) for n, w in drawn.items()}
    table = fitting.comparison(generated, recorded)
    print(table)
    if write is not None:
        write_block(write, fitting.BLOCK, table)


@app.command()
def fetch(
    name: Annotated[str | None, typer.Argument(help="Public set; none lists them.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder to put it in.")] = Path("traces"),
    mirror: Annotated[str | None, typer.Option(help="URL, file or folder to take it from.")] = None,
    as_json: Json = False,
) -> None:
    """Download a public trace: resumes, checks its SHA-256."""
    from marsbench.trace import catalogue
    from marsbench.trace.fetch import fetch as get

    if name is None:
        rows = [asdict(entry) for entry in catalogue.CATALOGUE.values()]
        lines = [f"{r['name']}\t{r['licence']}\t{r['size']}\t{r['summary']}" for r in rows]
        print(json.dumps(rows) if as_json else "\n".join(lines))
        return
    entry = catalogue.find_set(name)
    found = get(entry, out, mirror=mirror, on_progress=_progress if sys.stderr.isatty() else None)
    _say(f"{entry.name}: {entry.licence}; SHA-256 {found.sha256}, checked against {found.checked}")
    print(json.dumps({**asdict(found), "path": str(found.path)}) if as_json else found.path)


def _columns(given: list[str] | None) -> dict[str, str]:
    """What columns stand for, from COLUMN=FIELD texts."""
    from marsbench.errors import ConfigError

    found: dict[str, str] = {}
    for text in given or ():
        column, equals, field = text.rpartition("=")
        if not equals or not column or not field:
            example = "--map 'Request tokens=input_tokens'"
            raise ConfigError(f"--map {text}: expected COLUMN=FIELD, for example {example}")
        if column in found:
            raise ConfigError(f"--map: column {column!r} is given twice; keep one of them")
        found[column] = field
    return found


def _open(
    spec: str, format_name: str | None, num: int | None, seed: int, on_error: str
) -> tuple[Faults, Mapping[str, str], Iterable[Session]]:
    """The sessions of a path or a workload, how their fields are known, and faults met so far.

    A path is read from its beginning, in its own order; a workload is drawn by its seed.
    """
    from marsbench.trace import source
    from marsbench.trace.faults import Faults

    faults = Faults(on_error)
    if Path(spec).exists():
        importer, found = source.open_trace(Path(spec), format_name, faults)
        return faults, importer.provenance, islice(found, num)
    workload = source.open_workload(spec)
    return faults, workload.provenance, workload.sessions(num, seed)


def _collect(
    spec: str, format_name: str | None, num: int | None, seed: int, on_error: str
) -> TraceStats:
    from marsbench.trace.stats import collect_stats

    faults, provenance, sessions = _open(spec, format_name, num, seed, on_error)
    stats = collect_stats(sessions, provenance, seed=seed)
    stats.left_out, stats.repaired = faults.counts()["left_out"], faults.counts()["repaired"]
    _say_faults(faults)
    return stats


def _show(tables: Callable[[int], list[Any]]) -> None:
    """Print tables that are made for a width: that of the terminal, or a wide one for a file."""
    from rich.console import Console

    console = Console()
    console = console if console.is_terminal else Console(width=WIDTH_OF_FILES)
    for table in tables(console.width):
        console.print(table)


def _progress(size: int, total: int | None) -> None:
    of = f" of {total / 1e6:,.1f}" if total else ""
    print(f"\r{size / 1e6:,.1f}{of} MB", end="", file=sys.stderr)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _say_faults(faults: Faults) -> None:
    if summary := faults.summary():
        _say(summary)
