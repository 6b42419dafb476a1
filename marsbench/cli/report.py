"""``marsbench report``: table, figures and report.html of one or several runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from marsbench.cli import RunFailed


def command(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, finished or not.")],
    out: Annotated[
        Path | None, typer.Option(help="Where to write; default: the first run folder.")
    ] = None,
    figures: Annotated[bool, typer.Option(help="Also draw figures and report.html.")] = True,
    tables: Annotated[
        bool,
        typer.Option("--tables", help="Also write tables/*.csv, *.md and *.tex, for papers."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """Print the results table; draw all figures and one self-contained report.html."""
    from marsbench.report.data import load_runs
    from marsbench.report.table import headings, print_table, report_rows, text_cells
    from marsbench.runfolder import to_json

    data = load_runs(runs)
    rows = report_rows(data)
    if as_json:
        sys.stdout.write(to_json({"run_ids": list(data.run_ids), "rows": rows}))
    else:
        print_table(headings(), [text_cells(row) for row in rows], sys.stdout)
    if tables:
        from marsbench.report.export import write_tables

        files = write_tables(data, runs[0] if out is None else out)
        print(f"wrote {len(files)} files into {files[0].parent}", file=sys.stderr)
    if figures:
        from marsbench.report.write import write_report

        written = write_report(runs, out)
        print(f"wrote {written.html} and {len(written.figures)} figure files", file=sys.stderr)
        for name, problem in written.failed.items():
            others = f" (and {len(written.failed) - 1} more)" if len(written.failed) > 1 else ""
            raise RunFailed(f"figure {name!r}{others} raised {problem}; the others are written")
