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
from marsbench.engine.vllm.runtime import installed_version

STAGES = ("core", "events", "records", "system", "admission", "arrival", "engine", "scheduler")
"""Parts of marsbench whose code decides what a simulation gives."""


class Memo:
    """A folder of remembered results. Without a folder it remembers nothing.

    A folder that cannot be written is reported once through ``warn`` and not used again: a run
    must not fail because its shortcut is missing.
    """

    def __init__(self, folder: Path | None, warn: Callable[[str], None]) -> None:
        self.folder = folder
        self._warn = warn

    def get(self, kind: str, inputs: Mapping[str, Any]) -> Any | None:
        """The remembered result of these inputs, or None."""
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
    """Where a desktop keeps caches: ``$XDG_CACHE_HOME/marsbench`` or ``~/.cache/marsbench``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "marsbench"


def digest(value: Any) -> str:
    """24 hex digits of any JSON-like value."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def session_digest(session: Session) -> str:
    """24 hex digits of what a session does; its name and its arrival do not matter."""
    content = msgspec.json.encode((session.turns, session.shared_prefix))
    return hashlib.sha256(content).hexdigest()[:24]


def sessions_digest(sessions: Sequence[Session]) -> str:
    """24 hex digits of a list of sessions, in order."""
    return digest([session_digest(session) for session in sessions])


def code_digest(packages: Iterable[str] = ()) -> str:
    """24 hex digits of the simulating code, of ``packages`` and of an installed vLLM."""
    roots = [_package_path("marsbench") / stage for stage in (*STAGES, "tools")]
    roots += [_package_path(package) for package in packages]
    total = hashlib.sha256()
    for root in roots:
        files = sorted(root.rglob("*.py")) if root.is_dir() else [root.with_suffix(".py")]
        for file in (file for file in files if "live" not in file.parts):
            total.update(file.name.encode() + b"\0" + file.read_bytes())
    total.update((installed_version() or "no vllm").encode())
    return total.hexdigest()[:24]


def _package_path(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None, package
    assert spec.origin is not None, package
    path = Path(spec.origin)
    return path.parent if path.name == "__init__.py" else path
