"""``marsbench trace``: make, convert, describe, check and fetch workload traces."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

if TYPE_CHECKING:
    from marsbench.trace.stats import TraceStats

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Make, convert, describe, check and fetch workload traces.",
)

Source = Annotated[Path, typer.Argument(help="Trace file or directory (plain, gzip or zstd).")]
Format = Annotated[
    str | None, typer.Option("--format", help="Its format, if content does not tell.")
]
Out = Annotated[Path | None, typer.Option("--out", help="File (.gz, .zst: compressed) or stdout.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Num = Annotated[int | None, typer.Option("--sessions", help="How many sessions of a workload.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of a workload.")]


@app.command()
def synth(
    workload: str, sessions: Num = None, seed: Seed = 0, split: str = "all", out: Out = None
) -> None:
    """Write sessions of a workload (`marsbench list workloads`) as a canonical trace."""
    from marsbench.trace import io, source

    made = source.open_workload(workload)
    extensions = {source.PROVENANCE_KEY: dict(made.provenance)}
    with _output(out) as stream:
        num = io.write_sessions(stream, made.sessions(sessions, seed, split), extensions)
    _say(f"{num:,} sessions of {made.name}, seed {seed}")


@app.command("import")
def import_(path: Source, format_name: Format = None, out: Out = None) -> None:
    """Convert a trace of any known format to the canonical one."""
    from marsbench.errors import TraceError
    from marsbench.trace import io, source

    importer, sessions = source.open_trace(path, format_name)
    extensions = {source.PROVENANCE_KEY: dict(importer.provenance)}
    with _output(out) as stream:
        num = io.write_sessions(stream, sessions, extensions)
        if not num:
            raise TraceError("has no sessions; give a trace with at least one", path=str(path))
    _say(f"{num:,} sessions, format {importer.name}: {importer.summary}")


@app.command()
def stats(
    trace: Annotated[str, typer.Argument(help="Trace file, directory or workload name.")],
    against: Annotated[
        str | None, typer.Option(help="Second trace: how far apart are they?")
    ] = None,
    format_name: Format = None,
    sessions: Num = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Say what was recorded, derived or assumed, and how the trace's numbers are distributed."""
    from marsbench.trace.stats import compare_stats, distance_table, stats_tables

    mine = _collect(trace, format_name, sessions, seed)
    other = _collect(against, None, sessions, seed) if against else None
    distances = compare_stats(mine, other) if other else []
    if as_json:
        found: dict[str, Any] = mine.to_json()
        if other:
            found |= {"against": other.to_json(), "distances": [asdict(d) for d in distances]}
        print(json.dumps(found))
    else:
        _show([distance_table(distances)] if other else stats_tables(mine))


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
        str, typer.Option("--format", help="canonical, agentic-mooncake, trie or tracelab-csv.")
    ],
    source_format: Annotated[str | None, typer.Option("--from", help="Format of PATH.")] = None,
    block_size: Annotated[int, typer.Option(help="Tokens per hash id.")] = 512,
    out: Out = None,
) -> None:
    """Write a trace in another tool's format; one line on stderr says what that cannot express."""
    from marsbench.trace import export as exporter
    from marsbench.trace import source

    _, sessions = source.open_trace(path, source_format)
    with _output(out) as stream:
        losses = exporter.export(sessions, stream, format_name, block_size=block_size)
    _say(f"lost in {format_name}: {losses.summary()}" if losses.summary() else "nothing lost")


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


def _collect(spec: str, format_name: str | None, num: int | None, seed: int) -> TraceStats:
    from marsbench.trace import source
    from marsbench.trace.stats import collect_stats

    if Path(spec).exists():
        importer, sessions = source.open_trace(Path(spec), format_name)
        return collect_stats(sessions, importer.provenance, seed=seed)
    workload = source.open_workload(spec)
    return collect_stats(workload.sessions(num, seed), workload.provenance, seed=seed)


@contextmanager
def _output(out: Path | None) -> Iterator[BinaryIO]:
    from marsbench.trace import io

    if out is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    else:
        with io.open_atomic(out) as stream:
            yield stream


def _show(tables: list[Any]) -> None:
    from rich.console import Console

    console = Console()
    console = console if console.is_terminal else Console(width=160)
    for table in tables:
        console.print(table)


def _progress(size: int, total: int | None) -> None:
    of = f" of {total / 1e6:,.1f}" if total else ""
    print(f"\r{size / 1e6:,.1f}{of} MB", end="", file=sys.stderr)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
