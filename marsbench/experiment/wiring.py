"""From names to a simulated cell: the one place where trace, policies, engine and tools meet."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache

from marsbench.arrival import ArrivalPlan
from marsbench.config import ExperimentConfig, ReplicaEvent, Value
from marsbench.core import PolicyContext, Session, ToolCall, Turn, to_s
from marsbench.engine import engine_kind
from marsbench.engine.base import EngineConfig
from marsbench.engine.cost import StepCost
from marsbench.engine.kind import Opening
from marsbench.engine.plan import CellOutcome, CellPlan, Engine, Identity, Progress
from marsbench.engine.profile import Profile, load_profile
from marsbench.errors import ConfigError, MarsbenchError
from marsbench.events import Kind, Status
from marsbench.experiment.blame import policy_error
from marsbench.experiment.fleets import check_fleet, fleet_policies
from marsbench.experiment.watched import WatchedParams
from marsbench.records import EventLog
from marsbench.registry import load, table, unknown
from marsbench.routing import router_paths
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
    host_kv_gib: float = 0.0
    replicas: int = 1
    replica_events: tuple[ReplicaEvent, ...] = ()

    @classmethod
    def of(
        cls,
        config: ExperimentConfig,
        profile: str,
        tool_cores: int,
        host_kv_gib: float = 0.0,
        replicas: int = 1,
    ) -> Setup:
        """Return the deployment of one profile, tool pool, host memory and number of replicas."""
        return cls(
            engine=config.engine.name,
            profile=profile,
            tool_cores=tool_cores,
            tools=config.tools.name,
            tool_speed=config.tools.speed,
            cpu_share=config.tools.cpu_share,
            shell_timeout_s=config.tools.shell_timeout_s,
            engine_flags=config.engine.params,
            host_kv_gib=host_kv_gib,
            replicas=replicas,
            replica_events=config.replica_events if replicas > 1 else (),
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one cell left behind when it ended."""

    log: EventLog
    engine: EngineConfig
    ran: CellOutcome


def simulate(
    setup: Setup,
    system: System,
    params: Mapping[str, Value],
    sessions: Sequence[Session],
    arrivals: ArrivalPlan,
    *,
    seed: int,
    engine: Engine | None = None,
    progress: Progress | None = None,
    policy_params: dict[str, float] | None = None,
    named: str = "",
    log: EventLog | None = None,
) -> Outcome:
    """Run sessions through a system on a deployment until all have ended.

    ``engine`` is the setup's, opened; None opens it for this cell alone. ``policy_params`` replaces
    the policy's part of ``params`` (to watch what it reads). ``named`` is what the system is found
    under, if that is not its name (a dotted path). ``log``: an empty log to fill, if somebody
    watches it.
    """
    log = EventLog() if log is None else log
    with opened(setup, engine) as running:
        try:
            plan = plan_cell(
                setup, system, params, sessions, arrivals,
                seed=seed, policy_params=policy_params, named=named,
            )  # fmt: skip
            ran = running.run(plan, log, progress)
        except MarsbenchError:
            raise
        except Exception as error:  # whatever it is: it goes on, and says where it comes from
            if (mistake := policy_error(error, system)) is not None:
                raise mistake from error
            error.add_note(f"while simulating system {system.name} on {setup.profile}, seed {seed}")
            raise
    return Outcome(log, plan.flags, ran)


def opened(setup: Setup, engine: Engine | None = None) -> AbstractContextManager[Engine]:
    """Return the engine given, left open afterwards; or the setup's own, for one use."""
    if engine is not None:
        return nullcontext(engine)
    return engine_kind(setup.engine).open(setup.engine_flags, Opening())


def plan_cell(
    setup: Setup,
    system: System,
    params: Mapping[str, Value],
    sessions: Sequence[Session],
    arrivals: ArrivalPlan,
    *,
    seed: int,
    policy_params: dict[str, float] | None = None,
    named: str = "",
) -> CellPlan:
    """Return all that an engine must know of a cell; arguments as for ``simulate``."""
    profile, cost = deployment(setup.profile)
    engine, found_params = plan_flags(setup, system, params)
    if engine.host_chunks and not engine_kind(setup.engine).has_steps:
        raise ConfigError(
            f"host memory for KV is modelled, and engine {setup.engine} is a server: start it with "
            "what it has (vllm serve --kv-offloading-size) and leave --host-kv out"
        )
    given = found_params if policy_params is None else policy_params
    check_fleet(system, setup.engine, setup.replicas, setup.host_kv_gib)
    context = _context(setup, given, engine, seed)
    fleet = None
    if setup.replicas == 1:
        policies = _policies(system, context, sessions)
    else:
        policies, fleet = fleet_policies(system, context, setup.replicas, setup.replica_events)
    return CellPlan(
        sessions=tuple(sessions),
        arrivals=arrivals,
        policies=policies,
        fleet=fleet,
        flags=engine,
        tools=_tools(setup),
        cost=cost,
        turn_cost=profile.turn_cost(),
        model=profile.model,
        tool_cores=setup.tool_cores,
        tool_speed=setup.tool_speed,
        assumptions=assumptions(setup),
        priority=system.priority,
        identity=_identity(setup, system, given, seed, named),
    )


def plan_flags(
    setup: Setup, system: System, params: Mapping[str, Value]
) -> tuple[EngineConfig, dict[str, float]]:
    """Return the engine flags that a system runs with on a deployment, and its policies'
    parameters.
    """
    refuse_engine(system, setup.engine)
    profile, _ = deployment(setup.profile)
    flags, policy_params = split_params(system, params)
    defaults = check_flags("engine", engine_kind(setup.engine).defaults)
    given = check_flags("engine.params", engine_flags(setup))
    chosen = {**defaults, **system.engine, **given, **flags}
    return profile.engine_config(setup.host_kv_gib, **chosen), policy_params


def check_start(setup: Setup, system: System, params: Mapping[str, Value]) -> None:
    """Raise EngineError if the engine would not start with the flags that a system has on a
    deployment, ConfigError if its tools cannot run beside it.
    """
    _tools(setup)
    flags, _ = plan_flags(setup, system, params)
    engine_kind(setup.engine).check(setup.engine_flags, flags)


def _identity(
    setup: Setup, system: System, params: Mapping[str, float], seed: int, named: str
) -> Identity | None:
    """How another process builds the same policies; none can build an oracle's."""
    if system.clairvoyant is not None:
        return None
    return Identity(
        system=table("SYSTEMS").get(named or system.name, named or system.name),
        profile=setup.profile,
        params=tuple(sorted(dict(params).items())),  # a copy: this is nobody's reading of them
        tool_cores=setup.tool_cores,
        seed=seed,
    )


def refuse_engine(system: System, engine: str) -> None:
    """Raise ConfigError for a system that means nothing on an engine."""
    if system.engines and engine not in system.engines:
        raise ConfigError(
            f"system {system.name!r} is made of flags that engine {engine} does not have: "
            f"run it with --engine {' or '.join(system.engines)}"
        )


def on_own_engine(setup: Setup, system: System) -> Setup:
    """Return the same deployment on an engine that the system means something on."""
    if not system.engines or setup.engine in system.engines:
        return setup
    return dataclasses.replace(setup, engine=system.engines[0])


def engine_flags(setup: Setup) -> Mapping[str, Value]:
    """Return ``engine.params`` without what only says where an engine is."""
    return engine_kind(setup.engine).flags(setup.engine_flags)


def in_virtual_time(setup: Setup) -> Setup:
    """Return the same deployment in ``sim``, with modelled tools in place of ones that really
    run.
    """
    return dataclasses.replace(
        setup,
        engine="sim",
        engine_flags=engine_flags(setup),
        tools="modelled" if setup.tools in TOOL_EXECUTORS else setup.tools,
    )


def for_engine(setup: Setup, engine: str, among: Sequence[str]) -> Setup:
    """Return the same deployment on one of several engines, with the parameters that concern it:
    what says where one engine's server is means nothing to the others.
    """
    given = shared = setup.engine_flags
    for name in among:
        shared = engine_kind(name).flags(shared)
    kind = engine_kind(engine)
    params = given if kind.flags(given) == shared else shared
    tools = setup.tools if kind.runs_real_tools else in_virtual_time(setup).tools
    return dataclasses.replace(setup, engine=engine, engine_flags=params, tools=tools)


def for_ideals(setup: Setup) -> Setup:
    """Return the deployment that ideal latencies are measured on."""
    ideal = engine_kind(setup.engine).ideal_engine
    return dataclasses.replace(in_virtual_time(setup), engine=ideal or setup.engine)


def _tools(setup: Setup) -> ToolModel | ToolExecutor:
    """Tools in virtual time, or for live engines also tools that really run."""
    if setup.tools not in TOOL_EXECUTORS:
        return make_tool_model(setup.tools, setup.tool_cores)
    if not engine_kind(setup.engine).runs_real_tools:
        raise ConfigError(
            f"tool model {setup.tools!r} really runs, so it needs a live engine (vllm, sglang, openai); "
            f"engine {setup.engine} has 'modelled' and 'recorded'"
        )
    return make_tool_executor(setup.tools, setup.tool_cores)


def try_out(
    setup: Setup,
    system: System | None = None,
    params: Mapping[str, Value] | None = None,
    *,
    engine: Engine | None = None,
) -> float:
    """Return the latency of one session of two short turns: whether a deployment and a system work
    at all.

    Raises ConfigError for a parameter that the system never reads.
    """
    tool = ToolCall("ls", "shell_read", 0.1)
    session = Session("try-out", (Turn(1000, 50, tools=(tool,)), Turn(200, 50)))
    tried = system or stock_system()
    given = WatchedParams(split_params(tried, params or {})[1])
    flags = {name: value for name, value in (params or {}).items() if name in ENGINE_FLAGS}
    plan = ArrivalPlan(times_ps=(0,))
    outcome = simulate(
        setup, tried, flags, [session], plan, seed=0, engine=engine, policy_params=given
    )
    unread = sorted(given.keys() - given.read)
    if unread:
        raise unknown(f"parameter of system {tried.name!r}", unread[0], given.read)
    latency_s = latencies_s(outcome.log, [session])[0]
    if latency_s is None:
        raise ConfigError(f"profile {setup.profile}: a turn of 1,250 tokens does not fit")
    return latency_s


def _context(
    setup: Setup, params: dict[str, float], engine: EngineConfig, seed: int
) -> PolicyContext:
    """What the policies of one engine know of their deployment."""
    profile, _ = deployment(setup.profile)
    return dataclasses.replace(
        profile.policy_context(setup.tool_cores, seed),
        num_blocks=engine.num_blocks,
        block_size=engine.block_size,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        max_num_seqs=engine.max_num_seqs,
        host_blocks=engine.host_chunks * engine.blocks_per_chunk,
        params=params,
    )


def _policies(system: System, context: PolicyContext, sessions: Sequence[Session]) -> Policies:
    if system.clairvoyant is not None:
        return system.clairvoyant(context, sessions)
    return system.build(context)


@cache
def deployment(profile: str) -> tuple[Profile, StepCost]:
    """Return a profile and its step cost, read once: they are asked for thousands of times."""
    loaded = load_profile(profile)
    return loaded, loaded.step_cost()


def assumptions(setup: Setup) -> ToolAssumptions:
    """Return what is assumed about tool calls on a deployment."""
    shares = {**CPU_SHARE, **setup.cpu_share}
    return ToolAssumptions(cpu_share=shares, shell_timeout_s=setup.shell_timeout_s)


def stock_system() -> System:
    """Return stock vLLM, the yardstick of capacity and ideal latency, registered or not."""
    return System(name=STOCK, summary="stock vLLM", build=stock)


def split_params(
    system: System, params: Mapping[str, Value]
) -> tuple[dict[str, Flag], dict[str, float]]:
    """Return the parameters that are engine flags, and the parameters of the policies."""
    flags = {name: value for name, value in params.items() if name in ENGINE_FLAGS}
    rest = {name: value for name, value in params.items() if name not in ENGINE_FLAGS}
    where = f"params.{system.name}"
    return check_flags(where, flags), numbers(where, rest)


def numbers(where: str, params: Mapping[str, Value]) -> dict[str, float]:
    """Return parameters of policies and arrival processes, which are all numbers; ConfigError for
    any other.
    """
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
    """Return engine flags with the types EngineConfig wants; ConfigError names what is wrong."""
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


def latencies_s(log: EventLog, sessions: Sequence[Session]) -> list[float | None]:
    """Return session latency from arrival to end, in order of ``sessions``; None if it failed."""
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
    """Return a registered system or one at a dotted path; behind ``@`` the router to use instead of
    its own.
    """
    plain, at, router = name.partition("@")
    system = load("SYSTEMS", plain)
    if not isinstance(system, System):
        raise ConfigError(f"system {name!r}: {name} is not a marsbench.system.System")
    if not at:
        return system
    if router not in router_paths() and "." not in router:
        raise unknown("router", router, router_paths())
    return dataclasses.replace(system, router=router, fleet=None)
