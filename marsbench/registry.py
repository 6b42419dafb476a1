"""Names to objects: each plug-in package lists its parts as strings, imported when used."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from marsbench.errors import ConfigError

GROUP = "marsbench.plugins"
TABLES = ("SYSTEMS", "WORKLOADS", "IMPORTERS")
"""Module-level tables a plug-in package may define: name -> dotted path of the object."""


@cache
def table(kind: str) -> dict[str, str]:
    """All names of a kind (one of TABLES) with their dotted paths, plug-ins in order of name."""
    assert kind in TABLES, kind
    names: dict[str, str] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        names.update(getattr(point.load(), kind, {}))
    return names


def load(kind: str, name: str) -> Any:
    """The object called ``name``, or at the dotted path ``name``.

    Raises ConfigError with the closest known names if there is none.
    """
    names = table(kind)
    path = names.get(name, name)
    if name not in names and "." not in name:
        raise unknown(kind.rstrip("S").lower(), name, names)
    module, _, attribute = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"cannot load {kind.rstrip('S').lower()} {name!r}: {error}") from error


def unknown(what: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that is not registered."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return ConfigError(f"unknown {what} {name!r}{hint} (known: {', '.join(known)})")
