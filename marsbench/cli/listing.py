"""``marsbench list``: the names a run can use."""

from __future__ import annotations

from typing import Annotated

import typer


def list_names(
    kind: Annotated[str, typer.Argument(help="One of the kinds below; all if left out.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List systems, workloads, importers, engines, profiles, arrivals, tools, metrics, figures."""
    from marsbench.cli.catalogue import print_names

    print_names(kind, as_json=as_json)
