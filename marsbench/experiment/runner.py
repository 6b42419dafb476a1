"""From an experiment to a run folder: prepare, simulate every cell, keep what is finished."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marsbench import registry
from marsbench.config import ExperimentConfig, config_digest, dump_config
from marsbench.core import to_s
from marsbench.drivers import DRIVERS
from marsbench.drivers.base import Driver
from marsbench.engine import engine_kind
from marsbench.engine.kind import Opening, attribute
from marsbench.engine.plan import Engine, Json, Progress
from marsbench.environment import environment
from marsbench.errors import ConfigError, MarsbenchError, ResultsError
from marsbench.experiment import tasks
from marsbench.experiment.cells import Cell, grid
from marsbench.experiment.fleets import check_engine
from marsbench.experiment.lab import Lab, Reporter
from marsbench.experiment.memo import Memo
from marsbench.experiment.pool import Pool, Workers, open_workers
from marsbench.experiment.resume import absolute_paths, examine, new_run_id
from marsbench.experiment.shards import Shard
from marsbench.experiment.stream.target import StalledError, Target
from marsbench.experiment.wiring import Setup, deployment
from marsbench.extras import require
from marsbench.metrics import Cut
from marsbench.runfolder import RunFolder, read_summary
from marsbench.tables import CellKey

if TYPE_CHECKING:
    from marsbench.experiment.stream.hub import Hub

LOGS = "logs"
"""Folder of a run for the logs of servers that failed."""


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
    jobs: int | str = 1,
    resume: bool = False,
    overwrite: bool = False,
    cache: Path | None = None,
    engine: Engine | None = None,
    stream: str = "",
    stream_wait: int = 0,
    shard: Shard | None = None,
) -> RunResult:
    """Run every cell that is not finished yet and write the run folder.

    Raises MarsbenchError before the first cell if anything the user gave is wrong. A cell that
    fails does not stop the others; Ctrl-C and a full disk do; finished cells are kept in each
    case. ``jobs`` are processes, or where Ray is; ``shard`` is the part of the grid to run. ``stream`` is an address to publish events at as
    they happen; the cells begin when it has ``stream_wait`` observers.
    """
    if config.sustain is not None:
        raise ConfigError(
            "the experiment has a key sustain: `marsbench capacity` searches; run it with that, or "
            "take the key out"
        )
    check_engine(config.engine.name, max(config.replicas))
    config = absolute_paths(config)
    memo = Memo(cache, reporter.note)
    run_id = new_run_id(config)
    kind = engine_kind(config.engine.name)
    serial = kind.one_at_a_time
    path = out or Path("out") / run_id
    opening = Opening(run_id, path / LOGS, reporter.note)
    with (
        open_workers(jobs) as pool,
        kind.open(config.engine.params, opening) as opened,
        driver(config, opened, opening) as driven,
        _stream(stream, serial, reporter) as hub,
    ):
        lab = Lab(config, memo, pool, reporter, engine)
        lab.check()
        say_sampling(lab, reporter)
        whole = grid(config)
        cells = whole if shard is None else shard.cells(whole)
        indices = [cell.index for cell in cells]
        facts: dict[str, Json] = {
            "num_cells": len(whole),
            **({"shard": str(shard)} if shard else {}),
        }
        before = examine(
            path, config, indices, resume=resume, overwrite=overwrite, shard=str(shard or "")
        )
        folder = RunFolder(path, before.run_id or run_id)
        folder.write_text("config.yaml", dump_config(config))
        result = RunResult(path, num_cells=len(cells))
        if before.complete:
            reporter.note(f"{path} is complete: nothing to resume")
            result.summary = read_summary(path)
            return result
        left = [cell for cell in cells if cell.index not in folder.finished_cells()]
        target = hub.target(folder.run_id) if hub else None
        runs = RunContext(
            engine or driven, folder, target, Ticker(reporter) if jobs == 1 or serial else None
        )
        work = [cell_task(lab, cell, runs) for cell in left]
        folder.write_json("environment.json", facts_of(lab, folder.run_id, facts))
        if hub:
            waiting = tuple(cell.index for cell in left)
            hub.begin(folder.run_id, len(cells), waiting, wait_for=stream_wait)
        over = _run_cells(lab, left, work, result, Pool(1) if serial else pool)
        if described := driven.described():
            found = facts_of(lab, folder.run_id, facts, described)
            folder.write_json("environment.json", found)
        folder.finish(complete=result.complete)
        result.summary = read_summary(path)
        if hub:
            hub.end(cells_over=over, complete=result.complete)
    return result


def say_sampling(lab: Lab, reporter: Reporter) -> None:
    """Tell how many different sessions the cells have: the first thing a reader of results must
    know.
    """
    for text, repeats in lab.sampling():
        if repeats:
            reporter.note(f"{text}; repeats are no new evidence: ask for fewer with --sessions")
        else:
            reporter.stage(text)


def _stream(address: str, live: bool, reporter: Reporter) -> AbstractContextManager[Hub | None]:
    """What publishes events at an address; None if there is none."""
    if not address:
        return nullcontext()
    require("live", "--stream")
    from marsbench.experiment.stream.hub import open_hub

    return open_hub(address, live=live, note=reporter.note)


def driver(
    config: ExperimentConfig, engine: Engine, opening: Opening
) -> AbstractContextManager[Engine]:
    """Return what runs the cells: the engine, with whatever makes sessions act around it."""
    known = {**registry.table("DRIVERS"), **DRIVERS}
    if config.driver.name not in known:
        raise registry.unknown("driver", config.driver.name, known)
    made: Driver = attribute(known[config.driver.name])(config.driver.params)
    return made.around(engine, opening)


def _run_cells(
    lab: Lab,
    cells: Sequence[Cell],
    work: Sequence[tasks.CellTask],
    result: RunResult,
    pool: Workers,
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
                reporter.cell_done(cell, outline(outcome))
                for warning in outcome.get("warnings", ()):
                    reporter.note(
                        f"warning: {cell.system} on {Path(cell.point.workload).name}, "
                        f"seed {cell.point.seed}: {warning}"
                    )
    except KeyboardInterrupt:
        result.interrupted = True
    except Exception as error:  # whatever it is: it goes on, and says what is safe
        error.add_note(f"finished cells are kept in {result.folder}")
        raise
    finally:
        reporter.end()
    return over


@dataclass(frozen=True, slots=True)
class RunContext:
    """What all cells of a run have in common."""

    engine: Engine
    folder: RunFolder
    stream: Target | None
    progress: Progress | None
    """Who is told of sessions that finish; None where cells run in processes of their own."""


def cell_task(lab: Lab, cell: Cell, runs: RunContext) -> tasks.CellTask:
    """Return what a worker process needs to simulate, measure and store a cell."""
    point, config = cell.point, lab.config
    chosen, system = lab.systems[cell.system]
    sessions = lab.cell_sessions(point)
    arrivals = lab.point_arrivals(point)
    labels = {
        "hindsight": chosen.variant == "best",
        "oracle": system.clairvoyant is not None,
        "active": arrivals.closed_loop or 0,
    }
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
            host_kv_gib=point.host_kv_gib if lab.has_host_memory else None,
            replicas=point.replicas if lab.has_replicas else None,
        ),
        folder=runs.folder,
        setup=Setup.of(config, point.profile, point.tool_cores, point.host_kv_gib, point.replicas),
        system=chosen.base,
        candidates=lab.candidates(cell),
        sessions=sessions,
        arrivals=arrivals,
        ideal_s=lab.ideals(point),
        cut=Cut(config.cut.warmup_s, config.cut.cooldown_s),
        labels={name: value for name, value in labels.items() if value},
        engine=runs.engine,
        progress=runs.progress,
        stream=runs.stream,
    )


class Ticker:
    """A driver's progress, passed on in seconds."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def __call__(self, done_sessions: int, now_ps: int) -> None:
        self._reporter.tick(done_sessions, to_s(now_ps))


def outline(entry: Mapping[str, Any]) -> str:
    """Return one line about a finished cell."""
    metrics, counts = entry["metrics"], entry["sessions"]
    mean_s = metrics["session_latency_s"]["mean"]
    latency = "no session completed" if mean_s is None else f"mean latency {mean_s:.1f} s"
    failed = f", {counts['failed']} failed" if counts["failed"] else ""
    return f"{latency}, {counts['completed']}/{counts['arrived']} sessions{failed}"


def facts_of(
    lab: Lab,
    run_id: str,
    facts: Mapping[str, Json],
    server_flags: Mapping[str, Json] | None = None,
) -> dict[str, Any]:
    """Return what the results depend on besides the config, what was measured on the way, and
    ``facts``.
    """
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
            **facts,
            "workload_provenance": provenance,
            "capacity": [
                {"workload": w, "profile": p, "tool_cores": c, **_host(h), **asdict(capacity)}
                for (w, p, c, h), capacity in lab.measured_capacities().items()
            ],
            "tuned": [
                {"system": s, "workload": w, "profile": p, "tool_cores": c, **_host(h), **found}
                for (s, w, p, c, h), found in lab.measured_tunings().items()
            ],
        },
    )


def _host(gib: float) -> dict[str, float]:
    """The host memory that an entry was measured with; nothing if there was none."""
    return {"host_kv_gib": gib} if gib else {}
