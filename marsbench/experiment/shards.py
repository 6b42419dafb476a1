"""Shards: a grid spread over machines that share nothing, and one run folder made of theirs.

``--shard I/N`` runs the I-th of N parts of a grid. The parts are consecutive, so that cells of one
point, which share their sessions, ideal latencies and capacity, mostly stand in one shard. ``merge``
puts the folders together; the result is the folder that one process would have written.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marsbench.config import ExperimentConfig, config_digest, dump_config, load_config
from marsbench.errors import ConfigError
from marsbench.experiment.cells import Cell, grid
from marsbench.experiment.resume import examine, stored_config, stored_environment
from marsbench.runfolder import RunFolder, StoredCells, read_summary

CODE = ("git", "python", "compiled_core", "versions", "input_sha256", "environment_version")
"""Entries of ``environment.json`` that results depend on: they must be equal in all shards."""
MEASURED = ("capacity", "tuned")
"""Entries of ``environment.json`` to which each shard adds what its own cells needed."""
PLACE = ("host", "command", "server_flags")
"""Entries of ``environment.json`` that say where a shard ran: kept for each if they differ."""


@dataclass(frozen=True, slots=True)
class Shard:
    """The ``number``-th (from 1) of ``of`` parts of a grid."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def cells(self, cells: Sequence[Cell]) -> list[Cell]:
        """Return this shard's part of all cells; every cell is in exactly one of the parts."""
        first = (self.number - 1) * len(cells) // self.of
        return list(cells[first : self.number * len(cells) // self.of])


def parse_shard(text: str) -> Shard:
    """Read the value of --shard; ConfigError if it is not I/N with 1 <= I <= N."""
    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise ConfigError(
            f"--shard {text}: expected I/N with I from 1 to N, for example --shard 1/4"
        )
    return Shard(int(number), int(of))


def merge(runs: Sequence[Path], out: Path, *, overwrite: bool = False) -> RunFolder:
    """Put run folders of one experiment together, cell by cell.

    Nothing is computed or parsed but what the cells are: their rows and their entries of
    ``summary.json`` are taken over as they are. Raises ConfigError if the folders are of different
    experiments, code or inputs, if two of them hold the same cell, or if a cell is in none.
    """
    configs = [load_config([stored_config(path)]) for path in runs]
    config = _same_config(runs, configs)
    environments = [stored_environment(path) for path in runs]
    merged = _merged_environment(runs, environments, config)
    owner = _owners([StoredCells(path) for path in runs])
    cells = grid(config)
    missing = [cell for cell in cells if cell.index not in owner]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConfigError(
            f"merge: cell {missing[0].index} ({missing[0].describe()}){others} of {len(cells)} in "
            "no run: give the folders of all shards, finished ones (--resume --out continues one)"
        )
    indices = [cell.index for cell in cells]
    examine(out, config, indices, resume=False, overwrite=overwrite)
    folder = RunFolder(out, str(merged["run_id"]))
    folder.write_text("config.yaml", dump_config(config))
    folder.write_json("environment.json", merged)
    folder.assemble(owner)
    for path in runs:
        for name in ("agents", "logs"):
            if (path / name).is_dir():
                shutil.copytree(path / name, out / name, dirs_exist_ok=True)
    return folder


def _same_config(runs: Sequence[Path], configs: Sequence[ExperimentConfig]) -> ExperimentConfig:
    first = configs[0]
    for path, config in zip(runs, configs, strict=True):
        for key in ExperimentConfig.model_fields:
            if getattr(config, key) != getattr(first, key):
                raise ConfigError(
                    f"merge: {runs[0]} and {path} are different experiments: {key} is "
                    f"{getattr(first, key)} and {getattr(config, key)}; give shards of one"
                )
    return first


def _owners(stored: Sequence[StoredCells]) -> dict[int, StoredCells]:
    """Which folder has each cell."""
    owner: dict[int, StoredCells] = {}
    for cells in stored:
        for index in cells.entries:
            if index in owner:
                raise ConfigError(
                    f"merge: {owner[index].path} and {cells.path} both hold cell {index}; "
                    "give each cell once"
                )
            owner[index] = cells
    return owner


def _merged_environment(
    runs: Sequence[Path], environments: Sequence[dict[str, Any]], config: ExperimentConfig
) -> dict[str, Any]:
    """What an unsharded run would have written, and under ``shards`` where each ran if they differ."""
    first = environments[0]
    for path, environment in zip(runs, environments, strict=True):
        for key in CODE:
            if environment.get(key) != first.get(key):
                raise ConfigError(
                    f"merge: {runs[0]} and {path} ran with different {key}: {first.get(key)} and "
                    f"{environment.get(key)}; repeat one of them"
                )
    merged = {key: value for key, value in first.items() if key != "shard"}
    run_ids = [str(read_summary(path)["run_id"]) for path in runs]
    merged["run_id"] = min(run_ids)
    for key in MEASURED:
        found = [entry for each in environments for entry in each.get(key, ())]
        merged[key] = _once(found, config)
    if any(each.get(key) != first.get(key) for each in environments for key in PLACE):
        merged["command"] = [Path(sys.argv[0]).name, *sys.argv[1:]]
        merged["shards"] = [
            {"run_id": run_id, **{key: each.get(key) for key in ("shard", *PLACE)}}
            for run_id, each in zip(run_ids, environments, strict=True)
        ]
    assert merged.get("config_digest") == config_digest(config), "config.yaml was edited"
    return merged


def _once(entries: Sequence[dict[str, Any]], config: ExperimentConfig) -> list[dict[str, Any]]:
    """Measurements in the order in which one process would have needed them, each once.

    Two shards that needed the same one measured the same: both were simulated in virtual time.
    """
    distinct = {json.dumps(entry, sort_keys=True): entry for entry in entries}

    def place(entry: dict[str, Any]) -> tuple[int, ...]:
        return (
            config.workload.index(entry["workload"]),
            config.profile.index(entry["profile"]),
            entry["tool_cores"],
            config.host_kv_gib.index(entry.get("host_kv_gib", 0.0)),
            config.system.index(entry["system"]) if "system" in entry else 0,
        )

    return sorted(distinct.values(), key=place)
