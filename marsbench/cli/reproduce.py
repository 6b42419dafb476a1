"""``marsbench reproduce``: a published evaluation again, beside what was published."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from marsbench.cli import RunFailed, options


def _studies() -> list[str]:
    from marsbench.registry import table

    return list(table("STUDIES"))


def command(
    study: Annotated[str, typer.Argument(help="The evaluation.", autocompletion=_studies)] = "mars",
    part: Annotated[
        list[str] | None,
        typer.Option("--part", "-p", help="Only these; several: -p a,b.", show_default="all"),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Recorded trace for the parts that replay one."),
    ] = None,
    list_parts: Annotated[
        bool, typer.Option("--list", help="Say what the parts are; run nothing.")
    ] = False,
    sessions: options.Sessions = None,
    seeds: options.Seeds = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder of all parts.", show_default="out/reproduce-STUDY"
        ),
    ] = None,
    jobs: options.Jobs = "1",
    cache: options.Cache = None,
    no_cache: options.NoCache = False,
    quiet: options.Quiet = False,
) -> None:
    """Run every part of an evaluation, draw its figures and tables, and hold what was measured
    against the published ranges. What is finished in --out is not run again.
    """
    from marsbench.cli.progress import make_reporter
    from marsbench.errors import ConfigError
    from marsbench.experiment.reproduction import Repetition
    from marsbench.experiment.study import load_study
    from marsbench.registry import unknown

    known = _studies()
    if study is None and not known:
        raise ConfigError("no package here has a published evaluation (a table STUDIES)")
    study = study or known[0]
    found = load_study(study)
    parts = options.names(part) or list(found.parts)
    for name in parts:
        if name not in found.parts:
            raise unknown("part", name, found.parts)
    if list_parts:
        _list(found, parts)
        return
    if trace is not None and not trace.exists():
        raise ConfigError(f"--trace {trace}: no such file")
    flags = options.experiment_flags(sessions=sessions, seeds=seeds, load=(), rate_per_s=())
    repetition = Repetition(
        found,
        out or Path("out") / f"reproduce-{study}",
        make_reporter(quiet=quiet),
        options.number_of_jobs(jobs),
        options.cache_folder(cache, no_cache=no_cache),
        trace,
        {key: value for key, value in flags.items() if value},
    )
    outcomes = []
    for name in parts:
        repetition.reporter.stage(f"part {name}: {found.parts[name].shows}")
        outcomes.append(repetition.run(name))
        repetition.write(outcomes)
    _show(found, outcomes, repetition, named=bool(part))


def _list(study: Any, parts: list[str]) -> None:
    for name in parts:
        one = study.parts[name]
        marks = [
            word for word, on in (("needs --trace", one.trace), ("optional", one.optional)) if on
        ]
        needs = f" ({', '.join(marks)})" if marks else ""
        print(f"{name:<18}{one.shows}{needs}")
        for published in study.published:
            if published.part == name:
                print(f"{'':<18}  {published.claim}: {published.text}; {published.source}")


def _show(study: Any, outcomes: list[Any], repetition: Any, *, named: bool) -> None:
    """Print the table, then one line for each part that did not run; status 1 if one should have."""
    from marsbench.experiment.reproduction import PAGE
    from marsbench.report.published import NUM_TEXT, held_table
    from marsbench.report.table import print_table

    held = [one for outcome in outcomes for one in outcome.held]
    if held:
        header, rows = held_table(held)
        at = header.index("source")  # on the page; too long for a terminal
        short = [[*row[:at], *row[at + 1 :]] for row in (header, *rows)]
        print_table(short[0], short[1:], sys.stdout, num_text=NUM_TEXT - 1)
    for outcome in outcomes:
        for said in outcome.sentences:
            print(f"{outcome.part}: {said}")
    missing = []
    for outcome in outcomes:
        if outcome.problem:
            print(f"warning: part {outcome.part}: {outcome.problem}", file=sys.stderr)
            one = study.parts[outcome.part]
            if named or not (one.optional or (one.trace and repetition.trace is None)):
                missing.append(outcome.part)
    print(f"page: {repetition.out / PAGE}.md", file=sys.stderr)
    if missing:
        raise RunFailed(f"not whole: {', '.join(missing)}; run the same command again to go on")
