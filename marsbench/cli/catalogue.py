"""What a run can name: every kind with its names and one line about each.

``marsbench list`` answers at once, so nothing here loads numpy, pandas, scipy or pydantic: what
would need them (metrics, figures, engines, profiles) is read from its source text.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from marsbench.errors import ConfigError
from marsbench.registry import first_line, load, source_of, table, unknown, yaml_summary


def catalogue(kind: str) -> dict[str, str]:
    """Name -> one line, for one of ``KINDS``."""
    return KINDS[kind]()


def print_names(kind: str, *, as_json: bool) -> None:
    """What ``marsbench list`` prints: one kind, or all of them if ``kind`` is empty."""
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


def _systems() -> dict[str, str]:
    return {name: load("SYSTEMS", name).summary for name in table("SYSTEMS")}


def _workloads() -> dict[str, str]:
    return {name: _instance(load("WORKLOADS", name)).summary for name in table("WORKLOADS")}


def _importers() -> dict[str, str]:
    paths = {"canonical": "marsbench.trace.source.CanonicalImporter", **table("IMPORTERS")}
    return {
        name: _class_summary(path) or _instance(load("IMPORTERS", name)).summary
        for name, path in paths.items()
    }


def _class_summary(path: str) -> str:
    """``summary = "..."`` in a class of the module behind a dotted path; empty if it has none."""
    source = source_of(path.rpartition(".")[0]).read_text(encoding="utf-8")
    found = re.search(r"""^    summary = (["'].*["'])$""", source, re.MULTILINE)
    return str(ast.literal_eval(found[1])) if found else ""


def _engines() -> dict[str, str]:
    from marsbench.engine import engine_kind, engine_names

    return {name: engine_kind(name).summary for name in engine_names()}


def _routers() -> dict[str, str]:
    from marsbench.routing import router_paths

    return _first_lines(router_paths())


def _profiles() -> dict[str, str]:
    from marsbench.profiles import PROFILES, list_profiles

    return {name: yaml_summary(PROFILES / f"{name}.yaml") for name in list_profiles()}


def _arrivals() -> dict[str, str]:
    from marsbench.arrival import ARRIVALS

    return _first_lines(ARRIVALS)


def _tools() -> dict[str, str]:
    from marsbench.tools import TOOL_EXECUTORS, TOOL_MODELS

    return _first_lines({**TOOL_MODELS, **TOOL_EXECUTORS})


def _metrics() -> dict[str, str]:
    families = sorted((Path(__file__).parent.parent / "metrics").glob("*.py"))
    found = {name: line for family in families for name, line in _declarations(family)}
    for name, path in table("METRICS").items():
        declared = dict(_declarations(source_of(path.rpartition(".")[0])))
        if name not in declared:
            raise ConfigError(f"metric {name!r}: {path} is no function with the decorator @metric")
        found[name] = declared[name]
    return found


def _declarations(source: Path) -> Iterator[tuple[str, str]]:
    """Name, and unit with formula, of each function of a file that ``@metric`` declares."""
    body = ast.parse(source.read_text(encoding="utf-8")).body
    for function in (node for node in body if isinstance(node, ast.FunctionDef)):
        for decorator in function.decorator_list:
            match decorator:
                case ast.Call(func=ast.Name(id="metric"), args=[ast.Constant(value=str(unit)), *_]):
                    formula = " ".join((ast.get_docstring(function) or "").split())
                    yield function.name, f"[{unit}] {formula}"


def _figures() -> dict[str, str]:
    folder = Path(__file__).parent.parent / "report" / "figures"
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    paths = {name: f"marsbench.report.figures.{name}.draw" for name in names}
    return _first_lines(paths | table("FIGURES"))


KINDS: Mapping[str, Callable[[], dict[str, str]]] = {
    "systems": _systems,
    "workloads": _workloads,
    "importers": _importers,
    "routers": _routers,
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
    """First docstring line of the module behind each dotted path."""
    return {name: first_line(path.rpartition(".")[0]) for name, path in paths.items()}
