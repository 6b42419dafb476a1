"""Names to objects: each plug-in package lists its parts as strings, imported when used."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from marsbench.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

GROUP = "marsbench.plugins"
TABLES = (
    "SYSTEMS",
    "WORKLOADS",
    "IMPORTERS",
    "ROUTERS",
    "ENGINES",
    "DRIVERS",
    "METRICS",
    "FIGURES",
    "COMMANDS",
    "STUDIES",
)
"""Module-level tables a plug-in package may define: name -> dotted path of the object."""


def table(kind: str) -> dict[str, str]:
    """All names of a kind (one of TABLES) with their dotted paths, plug-ins in order of name.

    Raises ConfigError naming a plug-in package that cannot be imported, or in whose place another
    package of the same import name stands.
    """
    return tables()[kind]


@cache
def tables() -> dict[str, dict[str, str]]:
    """Every kind's table. Cached: the metadata of all installed packages is searched for plug-ins."""
    from importlib.metadata import entry_points

    names: dict[str, dict[str, str]] = {kind: {} for kind in TABLES}
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        try:
            plugin = point.load()
        except Exception as error:
            raise ConfigError(
                f"plug-in {point.name!r} cannot be loaded: {type(error).__name__}: {error}; "
                "repair it, or uninstall the package that announces it"
            ) from error
        if not any(hasattr(plugin, known) for known in TABLES):
            raise ConfigError(
                f"plug-in {point.name!r}: {getattr(plugin, '__file__', plugin)} has none of the tables "
                "of a plug-in, so it is another package of the same import name; uninstall that one, "
                "or install marsbench in an environment of its own"
            )
        for kind, known in names.items():
            known.update(getattr(plugin, kind, {}))
    return names


def load(kind: str, name: str) -> Any:
    """The object called ``name``, or at the dotted path ``name``.

    Raises ConfigError with the closest known names if there is none.
    """
    from importlib import import_module

    names = table(kind)
    path = names.get(name, name)
    if name not in names and "." not in name:
        raise unknown(kind.rstrip("S").lower(), name, names)
    module, _, attribute = path.rpartition(".")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"cannot load {kind.rstrip('S').lower()} {name!r}: {error}") from error


def unknown(what: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that is not registered."""
    from difflib import get_close_matches

    known = sorted(known)
    close = get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return ConfigError(f"unknown {what} {name!r}{hint} (known: {', '.join(known)})")


def first_line(module: str) -> str:
    """The first sentence of a module's docstring, read without importing the module: what it
    imports may not be installed, or take long.
    """
    import ast

    text = source_of(module).read_text(encoding="utf-8")
    if text.startswith('"""'):  # no need to parse what follows
        text = text[: text.find('"""', 3) + 3]
    doc = ast.get_docstring(ast.parse(text))
    return (doc or "").partition("\n\n")[0].replace("\n", " ")


def source_of(module: str) -> Path:
    """The source file of a module; the packages above it are imported, the module is not."""
    from importlib.util import find_spec
    from pathlib import Path

    try:
        spec = find_spec(module)
    except ImportError:
        spec = None
    if spec is None or spec.origin is None:
        raise ConfigError(f"no module {module!r}, which a table of a plug-in package names")
    return Path(spec.origin)


def yaml_summary(path: Path) -> str:
    """The value of the key ``summary`` of a YAML file; what comes after it is not parsed."""
    import yaml

    try:
        with path.open(encoding="utf-8") as file:
            events = yaml.parse(file, Loader=yaml.SafeLoader)
            for event in events:
                if isinstance(event, yaml.ScalarEvent) and event.value == "summary":
                    return str(getattr(next(events), "value", ""))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    raise ConfigError(f"{path}: has no summary; say in one line what it is")
