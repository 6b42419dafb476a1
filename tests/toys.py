"""A server kind and a driver as small as they can be: what SGLang or a live harness must bring."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Self

from marsbench.engine.kind import Opening
from marsbench.engine.live.kinds.base import Launch
from marsbench.engine.live.metrics import MetricNames
from marsbench.engine.live.request import CompletionRequest
from marsbench.engine.live.server import ServerCommand
from marsbench.engine.plan import CellOutcome, CellPlan, Engine, Progress
from marsbench.records import EventLog


class ToyServer:
    """A ``ServerKind``: the fake server, whose package is this project."""

    name = "toy"
    package = "marsbench"
    metrics: MetricNames | None = None
    hosts_policies = False

    def fields(self, request: CompletionRequest) -> dict[str, Any]:
        return {"ignore_eos": True, "return_token_ids": True}

    def command(self, launch: Launch) -> ServerCommand:
        argv = (str(launch.python), "-m", "marsbench.engine.live.fake_server")
        more = ("--port", str(launch.port), "--model", "toy", "--ttft-ms", "1")
        return ServerCommand((*argv, *more), f"http://127.0.0.1:{launch.port}", "toy")

    def check_log(self, launch: Launch, log: str) -> None:
        """The fake server is always what was asked for."""


class ToyDriver:
    """A ``drivers.base.Driver``: sessions act as recorded, but come more slowly."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self._slower = int(params.get("slower", 1))

    def around(self, engine: Engine, opening: Opening) -> AbstractContextManager[Engine]:
        return nullcontext(Slower(engine, self._slower))


class Slower:
    """An engine that stretches the arrivals of a plan."""

    def __init__(self, engine: Engine, factor: int) -> None:
        self._engine = engine
        self._factor = factor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def run(self, plan: CellPlan, log: EventLog, progress: Progress | None = None) -> CellOutcome:
        times = tuple(self._factor * at_ps for at_ps in plan.arrivals.times_ps or ())
        slower = replace(plan, arrivals=replace(plan.arrivals, times_ps=times))
        return self._engine.run(slower, log, progress)

    def described(self) -> dict[str, Any]:
        return {"driver": "toy"}
