"""Does the simulator agree with a run of live agents? Its exported traces, replayed in virtual time.

Each cell of live agents is replayed on ``sim`` with the run's own profile, flags, tool cores and system;
the tasks arrive when they arrived. What differs is the model of the engine and of the tools' cores.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from marsbench.config import ExperimentConfig, load_config
from marsbench.engine.base import EngineConfig
from marsbench.engine.profile import load_profile
from marsbench.errors import ResultsError
from marsbench.experiment.lab import Reporter
from marsbench.experiment.runner import run_experiment
from marsbench.experiment.runs_agree import latencies
from marsbench.runfolder import read_summary

CONFIG = "config.yaml"
AGENTS, TRACE = "agents", "trace.jsonl"


@dataclasses.dataclass(frozen=True, slots=True)
class AgentAgreement:
    """One cell of live agents and its replay. Only tasks that were solved count."""

    workload: str
    system: str
    seed: int
    tasks: int
    live_s: float
    """Mean time of a task."""
    simulated_s: float
    difference: float
    """Of the means, relative to the live one."""
    task_median: float
    """Of the tasks' differences, without their signs."""
    others_cpu_share: float | None
    """Share of the machine that other programs used while it was measured."""


def compare_agents(run: Path, reporter: Callable[[], Reporter]) -> list[AgentAgreement]:
    """Compare every cell of a run of live agents with its replay; ResultsError if it has none that
    can be replayed.
    """
    config = load_config([run / CONFIG])
    cells = [cell for cell in read_summary(run)["cells"] if AGENTS in cell]
    if not cells:
        raise ResultsError(f"{run}: no cells of live agents; they come from --driver openhands")
    return [_compare(run, config, cell, reporter()) for cell in cells]


def _compare(
    run: Path, config: ExperimentConfig, cell: dict[str, Any], reporter: Reporter
) -> AgentAgreement:
    trace = run / AGENTS / str(cell[AGENTS].get("folder", "")) / TRACE
    if not trace.is_file():
        raise ResultsError(f"{trace}: no trace of {cell['system']}, seed {cell['seed']}")
    live = latencies(run, cell["cell"])
    with tempfile.TemporaryDirectory(prefix="marsbench-replay-") as folder:
        out = Path(folder, "run")
        result = run_experiment(_replayed(config, cell, trace), out, reporter=reporter)
        if result.failures:
            raise result.failures[0][1]
        simulated = latencies(out, 0)
    both = sorted(live.keys() & simulated.keys())
    if not both:
        raise ResultsError(f"{trace}: none of its sessions was completed in both")
    pairs = np.array([(live[name], simulated[name]) for name in both])
    means = pairs.mean(axis=0)
    return AgentAgreement(
        workload=cell["workload"],
        system=cell["system"],
        seed=cell["seed"],
        tasks=len(both),
        live_s=float(means[0]),
        simulated_s=float(means[1]),
        difference=float(means[1] / means[0] - 1),
        task_median=float(np.median(np.abs(pairs[:, 1] / pairs[:, 0] - 1))),
        others_cpu_share=cell[AGENTS].get("others_cpu_share"),
    )


def _replayed(config: ExperimentConfig, cell: dict[str, Any], trace: Path) -> ExperimentConfig:
    """The cell's experiment in virtual time."""
    flags = {field.name for field in dataclasses.fields(EngineConfig)}
    params = {name: value for name, value in config.engine.params.items() if name in flags}
    profiles = [name for name in config.profile if load_profile(name).name == cell["profile"]]
    with trace.open(encoding="utf-8") as lines:
        sessions = sum(1 for _ in lines)
    return load_config(
        flags={
            "workload": [str(trace)],
            "system": [cell["system"]],
            "engine": {"name": "sim", "params": params},
            "profile": profiles or [cell["profile"]],
            "tool_cores": [cell["tool_cores"]],
            "arrival": "trace",
            "sessions": sessions,
            "seeds": 1,
            "params": config.params,
        }
    )
