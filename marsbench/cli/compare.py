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
    decisions: Annotated[
        bool, typer.Option("--decisions", help="Whether live agents decided the same.")
    ] = False,
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
    if decisions:
        _decisions(runs, as_json=as_json)
        return
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


def _decisions(runs: list[Path], *, as_json: bool) -> None:
    """Say where agents decided differently; status 1 if they did anywhere."""
    from marsbench.agents import decisions
    from marsbench.runfolder import to_json

    found = decisions.compare_runs(*runs) if len(runs) == 2 else decisions.compare_systems(runs[0])
    if as_json:
        sys.stdout.write(to_json({cell: agreed._asdict() for cell, agreed in found.items()}))
    else:
        for cell, agreed in found.items():
            verdict = "the same" if agreed.same else "different"
            print(f"{cell}: {verdict}, {agreed.decisions} decisions of {agreed.sessions} agents")
            for difference in agreed.differences:
                print(f"  {difference.sentence()}")
            for session in agreed.only_one:
                print(f"  {session}: in one run only")
    if not all(agreed.same for agreed in found.values()):
        raise typer.Exit(1)
