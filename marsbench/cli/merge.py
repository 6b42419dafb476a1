"""``marsbench merge``: run folders of shards into one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def command(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders of one experiment's shards.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder to write.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in --out.")
    ] = False,
) -> None:
    """Put the shards of a run (marsbench run --shard I/N) into one run folder.

    The result is what one process would have written. Every cell has to be in exactly one of the
    folders, and all of them must be of the same experiment, code and inputs.
    """
    from marsbench.experiment.shards import merge

    folder = merge(runs, out, overwrite=overwrite)
    print(f"run folder: {folder.path}", file=sys.stderr)
