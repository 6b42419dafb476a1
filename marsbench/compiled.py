"""Simulates with the compiled core that MARSBENCH_COMPILED names, and never with a stale one.

``scripts/compile_core.py`` compiles MODULES, the simulator's hot loop, into a folder of its own; no
binary ever lies beside the sources. A process whose environment names that folder imports those
modules from it, after the hash of their sources, and of all sources these depend on, was found to
be the one the folder was built from. Anything else is an error, not a slower or different run.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

from marsbench.errors import ConfigError

VARIABLE = "MARSBENCH_COMPILED"
MODULES = (
    "marsbench.engine.agenda",
    "marsbench.engine.cost",
    "marsbench.engine.driver",
    "marsbench.engine.gate",
    "marsbench.engine.recorder",
    "marsbench.engine.sessions",
    "marsbench.engine.sim.batch",
    "marsbench.engine.sim.core",
    "marsbench.engine.sim.decoding",
    "marsbench.engine.sim.kv",
    "marsbench.engine.sim.order",
    "marsbench.engine.sim.pins",
    "marsbench.engine.sim.turn",
    "marsbench.engine.sim.view",
    "marsbench.engine.telemetry",
    "marsbench.tools.modelled",
    "marsbench.tools.recorded",
)
"""Modules without dataclasses: a compiled frozen dataclass cannot be sent to another process."""
INTERFACES = (
    "marsbench.admission.base",
    "marsbench.arrival.base",
    "marsbench.core",
    "marsbench.engine.base",
    "marsbench.errors",
    "marsbench.events",
    "marsbench.records",
    "marsbench.scheduler.base",
    "marsbench.system",
    "marsbench.tools.base",
)
"""What MODULES import, directly or not: the compiler sees their types."""
GROUP = "marsbench_core"
LIBRARY = f"{GROUP}__mypyc"
"""The code of all of them; theirs are entries into it."""
MANIFEST = "manifest.json"
LIVE = "marsbench.engine.live.driver"
"""Extends the driver in Python, which a compiled class does not allow."""


class CompiledCore(MetaPathFinder):
    """Finds MODULES in a folder of binaries, once that is known to be built from these sources."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._checked = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The binary of a compiled module; ConfigError if the folder is missing or stale."""
        if fullname == LIVE:
            raise ConfigError(
                f"{VARIABLE} is set: the compiled core only simulates; unset it for live servers"
            )
        if fullname != LIBRARY and fullname not in MODULES:
            return None
        if not self._checked:
            check(self.folder)
            self._checked = True
        return spec_from_file_location(fullname, binary(self.folder, fullname))


def binary(folder: Path, module: str) -> Path:
    """Where the binary of a module lies in the folder."""
    return folder.joinpath(*module.split(".")).with_suffix(EXTENSION_SUFFIXES[0])


def source_sha256() -> str:
    """Hash of the source files that decide what the compiler makes."""
    package = Path(__file__).parent.parent
    found = hashlib.sha256()
    for module in (*MODULES, *INTERFACES):
        source = package.joinpath(*module.split(".")).with_suffix(".py").read_bytes()
        found.update(f"{module}\0".encode() + hashlib.sha256(source).digest())
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
    for name in (*MODULES, LIBRARY):
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
