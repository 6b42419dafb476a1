"""Results worth keeping between runs, each in a JSON file named by the hash of all its inputs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from marsbench.core import Session
from marsbench.engine import engine_kind
from marsbench.engine.kind import VirtualTime
from marsbench.engine.vllm.runtime import installed_version
from marsbench.sources import depends_on, path_of
from marsbench.tools import TOOL_MODELS


class Memo:
    """A folder of remembered results. Without a folder it remembers nothing.

    A folder that cannot be written is reported once through ``warn`` and not used again: a run
    must not fail because its shortcut is missing.
    """

    def __init__(self, folder: Path | None, warn: Callable[[str], None]) -> None:
        self.folder = folder
        self._warn = warn

    def get(self, kind: str, inputs: Mapping[str, Any]) -> Any | None:
        """Return the remembered result of these inputs, or None."""
        if self.folder is None:
            return None
        try:
            text = self._path(self.folder, kind, inputs).read_text(encoding="utf-8")
            return json.loads(text)["result"]
        except (OSError, ValueError, KeyError):
            return None  # never stored, or cut off by a crash: measure again

    def put(self, kind: str, inputs: Mapping[str, Any], result: Any) -> None:
        """Remember a result, with its inputs beside it for the reader."""
        if self.folder is None:
            return
        path = self._path(self.folder, kind, inputs)
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = {"inputs": inputs, "result": result}
            unfinished.write_text(json.dumps(content), encoding="utf-8")
            unfinished.replace(path)
        except OSError as error:
            self._warn(f"results are not cached: {error}; choose another folder with --cache")
            self.folder = None

    @staticmethod
    def _path(folder: Path, kind: str, inputs: Mapping[str, Any]) -> Path:
        return folder / kind / f"{digest(inputs)}.json"


def default_folder() -> Path:
    """Return where a desktop keeps caches: ``$XDG_CACHE_HOME/marsbench`` or
    ``~/.cache/marsbench``.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "marsbench"


def digest(value: Any) -> str:
    """Return 24 hex digits of any JSON-like value."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def session_digest(session: Session) -> str:
    """Return 24 hex digits of what a session does; its name and its arrival do not matter."""
    content = msgspec.json.encode((session.turns, session.shared_prefix))
    return hashlib.sha256(content).hexdigest()[:24]


def sessions_digest(sessions: Sequence[Session]) -> str:
    """Return 24 hex digits of a list of sessions, in order."""
    return digest([session_digest(session) for session in sessions])


def code_digest(engine: str, packages: Iterable[str] = ()) -> str:
    """Return 24 hex digits of all code that decides what an engine in virtual time gives: its core,
    tools, and what these import; the policies' ``packages``; the version of a package that it runs
    on.
    """
    kind = engine_kind(engine)
    assert isinstance(kind, VirtualTime), engine
    paths = (kind.core, *TOOL_MODELS.values())
    roots = ["marsbench.engine.virtual", *(path.rpartition(".")[0] for path in paths)]
    total = hashlib.sha256()
    for module in depends_on(roots):
        source = path_of(module)
        assert source is not None, module
        total.update(module.encode() + b"\0" + source.read_bytes())
    for root in map(_package_path, packages):
        for file in sorted(root.rglob("*.py")) if root.is_dir() else [root]:
            total.update(file.name.encode() + b"\0" + file.read_bytes())
    if kind.package:
        total.update((installed_version() or "found elsewhere").encode())
    return total.hexdigest()[:24]


def _package_path(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None, package
    assert spec.origin is not None, package
    path = Path(spec.origin)
    return path.parent if path.name == "__init__.py" else path
