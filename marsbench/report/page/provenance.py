"""Where the numbers of a page come from: command, versions, inputs, and how to run it again."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marsbench.report.data import ReportData


@dataclass(frozen=True, slots=True)
class Origin:
    """One run: facts as (name, text) and its resolved experiment."""

    run_id: str
    facts: list[tuple[str, str]]
    config: str
    rerun: str


def provenance(data: ReportData) -> list[Origin]:
    """The origin of each run; what a reference run does not keep is left out."""
    return [_origin(path, run) for path, run in zip(data.paths, data.run_ids, strict=True)]


def _origin(path: Path, run_id: str) -> Origin:
    config, environment = path / "config.yaml", path / "environment.json"
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    facts = (
        _facts(json.loads(environment.read_text(encoding="utf-8"))) if environment.is_file() else []
    )
    return Origin(run_id, facts, text, "marsbench run config.yaml --out again" if text else "")


def _facts(about: dict[str, Any]) -> list[tuple[str, str]]:
    git, host = about.get("git"), about.get("host", {})
    changed = " with local changes" if git and git["dirty"] else ""
    commit = f"{git['sha']}{changed}" if git else "an installed package"
    versions = {name: text for name, text in about.get("versions", {}).items() if text}
    facts = [
        ("command", shlex.join(about.get("command", []))),
        ("commit", commit),
        ("Python", str(about.get("python", ""))),
        *((f"version of {name}", text) for name, text in versions.items()),
        ("machine", f"{host.get('system', '')}, {host.get('cores', '?')} cores"),
        ("seeds", ", ".join(map(str, about.get("seeds", [])))),
        *((f"SHA-256 of {Path(name).name}", sha) for name, sha in about.get("input_sha256", {}).items()),
        *((_capacity(entry), f"{entry['sessions_per_s'] * 3600:.1f} sessions/h")
          for entry in about.get("capacity", [])),
    ]  # fmt: skip
    return [(name, text) for name, text in facts if text]


def _capacity(entry: dict[str, Any]) -> str:
    cores = entry["tool_cores"] or "unlimited"
    return f"load 1.0 of {entry['workload']} on {entry['profile']}, {cores} tool cores"
