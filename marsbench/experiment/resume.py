"""What a run folder holds before a run begins: nothing, cells to continue from, or another's files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from marsbench import registry
from marsbench.config import ExperimentConfig, config_digest, load_config
from marsbench.errors import ConfigError, ResultsError
from marsbench.runfolder import read_summary

OWN_FILES = (
    "config.yaml", "environment.json", "summary.json", "capacity.json", "report.html",
    "events.parquet", "sessions.parquet", "turns.parquet",
)  # fmt: skip
OWN_FOLDERS = ("agents", "cells", "figures", "logs", "tables")
"""What a run folder may hold; starting again removes these and nothing else."""

WHEREABOUTS = ("url", "python", "api_key_env", "start_timeout_s")
"""Parameters of an engine that say where it is found and how it is reached, and nothing of what
it does: a run may continue with others, for example after a wrong path was corrected."""


@dataclass(frozen=True, slots=True)
class Before:
    """What a folder held before the run."""

    run_id: str | None = None
    """Of the run that is continued; None if there is none."""
    complete: bool = False
    """Whether all cells of the experiment are finished and merged already."""


def examine(
    path: Path,
    config: ExperimentConfig,
    cells: Collection[int],
    *,
    resume: bool,
    overwrite: bool,
    shard: str = "",
) -> Before:
    """Say what the folder holds of a run of ``cells``, after removing what may be replaced.

    A folder in which no cell has finished holds nothing worth keeping and is used again without
    being asked. Raises ConfigError if the folder is not one that this run may write to.
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--out {path}: is a file, not a folder; choose another name")
    try:
        found = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
    except OSError as error:
        raise ConfigError(f"--out {path}: cannot be read: {error.strerror}") from error
    foreign = [name for name in found if name not in OWN_FILES + OWN_FOLDERS and name[0] != "."]
    if foreign:
        raise ConfigError(
            f"--out {path}: holds {foreign[0]!r}, which is no part of a run; choose another folder"
        )
    if not found:
        return Before()
    if overwrite or not finished(path):
        _clear(path)
        return Before()
    if not resume:
        raise ConfigError(
            f"--out {path}: already holds a run; continue it with --resume, replace it with "
            "--overwrite, or choose another folder"
        )
    _same_experiment(path, config)
    if (held := str(stored_environment(path).get("shard", ""))) != shard:
        raise ConfigError(
            f"--resume: {path} holds {f'shard {held}' if held else 'a run without --shard'}; "
            f"continue it {f'with --shard {held}' if held else 'without'}, or use another --out"
        )
    complete = set(cells) <= finished(path) and not (path / "cells").is_dir()
    return Before(str(read_summary(path)["run_id"]), complete=complete)


def finished(path: Path) -> set[int]:
    """Return the indices of the cells whose results the folder holds."""
    if not (path / "summary.json").is_file() and not any((path / "cells").glob("*/cell.json")):
        return set()
    return {int(entry["cell"]) for entry in read_summary(path)["cells"]}


def stored_config(path: Path) -> Path:
    """Return the file that says which experiment a run folder holds; ConfigError if it has none."""
    file = path / "config.yaml"
    if not file.is_file():
        raise ConfigError(
            f"--resume: {path} has no config.yaml, so there is no run to continue; "
            "give the folder of a run with --out, or start one without --resume"
        )
    return file


def stored_environment(path: Path) -> dict[str, Any]:
    """Read ``environment.json`` of a run folder; empty if it has none yet."""
    file = path / "environment.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ResultsError(f"cannot read {file}: {error}") from error
    if not isinstance(found, dict):
        raise ResultsError(f"cannot read {file}: it holds no JSON object")
    return found


def _same_experiment(path: Path, config: ExperimentConfig) -> None:
    """ConfigError if the folder's run has another configuration, wherever its engine was."""
    old, new = (_elsewhere(each) for each in (load_config([stored_config(path)]), config))
    for key in ExperimentConfig.model_fields:
        if getattr(old, key) != getattr(new, key):
            raise ConfigError(
                f"--resume: {path} is another experiment: {key} was {getattr(old, key)}, now "
                f"{getattr(new, key)}; use --overwrite or another --out"
            )


def _elsewhere(config: ExperimentConfig) -> ExperimentConfig:
    """The experiment without WHEREABOUTS."""
    params = {
        name: value for name, value in config.engine.params.items() if name not in WHEREABOUTS
    }
    return config.model_copy(update={"engine": config.engine.model_copy(update={"params": params})})


def _clear(path: Path) -> None:
    try:
        for name in OWN_FILES:
            (path / name).unlink(missing_ok=True)
        for name in OWN_FOLDERS:
            shutil.rmtree(path / name, ignore_errors=True)
    except OSError as error:
        raise ResultsError(f"--out {path}: cannot be cleared: {error.strerror}") from error


def new_run_id(config: ExperimentConfig) -> str:
    """Return a run id of time and experiment: it sorts by time and differs between experiments."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{config_digest(config)[:6]}"


def absolute_paths(config: ExperimentConfig) -> ExperimentConfig:
    """Return the experiment with workload and profile files by absolute path, so that the stored
    config runs from anywhere.
    """
    names = registry.table("WORKLOADS")
    specs = tuple(
        str(Path(spec).resolve()) if spec not in names and Path(spec).exists() else spec
        for spec in config.workload
    )
    profiles = tuple(
        str(Path(name).resolve()) if name.endswith((".yaml", ".yml")) else name
        for name in config.profile
    )
    return config.model_copy(update={"workload": specs, "profile": profiles})
