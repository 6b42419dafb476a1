"""What a run can name: every kind with its names and one line about each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from marsbench.registry import load, table


def catalogue(kind: str) -> dict[str, str]:
    """Name -> one line, for one of ``KINDS``."""
    return KINDS[kind]()


def _systems() -> dict[str, str]:
    return {name: load("SYSTEMS", name).summary for name in table("SYSTEMS")}


def _workloads() -> dict[str, str]:
    return {name: _instance(load("WORKLOADS", name)).summary for name in table("WORKLOADS")}


def _importers() -> dict[str, str]:
    from marsbench.trace.source import importers

    return {name: importer.summary for name, importer in importers().items()}


def _engines() -> dict[str, str]:
    from marsbench.engine import ENGINES, LIVE_SUMMARIES

    return {**_first_lines(ENGINES), **LIVE_SUMMARIES}


def _profiles() -> dict[str, str]:
    from marsbench.engine.profile import list_profiles, load_profile

    return {name: load_profile(name).summary for name in list_profiles()}


def _arrivals() -> dict[str, str]:
    from marsbench.arrival import ARRIVALS

    return _first_lines(ARRIVALS)


def _tools() -> dict[str, str]:
    from marsbench.tools import TOOL_EXECUTORS, TOOL_MODELS

    return _first_lines({**TOOL_MODELS, **TOOL_EXECUTORS})


def _metrics() -> dict[str, str]:
    from marsbench.metrics import catalogue as metrics

    return {metric.name: f"[{metric.unit}] {metric.formula}" for metric in metrics()}


def _figures() -> dict[str, str]:
    from marsbench.report.figures import FIGURES

    return _first_lines(FIGURES)


KINDS: Mapping[str, Callable[[], dict[str, str]]] = {
    "systems": _systems,
    "workloads": _workloads,
    "importers": _importers,
    "engines": _engines,
    "profiles": _profiles,
    "arrivals": _arrivals,
    "tools": _tools,
    "metrics": _metrics,
    "figures": _figures,
}


def _instance(found: Any) -> Any:
    return found() if isinstance(found, type) else found


def _first_lines(paths: Mapping[str, str]) -> dict[str, str]:
    """First docstring line of the module behind each dotted path, read without importing it:
    an engine's package may not be installed.
    """
    return {name: _first_line(path.rpartition(".")[0]) for name, path in paths.items()}


def _first_line(module: str) -> str:
    import ast
    from importlib.util import find_spec
    from pathlib import Path

    spec = find_spec(module)
    assert spec is not None, module
    assert spec.origin is not None, module
    doc = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
    return (doc or "").partition("\n\n")[0].replace("\n", " ")
