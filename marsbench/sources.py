"""Which modules of the suite a module depends on, read from its source and those of what it imports."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path


def depends_on(modules: Iterable[str], *, types: bool = False) -> list[str]:
    """The modules given and all modules of their packages that they import, directly or not.

    Imports inside functions count. ``types``: also those that only the type checker follows.
    """
    roots = list(modules)
    packages = {name.partition(".")[0] for name in roots}
    found: set[str] = set()
    waiting = roots
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += [name for name in _imports(module, types=types)
                        if name.partition(".")[0] in packages]  # fmt: skip
    return sorted(found)


def path_of(module: str) -> Path | None:
    """The source file of a module; None if there is no module of this name."""
    package, _, rest = module.partition(".")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin)
    if not rest:
        return root
    place = root.parent.joinpath(*rest.split("."))
    files = (place.with_suffix(".py"), place / "__init__.py")
    return next((file for file in files if file.is_file()), None)


@cache
def _imports(module: str, *, types: bool) -> frozenset[str]:
    """Modules that a module imports; what is no module of its own belongs to the one above."""
    path = path_of(module)
    assert path is not None, module
    names = _names(ast.parse(path.read_text(encoding="utf-8")), types=types)
    found = set()
    for name in names:
        above = name if path_of(name) else name.rpartition(".")[0]
        if above and path_of(above):
            found.add(above)
    return frozenset(found)


def _names(node: ast.AST, *, types: bool) -> Iterator[str]:
    """Dotted names that statements import: ``from a import b`` gives a.b."""
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")) if not types:
                continue
            case ast.Import(names=aliases):
                yield from (alias.name for alias in aliases)
            case ast.ImportFrom(module=str(base), names=aliases, level=0):
                yield from (f"{base}.{alias.name}" for alias in aliases)
            case _:
                yield from _names(child, types=types)
