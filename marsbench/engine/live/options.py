"""What a user says about a live engine besides its flags: ``engine.params`` of an experiment."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from marsbench.engine.base import EngineConfig
from marsbench.engine.live.prompts import DEFAULT_HIGH, DEFAULT_LOW, Vocabulary
from marsbench.errors import ConfigError
from marsbench.registry import unknown

Value = bool | int | float | str
FLAGS = frozenset(entry.name for entry in dataclasses.fields(EngineConfig))


@dataclass(frozen=True, slots=True)
class LiveOptions:
    """Where the server is, or how to start one."""

    url: str = ""
    """Of a running server, without /v1; empty = start vLLM."""
    model: str = ""
    """Name that requests give, or what to start: a folder or a Hugging Face name. Empty: with a
    URL what the server serves first, else a tiny model with random weights."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the key, if the server wants one."""
    python: str = ""
    """Interpreter of an environment that has the server; empty: found (``engine.interpreters``)."""
    device: str = "auto"
    """auto | cpu | gpu"""
    random_weights: bool = False
    layers: int = 0
    """Of the tiny model, where that is started; 0: as many as the profile's model has. On a CPU two make steps of some 2 ms, most of them
    spent outside the model; 24 make steps of 9 ms and more, nearly all of them in it."""
    stream_interval: int = 16
    """Tokens in one message of vLLM (the first comes at once, the last ones with the end): one
    message for each takes the API server and the client longer than small models a step."""
    worker_process: bool = False
    """On a CPU: run the model in a process of its own, as vLLM does if nobody asks otherwise. The
    scheduler's process then spins while the model computes, and wants a core for that."""
    extra_flags: str = ""
    """Further flags of the server, as on a command line."""
    scheduler_cls: str = ""
    """Dotted path of a scheduler class for vLLM: it runs the system's engine-side policies."""
    start_timeout_s: float = 600.0
    idle_timeout_s: float = 300.0
    warm_up_turns: int = 4
    token_low: int = DEFAULT_LOW
    """Prompts are made of token ids from here ..."""
    token_high: int = DEFAULT_HIGH
    """... up to but without this one."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The token ids that prompts are made of."""
        return Vocabulary(self.token_low, self.token_high)

    def on_cpu(self) -> bool:
        """Whether vLLM is to run on the CPU, either because the user asked for it or because there
        is no GPU device file.
        """
        if self.device == "auto":
            return not (Path("/dev/nvidia0").exists() or Path("/dev/kfd").exists())
        return self.device == "cpu"


def split_options(params: Mapping[str, Value]) -> tuple[LiveOptions, dict[str, Value]]:
    """Split ``engine.params`` into the options of the server and the rest, which are engine flags.

    Raises ConfigError for a name that is neither, or a value of the wrong type.
    """
    kinds = {entry.name: entry for entry in dataclasses.fields(LiveOptions)}
    given: dict[str, Value] = {}
    flags: dict[str, Value] = {}
    for name, value in params.items():
        if name in FLAGS:
            flags[name] = value
        elif name in kinds:
            given[name] = _typed(name, value, str(kinds[name].type))
        else:
            raise ConfigError(f"engine.params: {unknown('parameter', name, [*kinds, *FLAGS])}")
    options = LiveOptions(**given)  # type: ignore[arg-type]  # checked one by one
    if options.device not in {"auto", "cpu", "gpu"}:
        raise ConfigError(f"engine.params.device: {options.device!r}; use auto, cpu or gpu")
    for name, least in (("layers", 0), ("stream_interval", 1)):
        if getattr(options, name) < least:
            raise ConfigError(
                f"engine.params.{name}: {getattr(options, name)}; use {least} or more"
            )
    if options.url and not options.url.startswith(("http://", "https://")):
        raise ConfigError(
            f"engine.params.url: {options.url!r} does not begin with http:// or https://"
        )
    if options.url and options.scheduler_cls:
        raise ConfigError(
            "engine.params: scheduler_cls is for a server that marsbench starts; drop url"
        )
    _ = shlex.split(options.extra_flags)
    return options, flags


def _typed(name: str, value: Value, kind: str) -> Value:
    wanted = {"str": str, "int": int, "float": float, "bool": bool}[kind]
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise ConfigError(f"engine.params.{name}: expected {kind}, got {value!r}")
    return value
