"""What an experiment is: the user's YAML files, flags and key=value pairs as one checked object."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from marsbench.errors import ConfigError
from marsbench.strict_yaml import load_yaml

DEFAULT_LOAD = 0.9
PARTS = ("engine", "tools", "arrival", "driver")
"""Blocks that a bare name stands for."""
TUNED = "-tuned"
"""``NAME-tuned`` is system NAME with parameters found on the tuning half of the workload."""
OWN_PACE = ("closed", "trace")
"""Arrival processes that need no rate: a closed loop has none, a trace has recorded times."""

Value = bool | int | float | str
"""What a parameter of an engine, a tool model or an arrival process can be."""


def _as_list(value: Any) -> Any:
    """One value stands for a list of one, so ``load: 0.9`` and ``load: [0.9]`` are the same."""
    return value if isinstance(value, list | tuple) else [value]


def _as_block(value: Any) -> Any:
    """A bare name stands for a block without parameters."""
    return {"name": value} if isinstance(value, str) else value


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Names = Annotated[tuple[str, ...], BeforeValidator(_as_list), Field(min_length=1)]
Numbers = Annotated[tuple[Positive, ...], BeforeValidator(_as_list)]
Cores = Annotated[
    tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_as_list), Field(min_length=1)
]

Gibibytes = Annotated[
    tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...],
    BeforeValidator(_as_list),
    Field(min_length=1),
]


Counts = Annotated[
    tuple[Annotated[int, Field(ge=1, le=4096)], ...], BeforeValidator(_as_list), Field(min_length=1)
]


class _Block(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Part(_Block):
    """A part chosen by name, with its parameters."""

    name: str
    params: dict[str, Value] = {}


class EnginePart(Part):
    """The engine and overrides of its flags (fields of ``EngineConfig``) for every system."""

    name: str = "sim"


class ArrivalPart(Part):
    """The arrival process."""

    name: str = "poisson"


class DriverPart(Part):
    """What makes sessions act, with its parameters."""

    name: str = "replay"

    @model_serializer(mode="wrap")
    def _bare_name(self, full: SerializerFunctionWrapHandler) -> Any:
        """Written as it is usually given: without parameters, the name alone."""
        return full(self) if self.params else self.name


class ToolsPart(_Block):
    """The tool model, and what is assumed about tool calls where the trace does not say."""

    name: str = "modelled"
    speed: Positive = 1.0
    """How much faster a core of the tool pool is than the one the trace was recorded on."""
    cpu_share: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}
    """Tool class -> assumed share of CPU work in its wall time; overrides the model's own."""
    shell_timeout_s: Positive | None = 120.0
    """Wall time after which the harness kills a shell command; null = never."""


class ReplicaEvent(_Block):
    """A replica dies, or some are added, while each cell with several replicas runs."""

    at_s: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    dies: Annotated[int, Field(ge=0)] | None = None
    """Number of the replica, from 0; added ones are numbered on."""
    added: Annotated[int, Field(ge=0, le=4096)] = 0


class CapacitySearch(_Block):
    """How the unit of ``load`` is measured: see ``marsbench.experiment.capacity``."""

    sessions: Annotated[int, Field(ge=8)] = 96
    seed: Annotated[int, Field(ge=0)] = 0


class TuningSearch(_Block):
    """How ``NAME-tuned`` finds its parameters: see ``marsbench.experiment.tuning``."""

    sessions: Annotated[int, Field(ge=1)] = 96
    load: Positive = 0.9
    seed: Annotated[int, Field(ge=0)] = 0


class UnmeasuredPart(_Block):
    """Parts of the arrival period whose sessions are simulated but not measured."""

    warmup_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    cooldown_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class SustainedSearch(_Block):
    """What ``marsbench capacity`` looks for: see ``marsbench.experiment.sustained``."""

    slo: str
    """The objective in words, such as ``p95 slowdown <= 3``."""
    closed_loop: bool = False
    """Look for a number of agents that are always there instead of an arrival rate."""
    precision: Annotated[float, Field(ge=0.001, le=0.5)] = 0.03
    """How far neighbouring rates lie apart, as a share."""
    least: Positive | None = None
    most: Positive | None = None
    """The bracket, in sessions per hour or in agents; null: far below and far above load 1.0."""


class ExperimentConfig(_Block):
    """One experiment. Lists span a grid; every combination is a cell."""

    workload: Names = ("swe-bench",)
    """Registered names or paths of traces."""
    system: Names = ("vllm",)
    engine: Annotated[EnginePart, BeforeValidator(_as_block)] = EnginePart()
    profile: Names = ("h100-nvl/qwen3-coder-30b-a3b",)
    load: Numbers = ()
    """Arrival rates as shares of the measured capacity."""
    rate_per_s: Numbers = ()
    """Arrival rates in sessions per second. Without load and rate_per_s: DEFAULT_LOAD,
    or the arrival process's own pace if it has one."""
    sessions: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    """Sessions per cell."""
    seeds: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Number of repetitions with other sessions and arrivals."""
    first_seed: Annotated[int, Field(ge=0)] = 0
    split: Literal["all", "tuning", "reporting"] = "all"
    """Which sessions of each workload are replayed. Where it is not given and a ``-tuned`` system is
    in the grid: reporting, since parameters are tuned on the other half."""
    tool_cores: Cores = (8,)
    """Cores of the tool pool; 0 = unlimited."""
    host_kv_gib: Gibibytes = (0.0,)
    """Host memory for KV per GPU, GiB; 0 = none."""
    replicas: Counts = (1,)
    """Engines behind one front door, with one pool of tool cores."""
    replica_events: tuple[ReplicaEvent, ...] = ()
    """What happens to replicas while a cell with several of them runs."""
    tools: Annotated[ToolsPart, BeforeValidator(_as_block)] = ToolsPart()
    arrival: Annotated[ArrivalPart, BeforeValidator(_as_block)] = ArrivalPart()
    params: dict[str, dict[str, Value]] = {}
    """System name -> overrides of its parameters."""
    cut: UnmeasuredPart = UnmeasuredPart()
    driver: Annotated[DriverPart, BeforeValidator(_as_block)] = DriverPart()
    """What makes sessions act: the replay of a trace, or live agents."""
    capacity: CapacitySearch = CapacitySearch()
    tuning: TuningSearch = TuningSearch()
    sustain: SustainedSearch | None = None
    """For ``marsbench capacity``, which finds the rates itself."""

    @model_validator(mode="before")
    @classmethod
    def _default_load(cls, data: Any) -> Any:
        if isinstance(data, dict):
            data = {**_driver_defaults(data), **data}
        if not isinstance(data, dict) or data.get("load") or data.get("rate_per_s"):
            return data
        arrival = data.get("arrival")
        name = arrival.get("name") if isinstance(arrival, dict) else arrival
        return data if name in OWN_PACE else {**data, "load": [DEFAULT_LOAD], "rate_per_s": []}

    @model_validator(mode="before")
    @classmethod
    def _default_split(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("split") is not None:
            return data
        systems = _as_list(data.get("system", ()))
        tuned = any(isinstance(name, str) and name.endswith(TUNED) for name in systems)
        return {**data, "split": "reporting" if tuned else "all"}

    @model_validator(mode="after")
    def _no_repeats(self) -> ExperimentConfig:
        for key in (
            "workload",
            "system",
            "profile",
            "load",
            "rate_per_s",
            "tool_cores",
            "host_kv_gib",
            "replicas",
        ):
            values = getattr(self, key)
            twice = {value for value in values if values.count(value) > 1}
            if twice:
                raise ValueError(f"{key}: {min(twice)!r} is given twice; name it once")
        self._check_replica_events()
        for name in self.params:
            if name not in self.system:
                raise ValueError(f"params.{name}: no such system in this experiment; add it")
        return self

    def _check_replica_events(self) -> None:
        """Replicas that die exist and live, and one is always left."""
        if self.replica_events and max(self.replicas) == 1:
            raise ValueError("replica_events: no cell has several replicas; give --replicas")
        for number in self.replicas:
            live, made = set(range(number)), number
            for event in sorted(self.replica_events, key=lambda e: e.at_s) if number > 1 else ():
                live |= set(range(made, made + event.added))
                made += event.added
                if event.dies is not None and event.dies not in live:
                    raise ValueError(
                        f"replica_events: at {event.at_s:g} s replica {event.dies} dies, but of "
                        f"{number} there are {sorted(live)} then"
                    )
                live.discard(-1 if event.dies is None else event.dies)
                if not live:
                    raise ValueError(
                        f"replica_events: at {event.at_s:g} s the last of {number} replicas dies; "
                        "add one before"
                    )


def _driver_defaults(data: Mapping[str, Any]) -> dict[str, Any]:
    """What is left unsaid with live agents: a real server of the small model, all sessions at once
    (unless a pace is given), the whole workload, and this machine's cores for their tools.
    """
    driver = data.get("driver")
    if (driver.get("name") if isinstance(driver, Mapping) else driver) != "openhands":
        return {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    sessions = data.get("sessions", 8)
    paced = data.get("load") or data.get("rate_per_s")
    return {
        "engine": {"name": "vllm"},
        "profile": ["tiny-cpu-agents"],
        "workload": ["tasks"],
        "sessions": sessions,
        "split": "all",
        "tool_cores": [cores],
        "arrival": {"name": "poisson"} if paced else {"name": "closed", "params": {"n": sessions}},
    }


def load_config(
    files: Sequence[Path] = (),
    *,
    flags: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> ExperimentConfig:
    """Layers from weakest to strongest: the command's own ``defaults``, files from left to right,
    flags, key=value.

    Blocks (mappings) merge key by key; anything else replaces what was there. Raises ConfigError
    naming the file or option, the key, and what would be right.
    """
    data: dict[str, Any] = {}
    origin: dict[str, str] = {}
    layers = [("defaults", dict(defaults or {})), *((str(path), _read(path)) for path in files)]
    layers.append(("command line", dict(flags or {})))
    layers += [(f"-c {text}", _assignment(text)) for text in overrides]
    for where, layer in layers:
        data = _merge(data, layer)
        origin.update(dict.fromkeys(layer, where))
    try:
        return ExperimentConfig.model_validate(data)
    except ValidationError as error:
        raise _explain(error, origin) from error


def dump_config(config: ExperimentConfig) -> str:
    """The resolved experiment as YAML; loading it gives an equal config."""
    return yaml.safe_dump(_dumped(config), sort_keys=False, allow_unicode=True)


def config_digest(config: ExperimentConfig) -> str:
    """Twelve hex digits that name this experiment."""
    text = json.dumps(_dumped(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _dumped(config: ExperimentConfig) -> dict[str, Any]:
    """Every key with its value. Host memory, replicas and a search are keys only where there are some,
    so that experiments without are named as ever.
    """
    data = config.model_dump(mode="json")
    if config.sustain is None:
        del data["sustain"]
    if config.host_kv_gib == (0.0,):
        del data["host_kv_gib"]
    if config.replicas == (1,):
        del data["replicas"]
    if not config.replica_events:
        del data["replica_events"]
    return data


def _read(path: Path) -> dict[str, Any]:
    try:
        data = load_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such experiment file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a YAML experiment: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise ConfigError(f"{path}{line}: not valid YAML: {problem}") from error
    if not isinstance(data, dict):
        found = "nothing" if data is None else type(data).__name__
        raise ConfigError(f"{path}: an experiment is a mapping of keys, found {found}")
    return {str(key): value for key, value in data.items()}


def _assignment(text: str) -> dict[str, Any]:
    """``a.b=1`` as {"a": {"b": 1}}; the value is YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            f"-c {text}: expected key=value, for example -c engine.params.block_size=32"
        )
    try:
        parsed = load_yaml(value)
    except yaml.YAMLError:
        raise ConfigError(f"-c {text}: the value is not valid YAML; quote it") from None
    for part in reversed(key.strip().split(".")):
        parsed = {part: parsed}
    return dict(parsed)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, str) and isinstance(value, dict) and key in PARTS:
            old = {"name": old}
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    for key in PARTS:
        if isinstance(above.get(key), str) and isinstance(below.get(key), dict):
            merged[key] = {**below[key], "name": above[key]}
    return merged


def _explain(error: ValidationError, origin: Mapping[str, str]) -> ConfigError:
    """The first problem of a validation error, as one line."""
    first = error.errors(include_url=False)[0]
    path = [part for part in first["loc"] if not _is_union_arm(part)]
    key = ".".join(str(part) for part in path)
    where = origin.get(str(path[0]), "") if path else ""
    prefix = f"{where}: " if where else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(path[:-1])
        close = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return ConfigError(f"{prefix}unknown key {key!r}{hint} (known: {', '.join(known)})")
    message = first["msg"].removeprefix("Value error, ")
    if not key:
        return ConfigError(f"{prefix}{message}")
    value = first["input"]
    shown = f" (got {value!r})" if isinstance(value, Value | None) else ""
    return ConfigError(f"{prefix}{key}: {message[0].lower()}{message[1:]}{shown}")


def _is_union_arm(part: str | int) -> bool:
    """Pydantic adds the name of each tried type of a ``Value`` to the location."""
    return part in {"bool", "int", "float", "str"}


def _known_keys(path: Sequence[str | int]) -> list[str]:
    blocks: dict[tuple[str | int, ...], type[BaseModel]] = {
        ("engine",): EnginePart,
        ("arrival",): ArrivalPart,
        ("tools",): ToolsPart,
        ("capacity",): CapacitySearch,
        ("tuning",): TuningSearch,
        ("cut",): UnmeasuredPart,
        ("sustain",): SustainedSearch,
    }
    return list(blocks.get(tuple(path), ExperimentConfig).model_fields)
