"""From names to a simulated cell: the one place where trace, policies, engine and tools meet."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from marsbench.arrival import ArrivalPlan
from marsbench.config import ExperimentConfig, Value
from marsbench.core import Session, ToolCall, Turn, to_s
from marsbench.engine.base import CoreStats, EngineConfig
from marsbench.engine.cost import StepCost
from marsbench.engine.profile import Profile, load_profile
from marsbench.errors import ConfigError, EngineError
from marsbench.events import Kind, Status
from marsbench.records import EventLog
from marsbench.registry import load, table, unknown
from marsbench.system import Policies, System, stock
from marsbench.tools import (
    TOOL_EXECUTORS,
    ToolAssumptions,
    ToolExecutor,
    ToolModel,
    make_tool_executor,
    make_tool_model,
)
from marsbench.tools.base import CPU_SHARE

Progress = Callable[[int, int], None]
"""Called with (finished sessions, now_ps)."""

RunCell = Callable[..., CoreStats]
"""The signature of ``marsbench.engine.driver.run_cell``."""

Flag = int | str | bool

STOCK = "vllm"
"""The system that capacity and ideal latency are measured with."""


@dataclass(frozen=True, slots=True)
class Setup:
    """A deployment: all of a cell that is not its system, its sessions or their arrivals."""

    engine: str
    profile: str
    tool_cores: int
    tools: str
    tool_speed: float = 1.0
    cpu_share: Mapping[str, float] = field(default_factory=dict)
    shell_timeout_s: float | None = None
    engine_flags: Mapping[str, Value] = field(default_factory=dict)

    @classmethod
    def of(cls, config: ExperimentConfig, profile: str, tool_cores: int) -> Setup:
        """The deployment of one profile and tool pool of an experiment."""
        return cls(
            engine=config.engine.name,
            profile=profile,
            tool_cores=tool_cores,
            tools=config.tools.name,
            tool_speed=config.tools.speed,
            cpu_share=config.tools.cpu_share,
            shell_timeout_s=config.tools.shell_timeout_s,
            engine_flags=config.engine.params,
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one simulation gave."""

    log: EventLog
    stats: CoreStats
    engine: EngineConfig


def simulate(
    setup: Setup,
    system: System,
    params: Mapping[str, Value],
    sessions: Sequence[Session],
    arrivals: ArrivalPlan,
    *,
    seed: int,
    progress: Progress | None = None,
    run_cell: RunCell | None = None,
    policy_params: dict[str, float] | None = None,
    named: str = "",
    log: EventLog | None = None,
) -> Outcome:
    """Run sessions through a system on a deployment until all have ended.

    ``policy_params`` replaces the policy's part of ``params`` (to watch what it reads). ``named`` is
    what the system is found under, if that is not its name (a dotted path). ``log``: an empty log
    to fill, if somebody watches it.
    """
    run = run_cell or default_run_cell()
    profile, cost = deployment(setup.profile)
    flags, found_params = split_params(system, params)
    engine = profile.engine_config(
        **{**system.engine, **check_flags("engine.params", engine_flags(setup)), **flags}
    )
    given = found_params if policy_params is None else policy_params
    policies = _policies(setup, system, given, engine, sessions, seed)
    core = engine_class(setup.engine)
    log = EventLog() if log is None else log
    try:
        stats = run(
            sessions=sessions,
            arrivals=arrivals,
            core_factory=lambda listener: core(engine, cost, policies, listener),
            policies=policies,
            tools=_tools(setup),
            tool_cores=setup.tool_cores,
            tool_speed=setup.tool_speed,
            assumptions=assumptions(setup),
            priority=system.priority,
            log=log,
            progress=progress,
            **_inside(setup, system, given, seed, named),
            **_turn_cost(setup, profile),
        )
    except Exception as error:  # whatever it is: it goes on, and says where it comes from
        error.add_note(f"while simulating system {system.name} on {setup.profile}, seed {seed}")
        raise
    return Outcome(log, stats, engine)


def _inside(
    setup: Setup, system: System, params: Mapping[str, float], seed: int, named: str
) -> dict[str, Any]:
    """For live engines: what a scheduler inside the server has to know to run the same policies."""
    if not is_live(setup.engine) or system.clairvoyant is not None:
        return {}
    from marsbench.engine.live.inside import Inside

    return {
        "inside": Inside(
            system=table("SYSTEMS").get(named or system.name, named or system.name),
            profile=setup.profile,
            params=tuple(sorted(params.items())),
            tool_cores=setup.tool_cores,
            seed=seed,
        )
    }


def _turn_cost(setup: Setup, profile: Profile) -> dict[str, Any]:
    """In virtual time, what a turn takes beside its steps; a server takes what it takes."""
    cost = None if is_live(setup.engine) else profile.turn_cost()
    return {} if cost is None else {"turn_cost": cost}


def is_live(engine: str) -> bool:
    """Whether an engine is a real server on the wall clock."""
    from marsbench.engine import LIVE_ENGINES

    return engine in LIVE_ENGINES


def engine_flags(setup: Setup) -> Mapping[str, Value]:
    """``engine.params`` without what only says where a live engine's server is."""
    if not is_live(setup.engine):
        return setup.engine_flags
    from marsbench.engine.live.options import split_options

    return split_options(setup.engine_flags)[1]


def in_virtual_time(setup: Setup) -> Setup:
    """The same deployment in ``sim``, with modelled tools in place of ones that really run."""
    return dataclasses.replace(
        setup,
        engine="sim",
        engine_flags=engine_flags(setup),
        tools="modelled" if setup.tools in TOOL_EXECUTORS else setup.tools,
    )


def _tools(setup: Setup) -> ToolModel | ToolExecutor:
    """Tools in virtual time, or for live engines also tools that really run."""
    if setup.tools not in TOOL_EXECUTORS:
        return make_tool_model(setup.tools, setup.tool_cores)
    if not is_live(setup.engine):
        raise ConfigError(
            f"tool model {setup.tools!r} really runs, so it needs a live engine (vllm, openai); "
            f"engine {setup.engine} has 'modelled' and 'recorded'"
        )
    return make_tool_executor(setup.tools, setup.tool_cores)


def try_out(
    setup: Setup,
    system: System | None = None,
    params: Mapping[str, Value] | None = None,
    *,
    run_cell: RunCell | None = None,
) -> float:
    """Latency of one session of two short turns: whether a deployment and a system work at all.

    Raises ConfigError for a parameter that the system never reads.
    """
    tool = ToolCall("ls", "shell_read", 0.1)
    session = Session("try-out", (Turn(1000, 50, tools=(tool,)), Turn(200, 50)))
    tried = system or stock_system()
    given = WatchedParams(split_params(tried, params or {})[1])
    flags = {name: value for name, value in (params or {}).items() if name in ENGINE_FLAGS}
    plan = ArrivalPlan(times_ps=(0,))
    outcome = simulate(
        setup, tried, flags, [session], plan, seed=0, run_cell=run_cell, policy_params=given
    )
    unread = sorted(given.keys() - given.read)
    if unread:
        raise unknown(f"parameter of system {tried.name!r}", unread[0], given.read)
    latency_s = latencies_s(outcome.log, [session])[0]
    if latency_s is None:
        raise ConfigError(f"profile {setup.profile}: a turn of 1,250 tokens does not fit")
    return latency_s


class WatchedParams(dict[str, float]):
    """Policy parameters that note which names are asked for."""

    def __init__(self, params: Mapping[str, float]) -> None:
        super().__init__(params)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> float:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As of any dict, and noted."""
        self.read.add(name)
        return super().get(name, default)

    def items(self) -> Any:
        """Whoever goes through all of them checks the names itself."""
        self.read.update(self)
        return super().items()


def _policies(
    setup: Setup,
    system: System,
    params: dict[str, float],
    engine: EngineConfig,
    sessions: Sequence[Session],
    seed: int,
) -> Policies:
    profile, _ = deployment(setup.profile)
    context = dataclasses.replace(
        profile.policy_context(setup.tool_cores, seed),
        num_blocks=engine.num_blocks,
        block_size=engine.block_size,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        max_num_seqs=engine.max_num_seqs,
        params=params,
    )
    if system.clairvoyant is not None:
        return system.clairvoyant(context, sessions)
    return system.build(context)


@cache
def deployment(profile: str) -> tuple[Profile, StepCost]:
    """A profile and its step cost, read once: they are asked for thousands of times."""
    loaded = load_profile(profile)
    return loaded, loaded.step_cost()


def assumptions(setup: Setup) -> ToolAssumptions:
    """What is assumed about tool calls on a deployment."""
    shares = {**CPU_SHARE, **setup.cpu_share}
    return ToolAssumptions(cpu_share=shares, shell_timeout_s=setup.shell_timeout_s)


def stock_system() -> System:
    """Stock vLLM: the yardstick of capacity and ideal latency, registered or not."""
    return System(name=STOCK, summary="stock vLLM", build=stock)


def split_params(
    system: System, params: Mapping[str, Value]
) -> tuple[dict[str, Flag], dict[str, float]]:
    """Parameters that are engine flags, and parameters of the policies."""
    flags = {name: value for name, value in params.items() if name in ENGINE_FLAGS}
    rest = {name: value for name, value in params.items() if name not in ENGINE_FLAGS}
    where = f"params.{system.name}"
    return check_flags(where, flags), numbers(where, rest)


def numbers(where: str, params: Mapping[str, Value]) -> dict[str, float]:
    """Parameters of policies and arrival processes, which are all numbers."""
    found: dict[str, float] = {}
    for name, value in params.items():
        if isinstance(value, str):
            raise ConfigError(f"{where}.{name}: expected a number, got {value!r}")
        found[name] = float(value)
    return found


ENGINE_FLAGS = {f.name: f.type for f in dataclasses.fields(EngineConfig)}
"""Field name -> annotation as text (int, bool or str)."""

_TYPES = {"int": int, "bool": bool, "str": str}


def check_flags(where: str, flags: Mapping[str, Value]) -> dict[str, Flag]:
    """Engine flags with the types EngineConfig wants; ConfigError names what is wrong."""
    checked: dict[str, Flag] = {}
    for name, value in flags.items():
        if name not in ENGINE_FLAGS:
            raise ConfigError(f"{where}: {unknown('engine flag', name, ENGINE_FLAGS)}")
        wanted = _TYPES[str(ENGINE_FLAGS[name])]
        whole = isinstance(value, float) and value.is_integer()
        fixed = int(value) if wanted is int and whole else value
        if wanted is bool and isinstance(value, int | float) and value in (0, 1):
            fixed = bool(value)
        if type(fixed) is not wanted:
            raise ConfigError(f"{where}.{name}: expected {wanted.__name__}, got {value!r}")
        if wanted is int and int(fixed) < (name == "num_blocks" or name.startswith("max_")):
            raise ConfigError(f"{where}.{name}: must be positive, got {value!r}")
        assert not isinstance(fixed, float)
        checked[name] = fixed
    return checked


def engine_class(name: str) -> Any:
    """The core class of an engine; EngineError if its package is not installed."""
    from marsbench.engine import ENGINES, LIVE_ENGINES

    known = {**ENGINES, **LIVE_ENGINES}
    if name not in known:
        raise unknown("engine", name, known)
    module, _, attribute = known[name].rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise EngineError(
            f"engine {name!r} cannot be loaded: {error}; see `marsbench doctor`"
        ) from error


def default_run_cell() -> RunCell:
    """The driver of virtual-time engines."""
    from marsbench.engine.driver import run_cell

    return run_cell


def latencies_s(log: EventLog, sessions: Sequence[Session]) -> list[float | None]:
    """Session latency from arrival to end, in order of ``sessions``; None if it failed."""
    rows = log.to_numpy()
    index = {session_id: k for k, session_id in enumerate(log.session_ids)}
    arrived = {int(r[2]): int(r[0]) for r in rows[rows[:, 1] == Kind.SESSION_ARRIVE]}
    ends = rows[(rows[:, 1] == Kind.SESSION_END) & (rows[:, 5] == Status.OK)]
    ended = {int(r[2]): int(r[0]) for r in ends}
    found: list[float | None] = []
    for session in sessions:
        k = index[session.session_id]
        found.append(to_s(ended[k] - arrived[k]) if k in ended else None)
    return found


def system_named(name: str) -> System:
    """A registered system or one at a dotted path."""
    system = load("SYSTEMS", name)
    if not isinstance(system, System):
        raise ConfigError(f"system {name!r}: {name} is not a marsbench.system.System")
    return system
