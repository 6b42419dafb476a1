"""Simulates with the compiled core that MARSBENCH_COMPILED names, and never with a stale one.

``scripts/compile_core.py`` compiles ``modules()``, the simulator's hot loop, into a folder of its own; no
binary ever lies beside the sources. A process whose environment names that folder imports those
modules from it, after the hash of their sources, and of all sources these depend on, was found to
be the one the folder was built from. Anything else is an error, not a slower or different run.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

from marsbench.errors import ConfigError
from marsbench.sources import depends_on, path_of

VARIABLE = "MARSBENCH_COMPILED"
ROOTS = (
    "marsbench.engine.loop",
    "marsbench.engine.replay",
    "marsbench.engine.sim.core",
    "marsbench.engine.sim_sglang.core",
    "marsbench.tools.modelled",
    "marsbench.tools.recorded",
)
"""Where the simulator's hot loop begins; what belongs to it is what these import."""
HOT = ("marsbench.engine.", "marsbench.tools.")
"""Packages of the loop; other modules that it imports are interfaces to policies and records."""
GROUP = "marsbench_core"
LIBRARY = f"{GROUP}__mypyc"
"""The code of all of them; theirs are entries into it."""
MANIFEST = "manifest.json"


class CompiledCore(MetaPathFinder):
    """Finds ``modules()`` in a folder of binaries, once that is known to be built from these sources."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._checked = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The binary of a compiled module; ConfigError if the folder is missing or stale."""
        if not fullname.startswith((*HOT, LIBRARY)):
            return None
        if fullname != LIBRARY and fullname not in modules():
            return None
        if not self._checked:
            check(self.folder)
            self._checked = True
        return spec_from_file_location(fullname, binary(self.folder, fullname))


@cache
def modules() -> tuple[str, ...]:
    """What is compiled: the parts of the hot loop that compute something and hold no dataclass (a
    compiled frozen dataclass cannot be sent to another process), no model of pydantic (which looks at
    classes in Python) and no protocol that is asked for at run time (nor would a compiled one).
    """
    return tuple(m for m in _seen() if m.startswith(HOT) and _computes(m))


@cache
def interfaces() -> tuple[str, ...]:
    """What the compiler sees besides: it takes their types from their source."""
    return tuple(module for module in _seen() if module not in modules())


@cache
def _seen() -> list[str]:
    return [m for m in depends_on(ROOTS, types=True) if not _is_package(m)]


def _is_package(module: str) -> bool:
    path = path_of(module)
    return path is not None and path.name == "__init__.py"


def _computes(module: str) -> bool:
    """Whether a module has functions or classes of its own, beyond protocols and named tuples."""
    path = path_of(module)
    assert path is not None, module
    body = ast.parse(path.read_text(encoding="utf-8")).body
    classes = [node for node in body if isinstance(node, ast.ClassDef)]
    if any(isinstance(node, ast.ImportFrom) and node.module == "pydantic" for node in body):
        return False
    marks = [ast.unparse(mark) for node in classes for mark in node.decorator_list]
    if any(mark.startswith(("dataclass", "runtime_checkable")) for mark in marks):
        return False
    shapes = {"Protocol", "NamedTuple"}
    return any(isinstance(node, ast.FunctionDef) for node in body) or any(
        not shapes & {ast.unparse(base) for base in node.bases} for node in classes
    )


def binary(folder: Path, module: str) -> Path:
    """Where the binary of a module lies in the folder."""
    return folder.joinpath(*module.split(".")).with_suffix(EXTENSION_SUFFIXES[0])


def source_sha256() -> str:
    """Hash of the source files that decide what the compiler makes."""
    found = hashlib.sha256()
    for module in (*modules(), *interfaces()):
        source = path_of(module)
        assert source is not None, module
        found.update(f"{module}\0".encode() + hashlib.sha256(source.read_bytes()).digest())
    return found.hexdigest()


def manifest() -> dict[str, str]:
    """What a folder must have been built from to be used by this process."""
    return {"python": sys.implementation.cache_tag or "", "source_sha256": source_sha256()}


def check(folder: Path) -> None:
    """ConfigError unless the folder was built from these sources for this Python."""
    remedy = f"run scripts/compile_core.py or unset {VARIABLE}"
    try:
        built = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{VARIABLE}={folder}: no compiled core there; {remedy}") from error
    wanted = manifest()
    if built.get("python") != wanted["python"]:
        raise ConfigError(
            f"{VARIABLE}={folder}: compiled for {built.get('python')}, "
            f"this is {wanted['python']}; {remedy}"
        )
    if built.get("source_sha256") != wanted["source_sha256"]:
        raise ConfigError(f"{VARIABLE}={folder}: compiled from other sources than these; {remedy}")
    for name in (*modules(), LIBRARY):
        if not binary(folder, name).is_file():
            raise ConfigError(f"{VARIABLE}={folder}: the binary of {name} is missing; {remedy}")


def named_folder() -> Path | None:
    """The folder that the environment names, if it names one."""
    value = os.environ.get(VARIABLE)
    return Path(value).resolve() if value else None


def install() -> None:
    """Let the engine's modules come from the folder the environment names, if it names one."""
    folder = named_folder()
    if folder is not None:
        sys.meta_path.insert(0, CompiledCore(folder))
