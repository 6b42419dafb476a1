"""From an experiment to a run folder: prepare, simulate every cell, keep what is finished."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marsbench import registry
from marsbench.config import ExperimentConfig, config_digest, dump_config, load_config
from marsbench.core import to_s
from marsbench.environment import environment
from marsbench.errors import ConfigError, EngineError, MarsbenchError, ResultsError
from marsbench.experiment import tasks
from marsbench.experiment.cells import Cell, grid
from marsbench.experiment.lab import Lab, Reporter
from marsbench.experiment.memo import Memo
from marsbench.experiment.pool import Pool
from marsbench.experiment.stream.target import StalledError, Target
from marsbench.experiment.wiring import RunCell, Setup, deployment, is_live
from marsbench.metrics import Cut
from marsbench.runfolder import RunFolder, read_summary
from marsbench.tables import CellKey

if TYPE_CHECKING:
    from marsbench.engine.live.engine import LiveEngine
    from marsbench.experiment.stream.hub import Hub

OWN_FILES = (
    "config.yaml", "environment.json", "summary.json", "report.html",
    "events.parquet", "sessions.parquet", "turns.parquet",
)  # fmt: skip
OWN_FOLDERS = ("cells", "figures")
"""What a run folder may hold; ``overwrite`` removes these and nothing else."""


@dataclass
class RunResult:
    """How a run went. ``summary`` has the cells that are finished."""

    folder: Path
    summary: dict[str, Any] = field(default_factory=dict)
    num_cells: int = 0
    failures: list[tuple[Cell, MarsbenchError]] = field(default_factory=list)
    interrupted: bool = False

    @property
    def complete(self) -> bool:
        """Whether every cell of the experiment is finished."""
        return not self.failures and not self.interrupted


def run_experiment(
    config: ExperimentConfig,
    out: Path | None,
    *,
    reporter: Reporter,
    jobs: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    cache: Path | None = None,
    run_cell: RunCell | None = None,
    stream: str = "",
    stream_wait: int = 0,
) -> RunResult:
    """Run every cell that is not finished yet and write the run folder.

    Raises MarsbenchError before the first cell if anything the user gave is wrong. A cell that
    fails does not stop the others; Ctrl-C and a full disk do; finished cells are kept in each
    case. ``stream`` is an address to publish events at as they happen; the cells begin when it has
    ``stream_wait`` observers.
    """
    config = absolute_paths(config)
    memo = Memo(cache, reporter.note)
    run_id = new_run_id(config)
    with (
        Pool(jobs) as pool,
        live_engine(config, run_id, reporter) as live,
        _stream(stream, live is not None, reporter) as hub,
    ):
        lab = Lab(config, memo, pool, reporter, run_cell)
        lab.check()
        path = out or Path("out") / run_id
        before = _look(path, config, resume=resume, overwrite=overwrite)
        folder = RunFolder(path, before.run_id or run_id)
        folder.write_text("config.yaml", dump_config(config))
        cells = grid(config)
        result = RunResult(path, num_cells=len(cells))
        if before.complete:
            reporter.note(f"{path} is complete: nothing to resume")
            result.summary = read_summary(path)
            return result
        left = [cell for cell in cells if cell.index not in folder.finished_cells()]
        target = hub.target(folder.run_id) if hub else None
        work = [_task(lab, folder, cell, jobs, live, target) for cell in left]
        folder.write_json("environment.json", _environment(lab, folder.run_id, cells))
        if hub:
            indices = tuple(cell.index for cell in left)
            hub.begin(folder.run_id, len(cells), indices, wait_for=stream_wait)
        over = _run_cells(lab, left, work, result, pool if live is None else Pool(1))
        if live is not None:
            flags = live.server_flags
            folder.write_json("environment.json", _environment(lab, folder.run_id, cells, flags))
        folder.finish(complete=result.complete)
        result.summary = read_summary(path)
        if hub:
            hub.end(cells_over=over, complete=result.complete)
    return result


def _stream(address: str, live: bool, reporter: Reporter) -> AbstractContextManager[Hub | None]:
    """What publishes events at an address; None if there is none."""
    if not address:
        return nullcontext()
    try:
        from marsbench.experiment.stream.hub import open_hub
    except ImportError as error:
        raise ConfigError(
            f"--stream needs ZeroMQ: {error}; pip install 'marsbench[live]'"
        ) from error
    return open_hub(address, live=live, note=reporter.note)


@contextmanager
def live_engine(
    config: ExperimentConfig, run_id: str, reporter: Reporter
) -> Iterator[LiveEngine | None]:
    """The servers of an experiment on a live engine, stopped afterwards; None for other engines."""
    if not is_live(config.engine.name):
        yield None
        return
    try:
        from marsbench.engine.live.engine import LiveEngine
    except ImportError as error:
        raise EngineError(
            f"engine {config.engine.name!r} cannot be loaded: {error}; "
            "pip install 'marsbench[live]'"
        ) from error
    from marsbench.engine.live.options import split_options

    options, _ = split_options(config.engine.params)
    with LiveEngine(config.engine.name, options, salt=run_id, note=reporter.note) as live:
        yield live


def _run_cells(
    lab: Lab,
    cells: Sequence[Cell],
    work: Sequence[tasks.CellTask],
    result: RunResult,
    pool: Pool,
) -> int:
    """How many cells are over, finished or failed."""
    reporter, over = lab.reporter, 0
    reporter.begin(len(cells), sum(len(task.sessions) for task in work))
    try:
        outcomes = pool.settle(tasks.cell, work, (MarsbenchError,))
        for cell, outcome in zip(cells, outcomes, strict=True):
            over += 1
            if isinstance(outcome, MarsbenchError):
                result.failures.append((cell, outcome))
                reporter.cell_done(cell, f"failed: {outcome}")
                if isinstance(outcome, ResultsError | StalledError):
                    break  # no other cell can be stored, or sent
            else:
                assert not isinstance(outcome, Exception)
                reporter.cell_done(cell, _outline(outcome))
    except KeyboardInterrupt:
        result.interrupted = True
    except Exception as error:  # whatever it is: it goes on, and says what is safe
        error.add_note(f"finished cells are kept in {result.folder}")
        raise
    finally:
        reporter.end()
    return over


def _task(
    lab: Lab,
    folder: RunFolder,
    cell: Cell,
    jobs: int,
    live: LiveEngine | None,
    stream: Target | None,
) -> tasks.CellTask:
    point, config = cell.point, lab.config
    chosen, system = lab.systems[cell.system]
    sessions = lab.cell_sessions(point)
    arrivals = lab.point_arrivals(point)
    labels = {"hindsight": chosen.variant == "best", "oracle": system.clairvoyant is not None}
    return tasks.CellTask(
        index=cell.index,
        key=CellKey(
            workload=lab.workload(point.workload).name,
            system=cell.system,
            engine=config.engine.name,
            profile=deployment(point.profile)[0].name,
            load=point.load,
            rate_per_s=None if arrivals.closed_loop else lab.rate_per_s(point),
            seed=point.seed,
            tool_cores=point.tool_cores,
        ),
        folder=folder,
        setup=Setup.of(config, point.profile, point.tool_cores),
        system=chosen.base,
        candidates=lab.candidates(cell),
        sessions=sessions,
        arrivals=arrivals,
        ideal_s=lab.ideals(point),
        cut=Cut(config.cut.warmup_s, config.cut.cooldown_s),
        labels={name: value for name, value in labels.items() if value},
        run_cell=lab.run_cell if live is None else live.run_cell,
        progress=_Ticker(lab.reporter) if jobs == 1 or live is not None else None,
        measured=None if live is None else lambda: {"live": live.reports[-1]},
        stream=stream,
    )


class _Ticker:
    """A driver's progress, passed on in seconds."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def __call__(self, done_sessions: int, now_ps: int) -> None:
        self._reporter.tick(done_sessions, to_s(now_ps))


def _outline(entry: Mapping[str, Any]) -> str:
    """One line about a finished cell."""
    metrics, counts = entry["metrics"], entry["sessions"]
    mean_s = metrics["session_latency_s"]["mean"]
    latency = "no session completed" if mean_s is None else f"mean latency {mean_s:.1f} s"
    failed = f", {counts['failed']} failed" if counts["failed"] else ""
    return f"{latency}, {counts['completed']}/{counts['arrived']} sessions{failed}"


def _environment(
    lab: Lab, run_id: str, cells: Sequence[Cell], server_flags: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What the results depend on besides the config, and what was measured on the way."""
    config = lab.config
    inputs, provenance = {}, {}
    for spec in config.workload:
        workload = lab.workload(spec)
        provenance[workload.name] = dict(workload.provenance)
        sha256 = getattr(workload, "sha256", None)
        if sha256 is not None:
            inputs[spec] = sha256
    for profile in config.profile:
        text = json.dumps(lab.profile_content(profile), sort_keys=True)
        inputs[f"profile {profile}"] = hashlib.sha256(text.encode()).hexdigest()
    return environment(
        seeds=range(config.first_seed, config.first_seed + config.seeds),
        input_sha256=inputs,
        server_flags=server_flags,
        extra={
            "run_id": run_id,
            "config_digest": config_digest(config),
            "num_cells": len(cells),
            "workload_provenance": provenance,
            "capacity": [
                {"workload": w, "profile": p, "tool_cores": c, **asdict(capacity)}
                for (w, p, c), capacity in lab.measured_capacities().items()
            ],
            "tuned": [
                {"system": s, "workload": w, "profile": p, "tool_cores": c, **found}
                for (s, w, p, c), found in lab.measured_tunings().items()
            ],
        },
    )


@dataclass(frozen=True, slots=True)
class _Before:
    """What a folder held before the run."""

    run_id: str | None = None
    complete: bool = False


def _look(path: Path, config: ExperimentConfig, *, resume: bool, overwrite: bool) -> _Before:
    """Decide what to do with what is in the folder; raises if that is not the user's wish."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--out {path}: is a file, not a folder; choose another name")
    try:
        found = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
    except OSError as error:
        raise ConfigError(f"--out {path}: cannot be read: {error.strerror}") from error
    foreign = [name for name in found if name not in OWN_FILES + OWN_FOLDERS and name[0] != "."]
    if not found:
        return _Before()
    if foreign:
        raise ConfigError(
            f"--out {path}: holds {foreign[0]!r}, which is no part of a run; choose another folder"
        )
    if overwrite or not _has_results(path):
        _clear(path)
        return _Before()
    if not resume:
        raise ConfigError(
            f"--out {path}: already holds a run; continue it with --resume, replace it with "
            "--overwrite, or choose another folder"
        )
    if not (path / "config.yaml").is_file():
        raise ConfigError(f"--resume: {path} has no config.yaml to compare with; use --overwrite")
    old = load_config([path / "config.yaml"])
    for key in ExperimentConfig.model_fields:
        if getattr(old, key) != getattr(config, key):
            raise ConfigError(
                f"--resume: {path} is another experiment: {key} was {getattr(old, key)}, now "
                f"{getattr(config, key)}; use --overwrite or another --out"
            )
    return _Before(_old_run_id(path), complete=_is_complete(path))


def _old_run_id(path: Path) -> str | None:
    try:
        text = (path / "environment.json").read_text(encoding="utf-8")
        return str(json.loads(text)["run_id"])
    except (OSError, ValueError, KeyError):
        return None  # killed before the first cell: nothing refers to the old id


def _has_results(path: Path) -> bool:
    """Whether any cell was finished; else the run was cut off while it prepared."""
    return (path / "summary.json").is_file() or any((path / "cells").glob("*/cell.json"))


def _is_complete(path: Path) -> bool:
    return (path / "summary.json").is_file() and not (path / "cells").exists()


def _clear(path: Path) -> None:
    try:
        for name in OWN_FILES:
            (path / name).unlink(missing_ok=True)
        for name in OWN_FOLDERS:
            shutil.rmtree(path / name, ignore_errors=True)
    except OSError as error:
        raise ResultsError(f"--overwrite: cannot clear {path}: {error.strerror}") from error


def new_run_id(config: ExperimentConfig) -> str:
    """Time and experiment: sorts by time, differs between experiments."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{config_digest(config)[:6]}"


def absolute_paths(config: ExperimentConfig) -> ExperimentConfig:
    """Workload files by absolute path, so that the stored config runs from any folder."""
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
