"""``marsbench compare``: paired ratios between systems, or between two runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def command(
    runs: Annotated[list[Path], typer.Argument(help="One run folder, or two: RUN_A RUN_B.")],
    baseline: Annotated[
        str | None,
        typer.Option(help="System to compare with; default: vllm-tuned, else vllm. One run only."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how many times better each system is than the baseline, with 95 % intervals.

    With two runs: each system of the second against the same system of the first.
    """
    from marsbench.errors import ConfigError
    from marsbench.report import compare
    from marsbench.report.data import load_runs
    from marsbench.report.table import print_table
    from marsbench.runfolder import to_json

    if len(runs) > 2:
        raise ConfigError(f"compare takes one run folder or two, not {len(runs)}")
    if len(runs) == 2 and baseline is not None:
        raise ConfigError("--baseline names a system of one run; with two runs the first is it")
    data = load_runs(runs)
    found = (
        compare.compare_runs(data) if len(runs) == 2 else compare.compare_systems(data, baseline)
    )
    notes = compare.warnings_of(found)
    if as_json:
        rows = [entry.to_json() for entry in found]
        sys.stdout.write(to_json({"comparisons": rows, "warnings": notes}))
        return
    headlines = [entry for entry in found if entry.statistic == compare.HEADLINE]
    for scenario in dict.fromkeys(entry.scenario for entry in headlines):
        print(f"{scenario}:")
        for entry in headlines:
            if entry.scenario == scenario:
                print(f"  {entry.sentence()}")
    print()
    header, table = compare.comparison_rows(found)
    print_table(header, table, sys.stdout, num_text=compare.NUM_TEXT)
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
