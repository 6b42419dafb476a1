"""``marsbench list``: the names a run can use."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def list_names(
    kind: Annotated[str, typer.Argument(help="One of the kinds below; all if left out.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List systems, workloads, importers, engines, profiles, arrivals, tools, metrics, figures."""
    from marsbench.experiment.catalogue import KINDS, catalogue
    from marsbench.registry import unknown

    if kind and kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    found = {name: catalogue(name) for name in ([kind] if kind else KINDS)}
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for name, entries in found.items():
        if not kind:
            print(f"{name}:")
        indent = "" if kind else "  "
        width = max(map(len, entries), default=0)
        for entry, summary in entries.items():
            print(f"{indent}{entry:<{width}}  {summary}".rstrip())
