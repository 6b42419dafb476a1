"""Everything cells need before they can run: sessions, arrivals, capacity, ideals, tuned params."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

from marsbench.arrival import ArrivalPlan, arrival_rng, arrivals
from marsbench.config import OWN_PACE, ExperimentConfig, Value
from marsbench.core import Session, plan_turns
from marsbench.engine.plan import Engine
from marsbench.errors import ConfigError
from marsbench.experiment import tasks, tuning
from marsbench.experiment.capacity import Capacity, search
from marsbench.experiment.cells import Cell, Point, points
from marsbench.experiment.fleets import check_fleet
from marsbench.experiment.ideal import ideal_latencies_s
from marsbench.experiment.memo import Memo, code_digest, digest, sessions_digest
from marsbench.experiment.pool import Workers
from marsbench.experiment.wiring import (
    Setup,
    check_flags,
    check_start,
    deployment,
    for_ideals,
    in_virtual_time,
    numbers,
    on_own_engine,
    opened,
    try_out,
)
from marsbench.registry import table
from marsbench.system import System
from marsbench.trace.workload import Workload, original_session


class Reporter(Protocol):
    """Who is told how an experiment goes."""

    def note(self, text: str) -> None:
        """Tell the reader in one line of something that they should know."""
        ...

    def stage(self, text: str) -> None:
        """Tell that a stage of the preparation, before the cells run, begins."""
        ...

    def begin(self, num_cells: int, num_sessions: int) -> None:
        """Tell that the cells start: how many of them, and how many sessions in all of them."""
        ...

    def tick(self, done_sessions: int, now_s: float) -> None:
        """Tell how many sessions of the current cell have finished, and which virtual time it has
        reached.
        """
        ...

    def cell_done(self, cell: Cell, line: str) -> None:
        """Tell that a cell is finished and stored (or failed); ``line`` says how it went."""
        ...

    def end(self) -> None:
        """Tell that no more cells will come."""
        ...


@dataclass
class Lab:
    """Prepares cells; asks for each measurement once, and remembers it between runs."""

    config: ExperimentConfig
    memo: Memo
    pool: Workers
    reporter: Reporter
    engine: Engine | None = None
    """Used for every simulation instead of the engines that the configuration names (tests)."""
    _workloads: dict[str, Workload] = field(default_factory=dict)
    _sessions: dict[tuple[str, int, str, int], tuple[Session, ...]] = field(default_factory=dict)
    _capacities: dict[tuple[str, str, int, float], Capacity] = field(default_factory=dict)
    _ideals: dict[tuple[str, str, int, float, int], dict[str, float | None]] = field(
        default_factory=dict
    )
    _tuned: dict[tuple[str, str, str, int, float], dict[str, Any]] = field(default_factory=dict)

    def at(self, config: ExperimentConfig) -> Lab:
        """Return a lab for another number of sessions or other arrivals on the same workloads,
        profiles and systems. What is measured there (capacity, tuned parameters) is shared.
        """
        return replace(self, config=config, _ideals={})

    @cached_property
    def systems(self) -> dict[str, tuple[tuning.Chosen, System]]:
        """System names of the experiment, resolved."""
        return {name: tuning.resolve(name) for name in self.config.system}

    def check(self) -> None:
        """Raise for every name and flag that is wrong, before anything is computed."""
        from marsbench.registry import unknown
        from marsbench.tools import TOOL_EXECUTORS, TOOL_MODELS

        config = self.config
        if config.tools.name not in {**TOOL_MODELS, **TOOL_EXECUTORS}:
            raise unknown("tool model", config.tools.name, {**TOOL_MODELS, **TOOL_EXECUTORS})
        for profile in config.profile:
            most_gib = max(config.host_kv_gib)
            setup = Setup.of(config, profile, config.tool_cores[0], most_gib)
            for name, (_, system) in self.systems.items():
                check_start(setup, system, config.params.get(name, {}))
                check_fleet(system, setup.engine, max(config.replicas), most_gib)
            self._try_out(for_ideals(setup))
        names = [self.workload(spec).name for spec in config.workload]
        if len(set(names)) < len(names):
            raise ConfigError(f"two workloads are called {max(names, key=names.count)!r}; rename")
        for point in points(config):
            rate_per_s = point.rate_per_s if point.load is None else 1.0
            self.arrivals(point.workload, self.cell_sessions(point), rate_per_s, point.seed)

    def _try_out(self, setup: Setup) -> None:
        """Every system on a deployment; those of an engine of their own on one of that kind."""
        with ExitStack() as stack:
            opened_engines: dict[str, Engine] = {}
            for name, (_, system) in self.systems.items():
                own = on_own_engine(setup, system)
                engine = self.engine
                if engine is None and own is not setup:
                    if own.engine not in opened_engines:
                        opened_engines[own.engine] = stack.enter_context(opened(own))
                    engine = opened_engines[own.engine]
                try_out(own, system, self.config.params.get(name), engine=engine)

    def workload(self, spec: str) -> Workload:
        """Open a workload, or return it if it is open."""
        from marsbench.trace.source import open_workload

        if spec not in self._workloads:
            self._workloads[spec] = open_workload(spec)
        return self._workloads[spec]

    def sessions(self, spec: str, *, seed: int, split: str, num: int) -> tuple[Session, ...]:
        """Return sessions of a workload; ConfigError if there are none."""
        key = (spec, seed, split, num)
        if key not in self._sessions:
            found = tuple(self.workload(spec).sessions(num, seed, split))
            if not found:
                raise ConfigError(
                    f"workload {spec}: its {split} split has no sessions; "
                    "use --split all or a longer trace"
                )
            self._sessions[key] = found
        return self._sessions[key]

    def cell_sessions(self, point: Point) -> tuple[Session, ...]:
        """Return the sessions of all cells of a point."""
        return self.sessions(
            point.workload, seed=point.seed, split=self.config.split, num=self.config.sessions
        )

    def sampling(self) -> Iterator[tuple[str, bool]]:
        """Yield for each workload what is replayed, in one line, and whether sessions have to
        repeat.
        """
        config = self.config
        for spec in config.workload:
            asked = {point.seed: self.cell_sessions(point) for point in points(config)
                     if point.workload == spec}  # fmt: skip
            ids = [[original_session(s.session_id) for s in chosen] for chosen in asked.values()]
            fewest, distinct = min(len(set(cell)) for cell in ids), len(set().union(*ids))
            text = (
                f"{self.workload(spec).name}: {config.sessions} sessions a cell, {fewest} distinct; "
                f"{distinct} distinct in all (split {config.split}, {_times(config.seeds, 'seed')})"
            )
            yield text, fewest < config.sessions

    def arrivals(
        self, spec: str, sessions: tuple[Session, ...], rate_per_s: float | None, seed: int
    ) -> ArrivalPlan:
        """Return when the sessions arrive. The same seed gives the same pattern at every rate."""
        return arrivals(
            self.config.arrival.name,
            sessions,
            rate_per_s=rate_per_s,
            rng=arrival_rng(seed, self.workload(spec).name),
            params=numbers("arrival.params", self.config.arrival.params),
        )

    def point_arrivals(self, point: Point) -> ArrivalPlan:
        """Return the arrivals of all cells of a point."""
        sessions, rate_per_s = self.cell_sessions(point), self.rate_per_s(point)
        return self.arrivals(point.workload, sessions, rate_per_s, point.seed)

    def rate_per_s(self, point: Point) -> float | None:
        """Return the session arrivals per second at a point; None if arrivals have their own
        pace.
        """
        if point.load is None:
            return point.rate_per_s
        capacity = self.point_capacity(point)
        return point.load * point.replicas * capacity.sessions_per_s

    @property
    def has_host_memory(self) -> bool:
        """Whether any cell of the experiment has host memory for KV; then all say how much."""
        return any(self.config.host_kv_gib)

    @property
    def has_replicas(self) -> bool:
        """Whether any cell of the experiment has several replicas; then all say how many."""
        return self.config.replicas != (1,)

    def point_capacity(self, point: Point) -> Capacity:
        """Return the capacity that a point's load is a share of: with its tools and its host
        memory.

        Of several replicas it is that of each, with its share of the tool cores.
        """
        cores = point.tool_cores
        share = max(cores // point.replicas, 1) if cores else 0
        return self.capacity(point.workload, point.profile, share, point.host_kv_gib)

    def capacity(
        self, spec: str, profile: str, tool_cores: int, host_kv_gib: float = 0.0
    ) -> Capacity:
        """Measure a capacity, or return the one that is remembered."""
        key = (spec, profile, tool_cores, host_kv_gib)
        if key not in self._capacities:
            self._capacities[key] = self._find_capacity(*key)
        return self._capacities[key]

    def _find_capacity(
        self, spec: str, profile: str, tool_cores: int, host_kv_gib: float
    ) -> Capacity:
        wanted = self.config.capacity
        sessions = self.sessions(spec, seed=wanted.seed, split="all", num=wanted.sessions)
        setup = self._yardstick(profile, tool_cores, host_kv_gib)
        inputs = {
            "workload": self.workload(spec).name,
            "sessions": sessions_digest(sessions),
            **self._inputs(setup),
        }
        found = self.memo.get("capacity", inputs)
        if found is not None:
            curve = tuple((int(n), float(rate)) for n, rate in found["curve"])
            return Capacity(found["sessions_per_s"], found["active"], curve)
        self.reporter.stage(
            f"capacity of {self.workload(spec).name} on {profile}, {_cores(tool_cores)}"
        )
        flags = check_flags("engine.params", setup.engine_flags)
        engine = deployment(profile)[0].engine_config(**flags)
        peak = [max(p.prompt_tokens + p.output_tokens for p in plan_turns(s)) for s in sessions]
        mean_peak_tokens = sum(peak) / len(peak)
        first = round(engine.num_blocks * engine.block_size / mean_peak_tokens)

        def measure(numbers: Any) -> list[float]:
            return self.pool.map(
                tasks.rate,
                [tasks.RateTask(setup, sessions, number, self.engine) for number in numbers],
            )

        capacity = search(measure, first=first)
        if capacity.sessions_per_s <= 0:
            raise ConfigError(
                f"workload {spec}: no session fits {profile}; give arrivals with --rate"
            )
        self.memo.put("capacity", inputs, asdict(capacity))
        return capacity

    def ideals(self, point: Point) -> Mapping[str, float | None]:
        """Return session id -> ideal latency, seconds, of a point's sessions; None for one that
        cannot run.
        """
        host = point.host_kv_gib
        key = (point.workload, point.profile, point.tool_cores, host, point.seed)
        if key not in self._ideals:
            setup = for_ideals(Setup.of(self.config, point.profile, point.tool_cores, host))
            name = self.workload(point.workload).name

            def measure(chunks: Any) -> list[list[float | None]]:
                if chunks:
                    self.reporter.stage(f"ideal latencies of {name} on {point.profile}")
                work = [tasks.IdealTask(setup, tuple(chunk), self.engine) for chunk in chunks]
                return self.pool.map(tasks.ideal, work)

            self._ideals[key] = ideal_latencies_s(
                self.cell_sessions(point),
                memo=self.memo,
                inputs=self._inputs(setup),
                measure=measure,
            )
        return self._ideals[key]

    def candidates(self, cell: Cell) -> tuple[Mapping[str, Value], ...]:
        """Return the parameters that a cell runs with; several where the best is chosen with
        hindsight.
        """
        chosen, system = self.systems[cell.system]
        given = self.config.params.get(cell.system, {})
        if chosen.variant == "best":
            return tuple({**params, **given} for params in tuning.candidates(system))
        if chosen.variant == "tuned":
            return ({**self.tuned(cell)["params"], **given},)
        return (given,)

    def tuned(self, cell: Cell) -> dict[str, Any]:
        """Return {"params", "tried": [[params, mean latency], ...]} of a tuned system at a
        point.
        """
        point = cell.point
        host = point.host_kv_gib
        key = (cell.system, point.workload, point.profile, point.tool_cores, host)
        if key not in self._tuned:
            self._tuned[key] = self._tune(cell)
        return self._tuned[key]

    def _tune(self, cell: Cell) -> dict[str, Any]:
        chosen, system = self.systems[cell.system]
        point, wanted = cell.point, self.config.tuning
        yardstick = self._yardstick(point.profile, point.tool_cores, point.host_kv_gib)
        setup = on_own_engine(yardstick, system)
        sessions = self.sessions(
            point.workload, seed=wanted.seed, split="tuning", num=wanted.sessions
        )
        plan = self._tuning_arrivals(point, sessions)
        grid = tuning.candidates(system)
        inputs = {
            "system": chosen.base,
            "grid": grid,
            "limits": dict(system.limits),
            "sessions": sessions_digest(sessions),
            "arrivals": asdict(plan),
            **self._inputs(setup, table("SYSTEMS").get(chosen.base, chosen.base).split(".")[0]),
        }
        found: dict[str, Any] | None = self.memo.get("tuning", inputs)
        if found is None:
            self.reporter.stage(
                f"tuning {chosen.base} on {self.workload(point.workload).name}: {len(grid)} candidates"
            )

            with opened(setup, self.engine) as engine:

                def measure(wider: list[tuning.Params]) -> list[float]:
                    work = [
                        tasks.TrialTask(
                            setup, chosen.base, params, sessions, plan, wanted.seed, engine
                        )
                        for params in wider
                    ]
                    return self.pool.map(tasks.trial, work)

                tried = tuning.search(system, measure)
            found = {"params": tuning.pick(tried), "tried": [list(pair) for pair in tried]}
            self.memo.put("tuning", inputs, found)
        return found

    def _tuning_arrivals(self, point: Point, sessions: tuple[Session, ...]) -> ArrivalPlan:
        """Tuning sees its own load whatever the cells' loads are; a closed loop has none."""
        wanted = self.config.tuning
        rate_per_s = None
        if self.config.arrival.name not in OWN_PACE:
            capacity = self.point_capacity(point)
            rate_per_s = wanted.load * capacity.sessions_per_s
        return self.arrivals(point.workload, sessions, rate_per_s, wanted.seed)

    def profile_content(self, profile: str) -> dict[str, Any]:
        """Return everything that a profile says."""
        return deployment(profile)[0].model_dump(mode="json")

    def measured_capacities(self) -> Mapping[tuple[str, str, int, float], Capacity]:
        """Return (workload, profile, tool cores, host GiB) -> capacity, of those that were
        needed.
        """
        return self._capacities

    def measured_tunings(self) -> Mapping[tuple[str, str, str, int, float], dict[str, Any]]:
        """Return (system, workload, profile, tool cores, host GiB) -> what tuning found, of those
        needed.
        """
        return self._tuned

    def _yardstick(self, profile: str, tool_cores: int, host_kv_gib: float) -> Setup:
        """Loads and tuned parameters are found in ``sim`` whatever engine the cells run on, so that
        one load is one rate, and one system is the same system, on all of them.
        """
        return in_virtual_time(Setup.of(self.config, profile, tool_cores, host_kv_gib))

    def _inputs(self, setup: Setup, *packages: str) -> dict[str, Any]:
        """What any simulation on a deployment depends on besides sessions and system."""
        described = {key: value for key, value in asdict(setup).items() if key != "profile"}
        return {
            **described,
            "profile": setup.profile,
            "profile_content": digest(self.profile_content(setup.profile)),
            "code": code_digest(setup.engine, packages),
        }


def _times(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _cores(tool_cores: int) -> str:
    return f"{tool_cores} tool cores" if tool_cores else "unlimited tool cores"
