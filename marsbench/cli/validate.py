"""``marsbench validate``: play one cell on two engines and compare them, step by step where possible."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marsbench.cli import RunFailed, options
from marsbench.errors import ConfigError

if TYPE_CHECKING:
    from marsbench.arrival import ArrivalPlan
    from marsbench.config import ExperimentConfig
    from marsbench.core import Session
    from marsbench.engine.base import CoreListener, EngineConfig, EngineCore
    from marsbench.engine.cost import StepCost
    from marsbench.engine.parity import RunLog
    from marsbench.experiment.wiring import Setup
    from marsbench.system import Policies, System


def command(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN [RUN]]",
            help="Two run folders of the same cells instead; or one of live agents, against the simulator.",
        ),
    ] = None,
    engines: Annotated[str, typer.Option(help="Two engines.")] = "sim,vllm-core",
    workload: Annotated[
        str, typer.Option("--workload", "-w", help="Registered name or trace file.")
    ] = "swe-bench",
    sessions: Annotated[int, typer.Option("--sessions", "-n", help="Number of sessions.")] = 20,
    system: options.System = None,
    profile: Annotated[str | None, typer.Option(help="Model and GPU: name or YAML file.")] = None,
    load: Annotated[
        float | None, typer.Option(help="Arrival rate as share of stock vLLM's capacity.")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(help="Arrival rate, sessions per second (Poisson).", show_default="0.1"),
    ] = None,
    tool_cores: Annotated[int, typer.Option(help="Cores of the tool pool; 0 = unlimited.")] = 0,
    host_kv: Annotated[
        float, typer.Option("--host-kv", metavar="GIB", help="Host memory for KV per GPU.")
    ] = 0.0,
    tools: Annotated[
        str, typer.Option(help="recorded, modelled; live engines: process, docker.")
    ] = "modelled",
    tool_speed: Annotated[float, typer.Option(help="Speed of the tool pool's cores.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of sessions and arrivals.")] = 0,
    seeds: Annotated[
        int, typer.Option(help="Live engines: seeds played, from --seed on.", min=1)
    ] = 1,
    config: options.Config = None,
    figure: Annotated[
        Path | None, typer.Option(help="Live engines: write a figure of the agreement.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Most relative difference that passes: of mean session latencies with a live engine "
            "(0.25 unless given), of any metric of run folders (0.01).",
            min=0.0,
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Compare two engines step by step; exits with status 1 if they differ.

    With a live engine (sim,vllm): session by session, in totals and in the order of systems; status 1
    if the mean session latencies differ by more than --tolerance.
    """
    from marsbench.engine import engine_kind

    if runs and len(runs) == 1:
        from marsbench.cli import validate_agents

        validate_agents.compare(
            runs[0], tolerance=0.25 if tolerance is None else tolerance, as_json=as_json
        )
        return
    if runs:
        from marsbench.cli import validate_runs

        validate_runs.compare(
            runs, tolerance=0.01 if tolerance is None else tolerance, as_json=as_json
        )
        return
    names = tuple(name.strip() for name in engines.split(","))
    if len(names) != 2:
        raise ConfigError(f"--engines {engines}: expected two names, such as sim,vllm-core")
    if load is not None and rate is not None:
        raise ConfigError("--load and --rate: give one of them")
    left, right = names
    systems = options.names(system) or ["vllm"]
    given: dict[str, Any] = {
        "workload": [workload],
        **({"rate_per_s": [rate or 0.1]} if load is None else {"load": [load]}),
        "tool_cores": [tool_cores],
        "host_kv_gib": [host_kv],
        "tools": {"name": tools, "speed": tool_speed},
        **({} if profile is None else {"profile": [profile]}),
    }
    if not (engine_kind(left).has_steps and engine_kind(right).has_steps):
        from marsbench.cli import validate_live
        from marsbench.extras import require

        require("live", f"validate --engines {engines}")
        cells = {
            name: [
                _cell(given, workload, sessions, name, each, config or [])
                for each in range(seed, seed + seeds)
            ]
            for name in systems
        }
        validate_live.compare(cells, names, tolerance=tolerance, figure=figure, as_json=as_json)
        return
    given_here = {"--figure": figure is not None, "--tolerance": tolerance is not None}
    for option in [
        name for name, is_given in (given_here | {"--seeds": seeds > 1}).items() if is_given
    ]:
        raise ConfigError(f"{option}: is of runs on live engines, such as --engines sim,vllm")
    differences = [
        _by_steps(
            _cell(given, workload, sessions, name, seed, config or []), names, as_json=as_json
        )
        for name in systems
    ]
    if different := [text for text in differences if text is not None]:
        raise RunFailed(f"{left} and {right} differ: {different[0].splitlines()[0]}")


def _by_steps(cell: PlayedCell, names: tuple[str, ...], *, as_json: bool) -> str | None:
    """Print how two engines compare on a cell; the first difference of their steps, if any."""
    from marsbench.engine.parity import first_difference, summary

    left, right = names
    logs = [cell.play(left), cell.play(right)]
    difference = first_difference(logs[0], logs[1], (left, right))
    if difference is None and "sim" in names:
        # Only without a trace does the simulator jump over steps.
        jumping = cell.play("sim", traced=False)
        difference = first_difference(jumping, logs[0], ("sim, jumping", left))
    totals = [summary(log) for log in logs]
    if as_json:
        found = {
            "system": cell.system.name, "engines": names, "difference": difference,
            "totals": totals,
        }  # fmt: skip
        print(json.dumps(found, indent=1))
    else:
        _print(left, right, totals)
        print(
            f"{cell.system.name}: {len(logs[0].steps)} steps compared: {difference or 'all equal'}"
        )
    return difference


@dataclass(frozen=True)
class PlayedCell:
    """What the engines play."""

    setup: Setup
    system: System
    sessions: Sequence[Session]
    arrivals: ArrivalPlan
    seed: int

    def play(self, engine: str, *, traced: bool = True) -> RunLog:
        """What an engine does with the cell."""
        from marsbench.engine import engine_kind
        from marsbench.engine.kind import VirtualTime
        from marsbench.engine.parity import RunLog
        from marsbench.engine.virtual import VirtualEngine
        from marsbench.experiment.wiring import simulate

        log = RunLog()
        kind = engine_kind(engine)
        assert isinstance(kind, VirtualTime), "only engines with steps are compared by steps"
        core_class = kind.core_class()

        def watched(
            config: EngineConfig, cost: StepCost, policies: Policies, listener: CoreListener
        ) -> EngineCore:
            log.forward = listener
            core = core_class(config, cost, policies, log)
            core.trace = log if traced else None
            return core

        setup = dataclasses.replace(self.setup, engine=engine)
        outcome = simulate(
            setup, self.system, {}, self.sessions, self.arrivals,
            seed=self.seed, engine=VirtualEngine(watched),
        )  # fmt: skip
        log.stats = outcome.ran.stats
        return log


def _cell(
    given: dict[str, Any],
    workload: str,
    num_sessions: int,
    system: str,
    seed: int,
    flags: list[str],
) -> PlayedCell:
    from marsbench.arrival import arrival_rng, arrivals
    from marsbench.config import load_config
    from marsbench.experiment.wiring import Setup, system_named
    from marsbench.trace.source import open_workload

    experiment = load_config(flags=given, overrides=options.overrides(flags))
    source = open_workload(workload)
    sessions = source.sessions(num_sessions, seed)
    rng = arrival_rng(seed, source.name)
    plan = arrivals("poisson", sessions, rate_per_s=_rate_per_s(experiment), rng=rng)
    setup = Setup.of(
        experiment, experiment.profile[0], experiment.tool_cores[0], experiment.host_kv_gib[0]
    )
    return PlayedCell(setup, system_named(system), sessions, plan, seed)


def _rate_per_s(experiment: ExperimentConfig) -> float | None:
    """As given, or the given share of the capacity, which is measured or remembered as in a run."""
    from marsbench.cli.progress import make_reporter
    from marsbench.experiment.cells import points
    from marsbench.experiment.lab import Lab
    from marsbench.experiment.memo import Memo, default_folder
    from marsbench.experiment.pool import Pool

    reporter = make_reporter(quiet=False)
    with Pool(1) as pool:
        lab = Lab(experiment, Memo(default_folder(), reporter.note), pool, reporter)
        return lab.rate_per_s(next(points(experiment)))


def _print(left: str, right: str, totals: list[dict[str, float]]) -> None:
    width = max(len(name) for name in totals[0])
    print(f"{'':<{width}}  {left:>14}  {right:>14}  {'difference':>11}")
    for name, ours in totals[0].items():
        theirs = totals[1][name]
        gap = f"{(theirs - ours) / ours:+.3%}" if ours else ("0" if theirs == ours else "new")
        print(f"{name:<{width}}  {ours:>14,.6g}  {theirs:>14,.6g}  {gap:>11}")
