"""The highest load that each system sustains with an objective met: cells run where a search asks.

Every system and seed is searched on one ladder of rates (or numbers of agents), so that systems meet
the same sessions at the same times on every rung. A cell sustains its load if it meets the objective
and its queue does not grow as long as sessions arrive (``marsbench.metrics.stability``). Cells are
kept in the run folder as they finish, and a search that is continued asks for them there.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from marsbench.config import OWN_PACE, ArrivalPart, ExperimentConfig, dump_config
from marsbench.engine import engine_kind
from marsbench.engine.kind import Opening
from marsbench.engine.plan import Engine
from marsbench.errors import ConfigError, MarsbenchError, ResultsError
from marsbench.experiment import tasks
from marsbench.experiment.cells import Cell, Point, points
from marsbench.experiment.climb import Summit, agent_ladder, climb, rate_ladder
from marsbench.experiment.fleets import check_engine
from marsbench.experiment.lab import Lab, Reporter
from marsbench.experiment.memo import Memo
from marsbench.experiment.pool import Pool
from marsbench.experiment.resume import absolute_paths, examine, new_run_id
from marsbench.experiment.runner import (
    LOGS,
    RunContext,
    RunResult,
    Ticker,
    cell_task,
    driver,
    facts_of,
    outline,
    say_sampling,
)
from marsbench.experiment.stream.target import StalledError
from marsbench.experiment.wiring import deployment
from marsbench.metrics.slo import Slo, parse_slo
from marsbench.metrics.stability import FEWEST
from marsbench.runfolder import (
    CAPACITY_FILE,
    CAPACITY_VERSION,
    RunFolder,
    read_capacity,
    read_summary,
    read_table,
)
from marsbench.trace.workload import original_session

LEAST_LOAD, MOST_LOAD, FIRST_LOAD = 0.05, 10.0, 0.5
"""Ends of the ladder of rates and its first rung, as shares of stock vLLM's capacity."""
MOST_AGENTS = 1024
SESSIONS_PER_AGENT = 4
"""A closed loop of so many agents runs at least so many times that many sessions."""

Key = tuple[str, str, int, float, str, int, float]
"""Workload, profile, tool cores, host memory, system, seed, and rate or number of agents."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One load that a search has tried, and how it went."""

    index: int
    """Of the cell."""
    sustained: bool
    unstable: bool
    failed: str
    """The first bound that was not met; empty if all were."""
    values: Mapping[str, float | None]
    """Bound -> the number that was held against it."""
    entry: Mapping[str, Any]


@dataclass
class Search:
    """The search for one system's capacity with one seed."""

    point: Point
    system: str
    ladder: Sequence[float]
    steps: Generator[int, bool, Summit]
    rung: int
    summit: Summit | None = None
    tried: dict[int, Tried] = field(default_factory=dict)

    @classmethod
    def begun(cls, point: Point, system: str, ladder: Sequence[float], start: float) -> Search:
        """Begin a search, which asks for its first rung."""
        steps = climb(ladder, start)
        return cls(point, system, ladder, steps, next(steps))

    def told(self, tried: Tried) -> None:
        """Take how the rung went; either there is a next one or the search is over."""
        self.tried[self.rung] = tried
        try:
            self.rung = self.steps.send(tried.sustained)
        except StopIteration as stopped:
            self.summit = stopped.value


@dataclass
class CapacityStudy:
    """All searches of an experiment: what they ask for, and how what was run is judged."""

    config: ExperimentConfig
    lab: Lab
    _labs: dict[float, Lab] = field(default_factory=dict)

    @cached_property
    def slo(self) -> Slo:
        """The objective."""
        assert self.config.sustain is not None
        return parse_slo(self.config.sustain.slo)

    @property
    def closed(self) -> bool:
        """Whether numbers of agents are searched, not rates."""
        assert self.config.sustain is not None
        return self.config.sustain.closed_loop

    @cached_property
    def searches(self) -> list[Search]:
        """One for each scenario, seed and system, in this order."""
        return [
            Search.begun(point, system, *self._ladder(point))
            for point in points(self.config)
            for system in self.config.system
        ]

    def _ladder(self, point: Point) -> tuple[Sequence[float], float]:
        """Rates (1/s) or numbers of agents to choose from, and where to begin."""
        wanted, capacity = self.config.sustain, self.lab.point_capacity(point)
        assert wanted is not None
        unit = capacity.sessions_per_s
        if self.closed:
            least, most = wanted.least or 1, wanted.most or MOST_AGENTS
            ladder: Sequence[float] = agent_ladder(int(least), int(most), wanted.precision)
            return ladder, float(capacity.active)
        least = LEAST_LOAD * unit if wanted.least is None else wanted.least / 3600
        most = MOST_LOAD * unit if wanted.most is None else wanted.most / 3600
        ladder = rate_ladder(unit, least, most, wanted.precision)
        if len(ladder) < 2:
            raise ConfigError(
                f"--least {least * 3600:g} and --most {most * 3600:g} sessions/hour have no two rates "
                f"{wanted.precision:.1%} apart between them; widen the bracket"
            )
        return ladder, FIRST_LOAD * unit

    def task(self, search: Search, index: int, context: RunContext) -> tasks.CellTask:
        """Return the cell that a search asks for, as a task."""
        value = search.ladder[search.rung]
        cell = Cell(index, self._at(search.point, value), search.system)
        self.lab.candidates(cell)  # parameters are tuned once, whatever the number of agents
        return cell_task(self.lab_for(value), cell, context)

    def cell(self, search: Search, index: int) -> Cell:
        """Return the cell that a search asks for, as progress and errors name it."""
        return Cell(index, self._at(search.point, search.ladder[search.rung]), search.system)

    def _at(self, point: Point, value: float) -> Point:
        rate = None if self.closed else value
        where = (point.workload, point.profile, point.tool_cores)
        return Point(*where, None, rate, point.seed, point.host_kv_gib)

    def lab_for(self, value: float) -> Lab:
        """Return what prepares cells at a rate, or with a number of agents."""
        if not self.closed:
            return self.lab
        if value not in self._labs:
            agents = int(value)
            arrival = ArrivalPart(name="closed", params={"n": agents})
            sessions = max(self.config.sessions, SESSIONS_PER_AGENT * agents)
            update = {"arrival": arrival, "load": (), "sessions": sessions}
            self._labs[value] = self.lab.at(self.config.model_copy(update=update))
        return self._labs[value]

    def key(self, search: Search) -> Key:
        """Return what tells the cell that a search asks for from all others."""
        point = search.point
        workload = self.lab.workload(point.workload).name
        profile = deployment(point.profile)[0].name
        value = search.ladder[search.rung]
        where = (workload, profile, point.tool_cores, point.host_kv_gib)
        return (*where, search.system, point.seed, value)

    def judged(self, entry: Mapping[str, Any], index: int, folder: Path) -> Tried:
        """Hold a finished cell against the objective and against growing queues."""
        rows = partial(read_table, folder, "sessions", filters=[("cell", "=", index)])
        values = {clause.text: clause.value(entry, rows) for clause in self.slo.clauses}
        missed = [c.text for c in self.slo.clauses if not c.holds(values[c.text])]
        unstable = not self.closed and entry["metrics"]["unstable"] != 0  # null: too few completed
        sustained = not missed and not unstable
        return Tried(index, sustained, unstable, missed[0] if missed else "", values, entry)

    def document(self, run_id: str, *, complete: bool) -> dict[str, Any]:
        """Return the content of ``capacity.json``."""
        scenarios: dict[tuple[Any, ...], dict[str, Any]] = {}
        for search in self.searches:
            point = search.point
            where = (point.workload, point.profile, point.tool_cores, point.host_kv_gib)
            found = scenarios.setdefault(where, self._scenario(point))
            if search.summit is not None:
                found["searches"].append(self._result(search, search.summit))
        assert self.config.sustain is not None
        return {
            "capacity_version": CAPACITY_VERSION,
            "run_id": run_id,
            "complete": complete,
            "slo": self.slo.text,
            "loop": "closed" if self.closed else "open",
            "unit": "agents" if self.closed else "sessions/s",
            "precision": self.config.sustain.precision,
            "scenarios": list(scenarios.values()),
        }

    def _scenario(self, point: Point) -> dict[str, Any]:
        same = [p for p in points(self.config) if p.workload == point.workload]
        drawn = {p.seed: self.lab.cell_sessions(p) for p in same}.values()
        ids = [{original_session(s.session_id) for s in sessions} for sessions in drawn]
        profile = deployment(point.profile)[0]
        return {
            "workload": self.lab.workload(point.workload).name,
            "profile": profile.name,
            "engine": self.config.engine.name,
            "tool_cores": point.tool_cores,
            "host_kv_gib": point.host_kv_gib,
            "num_gpus": profile.num_gpus,
            "unit_per_s": self.lab.point_capacity(point).sessions_per_s,
            "drawn": sum(map(len, ids)),
            "distinct": len(set().union(*ids)),
            "searches": [],
        }

    def _result(self, search: Search, summit: Summit) -> dict[str, Any]:
        at = None if summit.best is None else search.tried[summit.best].entry
        values = search.ladder
        return {
            "system": search.system,
            "seed": search.point.seed,
            "best": None if summit.best is None else values[summit.best],
            "failed": None if summit.first_failure is None else values[summit.first_failure],
            "least": values[min(search.tried)],
            "islands": [values[rung] for rung in summit.islands],
            "agents": None if at is None else self._agents(at),
            "sessions_per_s": None if at is None else at["metrics"]["sessions_per_s"],
            "sessions": None if at is None else at["sessions"]["arrived"],
            "tried": [
                {
                    "value": values[rung],
                    "cell": tried.index,
                    "sustained": tried.sustained,
                    "unstable": tried.unstable,
                    "failed": tried.failed,
                    "bounds": dict(tried.values),
                }
                for rung, tried in sorted(search.tried.items())
            ],
        }

    def _agents(self, entry: Mapping[str, Any]) -> float | None:
        """Sessions in the system at once: as many as there are agents, or by Little's law."""
        if self.closed:
            return float(entry["active"])
        mean_s = entry["metrics"]["session_latency_s"]["mean"]
        return None if mean_s is None else float(entry["rate_per_s"] * mean_s)


def for_search(config: ExperimentConfig) -> ExperimentConfig:
    """Return the experiment as a search runs it: one load that stands for those the search chooses.

    Raises ConfigError for what cannot be searched.
    """
    wanted = config.sustain
    if wanted is None:
        raise ConfigError("no objective: give --slo, for example --slo 'p95 slowdown <= 3'")
    parse_slo(wanted.slo)
    if config.arrival.name in OWN_PACE:
        raise ConfigError(
            f"arrival {config.arrival.name!r} has a pace of its own, which cannot be searched; use "
            "poisson, gamma, burst or fixed, or search agents with --closed-loop"
        )
    if config.sessions < FEWEST:
        raise ConfigError(
            f"--sessions {config.sessions}: whether a queue grows cannot be told from fewer than "
            f"{FEWEST} sessions"
        )
    if wanted.least and wanted.most and wanted.least >= wanted.most:
        raise ConfigError(f"--least {wanted.least:g} is not below --most {wanted.most:g}")
    for name in ("least", "most"):
        value = getattr(wanted, name)
        if wanted.closed_loop and value is not None and value != int(value):
            raise ConfigError(f"--{name} {value:g}: agents are whole numbers")
    return config.model_copy(update={"load": (1.0,), "rate_per_s": ()})


def find_capacity(
    config: ExperimentConfig,
    out: Path | None,
    *,
    reporter: Reporter,
    jobs: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    cache: Path | None = None,
    engine: Engine | None = None,
) -> RunResult:
    """Search every system's capacity and write the run folder with ``capacity.json``.

    Raises MarsbenchError before the first cell if anything the user gave is wrong. A cell that fails
    ends its own search and no other; Ctrl-C ends all. Finished cells are kept in each case.
    """
    check_engine(config.engine.name, max(config.replicas))
    config = for_search(absolute_paths(config))
    memo, run_id = Memo(cache, reporter.note), new_run_id(config)
    kind = engine_kind(config.engine.name)
    path = out or Path("out") / run_id
    opening = Opening(run_id, path / LOGS, reporter.note)
    with (
        Pool(jobs) as pool,
        kind.open(config.engine.params, opening) as opened,
        driver(config, opened, opening) as driven,
    ):
        lab = Lab(config, memo, pool, reporter, engine)
        lab.check()
        say_sampling(lab, reporter)
        before = examine(path, config, (), resume=resume, overwrite=overwrite)
        folder = RunFolder(path, before.run_id or run_id)
        folder.write_text("config.yaml", dump_config(config))
        result = RunResult(path)
        if before.complete and read_capacity(path) is not None:
            reporter.note(f"{path} is complete: nothing to resume")
            result.summary = read_summary(path)
            return result
        study = CapacityStudy(config, lab)
        ticker = Ticker(reporter) if jobs == 1 or kind.one_at_a_time else None
        context = RunContext(engine or driven, folder, None, ticker)
        folder.write_json("environment.json", facts_of(lab, folder.run_id, {}, driven.described()))
        cells_pool = Pool(1) if kind.one_at_a_time else pool
        _Rounds(study, context, cells_pool, result).run()
        folder.write_json("environment.json", facts_of(lab, folder.run_id, {}, driven.described()))
        if folder.finished_cells():
            folder.finish(complete=result.complete)
            result.summary = read_summary(path)
        document = study.document(folder.run_id, complete=result.complete)
        folder.write_json(CAPACITY_FILE, document)
    return result


@dataclass
class _Rounds:
    """Runs what all open searches ask for, round by round, until none is open."""

    study: CapacityStudy
    context: RunContext
    pool: Pool
    result: RunResult

    def run(self) -> None:
        """Bring every search to its end, or as far as it gets."""
        folder = self.context.folder
        stored = folder.finished_cells()
        known = {_stored_key(entry): (index, entry) for index, entry in stored.items()}
        next_index = max(stored, default=-1) + 1
        left = list(self.study.searches)
        try:
            while left:
                for search in left:
                    self._recall(search, known)
                asking = [search for search in left if search.summit is None]
                left = self._round(asking, next_index)
                next_index += len(asking)
        except KeyboardInterrupt:
            self.result.interrupted = True
        except Exception as error:  # whatever it is: it goes on, and says what is safe
            error.add_note(f"finished cells are kept in {folder.path}")
            raise

    def _recall(self, search: Search, known: Mapping[Key, tuple[int, Mapping[str, Any]]]) -> None:
        """Answer a search from cells that the folder held before."""
        while search.summit is None and (found := known.get(self.study.key(search))):
            search.told(self.study.judged(found[1], found[0], self.context.folder.path))

    def _round(self, searches: list[Search], first: int) -> list[Search]:
        """Run one cell for each search; return those whose cells did not fail."""
        if not searches:
            return []
        study, reporter = self.study, self.study.lab.reporter
        numbered = list(enumerate(searches, first))
        work = [study.task(search, index, self.context) for index, search in numbered]
        cells = [study.cell(search, index) for index, search in numbered]
        self.result.num_cells += len(work)
        reporter.begin(len(work), sum(len(task.sessions) for task in work))
        kept = []
        try:
            outcomes = self.pool.settle(tasks.cell, work, (MarsbenchError,))
            for cell, search, outcome in zip(cells, searches, outcomes, strict=True):
                if isinstance(outcome, MarsbenchError):
                    self.result.failures.append((cell, outcome))
                    reporter.cell_done(cell, f"failed: {outcome}")
                    if isinstance(outcome, ResultsError | StalledError):
                        return []  # no other cell can be stored
                    continue
                assert not isinstance(outcome, Exception)
                tried = study.judged(outcome, cell.index, self.context.folder.path)
                reporter.cell_done(cell, f"{_verdict(tried)}; {outline(outcome)}")
                search.told(tried)
                kept.append(search)
        finally:
            reporter.end()
        return kept


def _verdict(tried: Tried) -> str:
    if tried.sustained:
        return "sustained"
    return "unstable" if tried.unstable else f"misses {tried.failed}"


def _stored_key(entry: Mapping[str, Any]) -> Key:
    value = entry["rate_per_s"] if entry["rate_per_s"] is not None else entry.get("active", 0)
    return (
        entry["workload"], entry["profile"], entry["tool_cores"], entry.get("host_kv_gib") or 0.0,
        entry["system"], entry["seed"], value,
    )  # fmt: skip
