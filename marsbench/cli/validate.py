"""``marsbench validate``: play one cell on two engines and compare them, step by step where possible."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marsbench.cli import RunFailed
from marsbench.errors import ConfigError

if TYPE_CHECKING:
    from marsbench.arrival import ArrivalPlan
    from marsbench.core import Session
    from marsbench.engine.base import CoreListener, CoreStats
    from marsbench.engine.parity import RunLog
    from marsbench.experiment.wiring import Setup
    from marsbench.system import System


def command(
    engines: Annotated[str, typer.Option(help="Two engines.")] = "sim,vllm-core",
    workload: Annotated[
        str, typer.Option("--workload", "-w", help="Registered name or trace file.")
    ] = "swe-bench",
    sessions: Annotated[int, typer.Option("--sessions", "-n", help="Number of sessions.")] = 20,
    system: Annotated[
        str, typer.Option("--system", "-s", help="Name or dotted path; several: a,b.")
    ] = "vllm",
    profile: Annotated[str | None, typer.Option(help="Model and GPU: name or YAML file.")] = None,
    rate: Annotated[float, typer.Option(help="Sessions per second (Poisson).")] = 0.1,
    tool_cores: Annotated[int, typer.Option(help="Cores of the tool pool; 0 = unlimited.")] = 0,
    tools: Annotated[
        str, typer.Option(help="recorded, modelled; live engines: process, docker.")
    ] = "modelled",
    tool_speed: Annotated[float, typer.Option(help="Speed of the tool pool's cores.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of sessions and arrivals.")] = 0,
    seeds: Annotated[
        int, typer.Option(help="Live engines: seeds played, from --seed on.", min=1)
    ] = 1,
    config: Annotated[
        list[str] | None,
        typer.Option("--config", "-c", metavar="FLAG=VALUE", help="Engine flags: num_blocks=2000."),
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Live engines: write a figure of the agreement.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare two engines step by step; exits with status 1 if they differ.

    With a live engine (sim,vllm): session by session, in totals and in the order of systems.
    """
    from marsbench.engine.parity import first_difference, summary
    from marsbench.experiment.wiring import is_live

    names = tuple(name.strip() for name in engines.split(","))
    if len(names) != 2:
        raise ConfigError(f"--engines {engines}: expected two names, such as sim,vllm-core")
    left, right = names
    given: dict[str, Any] = {
        "workload": [workload],
        "rate_per_s": [rate],
        "tool_cores": [tool_cores],
        "tools": {"name": tools, "speed": tool_speed},
        **({} if profile is None else {"profile": [profile]}),
    }
    if is_live(left) or is_live(right):
        from marsbench.cli import validate_live

        cells = {
            name: [
                _cell(given, workload, sessions, name, each, config or [])
                for each in range(seed, seed + seeds)
            ]
            for name in system.split(",")
        }
        validate_live.compare(cells, names, figure=figure, as_json=as_json)
        return
    if figure is not None or seeds > 1:
        option = "--figure" if figure is not None else "--seeds"
        raise ConfigError(f"{option}: is of runs on live engines, such as --engines sim,vllm")
    cell = _cell(given, workload, sessions, system, seed, config or [])
    logs = [cell.play(left), cell.play(right)]
    difference = first_difference(logs[0], logs[1], (left, right))
    if difference is None and "sim" in names:
        # Only without a trace does the simulator jump over steps.
        jumping = cell.play("sim", traced=False)
        difference = first_difference(jumping, logs[0], ("sim, jumping", left))
    totals = [summary(log) for log in logs]
    if as_json:
        found = {"engines": names, "difference": difference, "totals": totals}
        print(json.dumps(found, indent=1))
    else:
        _print(left, right, totals)
        print(f"{len(logs[0].steps)} steps compared: {difference or 'all equal'}")
    if difference is not None:
        raise RunFailed(f"{left} and {right} differ: {difference.splitlines()[0]}")


@dataclass(frozen=True)
class Cell:
    """What the engines play."""

    setup: Setup
    system: System
    sessions: Sequence[Session]
    arrivals: ArrivalPlan
    seed: int

    def play(self, engine: str, *, traced: bool = True) -> RunLog:
        """What an engine does with the cell."""
        from marsbench.engine.parity import RunLog
        from marsbench.experiment.wiring import default_run_cell, simulate

        log = RunLog()

        def run(*, core_factory: Callable[[CoreListener], Any], **cell: Any) -> CoreStats:
            def watched(listener: CoreListener) -> Any:
                log.forward = listener
                core = core_factory(log)
                core.trace = log if traced else None
                return core

            return default_run_cell()(core_factory=watched, **cell)

        setup = dataclasses.replace(self.setup, engine=engine)
        outcome = simulate(
            setup, self.system, {}, self.sessions, self.arrivals, seed=self.seed, run_cell=run
        )
        log.stats = outcome.stats
        return log


def _cell(
    given: dict[str, Any],
    workload: str,
    num_sessions: int,
    system: str,
    seed: int,
    flags: list[str],
) -> Cell:
    from marsbench.arrival import arrival_rng, arrivals
    from marsbench.config import load_config
    from marsbench.experiment.wiring import Setup, system_named
    from marsbench.trace.source import open_workload

    experiment = load_config(flags=given, overrides=[f"engine.params.{flag}" for flag in flags])
    source = open_workload(workload)
    sessions = source.sessions(num_sessions, seed)
    rng = arrival_rng(seed, source.name)
    plan = arrivals("poisson", sessions, rate_per_s=experiment.rate_per_s[0], rng=rng)
    setup = Setup.of(experiment, experiment.profile[0], experiment.tool_cores[0])
    return Cell(setup, system_named(system), sessions, plan, seed)


def _print(left: str, right: str, totals: list[dict[str, float]]) -> None:
    width = max(len(name) for name in totals[0])
    print(f"{'':<{width}}  {left:>14}  {right:>14}  {'difference':>11}")
    for name, ours in totals[0].items():
        theirs = totals[1][name]
        gap = f"{(theirs - ours) / ours:+.3%}" if ours else ("0" if theirs == ours else "new")
        print(f"{name:<{width}}  {ours:>14,.6g}  {theirs:>14,.6g}  {gap:>11}")
