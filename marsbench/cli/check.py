"""``marsbench check``: fails, with a table, when a run is worse than a reference."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from marsbench.cli import RunFailed
from marsbench.errors import ConfigError


def command(
    run: Annotated[Path, typer.Argument(help="Run folder of the changed code.")],
    against: Annotated[Path, typer.Option("--against", help="Run folder to compare with.")],
    tolerance: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC=5%",
            help="Worsening that is let pass; 5% alone is of all metrics (the default).",
        ),
    ] = None,
    exact: Annotated[
        bool,
        typer.Option(help="Any difference fails, better or worse (virtual engines)."),
    ] = False,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML.")] = None,
    github_summary: Annotated[
        bool, typer.Option("--github-summary", help="Add a table to the GitHub step summary.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all rows as JSON.")] = False,
) -> None:
    """Compare a run with a reference, metric by metric, cell by cell.

    Exits 0 if nothing got worse by the tolerance, 1 if something did, 2 if it cannot be told.
    """
    from marsbench.report import check as gate
    from marsbench.report import check_files as files
    from marsbench.report.table import print_table
    from marsbench.runfolder import to_json

    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if github_summary and not summary:
        raise ConfigError(
            "--github-summary: GITHUB_STEP_SUMMARY is not set; this is for GitHub Actions"
        )
    tolerances = gate.tolerances_of(tolerance or ())
    gate.self_check(against, tolerances)
    rows = gate.check(run, against, tolerances, exact=exact)
    if as_json:
        sys.stdout.write(to_json({"rows": [row.to_json() for row in rows]}))
    else:
        loud = [gate.told(row) for row in gate.loud_rows(rows)]
        if loud:
            print_table(list(gate.HEADINGS), loud, sys.stdout, num_text=4)
        print(f"{len(rows)} rows: {files.summary_line(rows)}")
    if junit is not None:
        files.write_junit(rows, junit)
    if summary and github_summary:
        with Path(summary).open("a", encoding="utf-8") as target:
            target.write(files.markdown(rows, run, against))
    failed = [row for row in rows if row.outcome.fails]
    if failed:
        first = failed[0]
        raise RunFailed(
            f"{len(failed)} of {len(rows)} rows fail, first {first.metric} of {first.system} at "
            f"{first.cell}: {first.outcome.value}"
        )
