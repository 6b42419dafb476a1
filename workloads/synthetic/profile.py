"""What a generated workload is made of: the schema of ``profiles/*.yaml`` and their loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from marsbench.errors import ConfigError
from marsbench.strict_yaml import load_yaml
from workloads.synthetic.chain import ToolChain, tilted
from workloads.synthetic.draws import Distribution, constant
from workloads.synthetic.shipped import shipped


class _ProfileBlock(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PrefixVariant(_ProfileBlock):
    """One system prompt with tool definitions."""

    id: str
    tokens: int = Field(gt=0)
    weight: float = Field(default=1.0, gt=0)


class Requests(_ProfileBlock):
    """Requests of a person who asks again when the agent has answered."""

    turns: Distribution
    """Turns per request."""
    message_tokens: Distribution
    """Tokens of a later message."""
    think_s: Distribution
    """Time until the person asks again."""


class Tools(_ProfileBlock):
    """Which tools are called, in which order, and how many at once."""

    chain: dict[str, dict[str, float]]
    """First tool of the next turn given the first tool of this one; rows ``start`` and states."""
    states: dict[str, dict[str, float]]
    """Share of each tool class within a state."""
    mix: dict[str, float] = {}
    """Long-run share of each tool class; tilts the chain (and replaces ``states`` shares)."""
    names: dict[str, str] = {}
    """Tool name by class; default "Bash"."""
    extra_calls: dict[str, tuple[float, ...]] = {}
    """By class of the first call: probabilities of 0, 1, 2, ... further parallel calls."""
    extra_class: dict[str, dict[str, float]] = {}
    """By class of the first call: class of the further ones; default: the same."""


class ByClass(_ProfileBlock):
    """One distribution per tool class."""

    by_class: dict[str, Distribution]
    session_share: dict[str, float] = {}
    """Share of the variance (of the normal scores) that belongs to the session, by class."""


class Output(ByClass):
    """Output tokens of a turn by class of its first call; ``end`` is a turn without a call."""

    drift: float = 0.0
    """Change of ln(output) from the first to the last turn."""


class Resent(_ProfileBlock):
    """How much of a turn's output comes back in the next prompt."""

    visible: dict[str, tuple[float, float]] = {}
    """(μ, σ) of ln(tokens that stay) by class: the chat template drops the reasoning."""
    correlation: float = Field(default=0.5, ge=0, le=1)
    """Of the scores of visible and all output."""
    verbatim: float = Field(default=1.0, ge=0, le=1)
    """Without ``visible``: share of turns whose output comes back unchanged."""
    otherwise: float = Field(default=0.5, ge=0, lt=1)
    """Without ``visible``: share of the output that comes back on the other turns."""


class Results(ByClass):
    """Tokens of a call's result, by tool class."""

    to_prompt: float = 1.0
    """Prompt tokens per result token (tokenizer of the figures to tokenizer of the model)."""
    length_exponent: dict[str, float] = {}
    """By class: results scale with (turns / 45) to this power (long sessions read less)."""


class OpeningTurns(_ProfileBlock):
    """The first turns of a session, in which the agent looks around and reads whole files."""

    turns: float = Field(gt=0)
    """Turn k draws from this block with probability exp(-k / turns)."""
    by_class: dict[str, Distribution]
    """Result tokens."""
    extra_calls: dict[str, tuple[float, ...]] = {}
    """As ``Tools.extra_calls``."""


class Durations(ByClass):
    """Wall time of a call on an uncontended machine, seconds, by tool class."""

    timeout_s: dict[str, float]
    """The harness ends calls here (an error); ``default`` for classes that are not named."""


class Cpu(_ProfileBlock):
    """CPU demand of a tool class."""

    share: float = Field(ge=0, le=1)
    """Share of the wall time that computes; the rest waits for I/O."""
    cores: float = Field(gt=0)
    """Cores in use while computing: cpu_s = wall_s · share · cores."""


class Compaction(_ProfileBlock):
    """How a context that gets too long is summed up."""

    at_tokens: Distribution
    to_tokens: Distribution


class SessionProfile(_ProfileBlock):
    """Everything a generator needs to know about one kind of session."""

    name: str
    summary: str
    agent: str
    model: str
    provenance: dict[str, str]
    max_context_tokens: int = Field(gt=0)
    """The session ends before a prompt and its output would exceed this."""
    turns: Distribution
    shared_prefix: tuple[PrefixVariant, ...] = Field(min_length=1)
    task_tokens: Distribution
    requests: Requests | None = None
    tools: Tools
    output_tokens: Output
    resent_output: Resent
    result_tokens: Results
    opening: OpeningTurns | None = None
    framing_tokens: Distribution
    duration_s: Durations
    sandbox_speed: float = Field(default=1.0, gt=0)
    """Tool durations are divided by this before the timeout applies."""
    cpu: dict[str, Cpu]
    error_share: dict[str, float]
    compaction: Compaction | None = None
    subagent: str | None = None
    """Profile of the session behind a call of class ``subagent``."""

    def chain(self) -> ToolChain:
        """The chain of tool turns, tilted to ``tools.mix`` if that is given."""
        rows = self.tools.chain
        if self.tools.mix:
            rows = tilted(rows, self._state_mix(), self.name)
        return ToolChain(rows, self.name)

    def class_shares(self, state: str) -> dict[str, float]:
        """Share of each tool class within a state."""
        classes = self.tools.states[state]
        if self.tools.mix:
            classes = {name: self.tools.mix.get(name, 0.0) for name in classes}
        total = sum(classes.values())
        return {name: share / total for name, share in classes.items() if share > 0}

    def classes(self) -> tuple[str, ...]:
        """All tool classes of the profile, in a fixed order."""
        names = dict.fromkeys(name for state in self.tools.states.values() for name in state)
        return tuple(name for name in names if not self.tools.mix or self.tools.mix.get(name))

    def _state_mix(self) -> dict[str, float]:
        states = self.tools.states.items()
        return {s: sum(self.tools.mix.get(c, 0.0) for c in classes) for s, classes in states}


class Component(_ProfileBlock):
    """One part of a mixed workload."""

    profile: str
    weight: float = Field(gt=0)


class Mix(_ProfileBlock):
    """Sessions drawn from several profiles."""

    name: str
    summary: str
    provenance: dict[str, str]
    components: tuple[Component, ...] = Field(min_length=1)


def load_profile(path: Path) -> SessionProfile:
    """Read a profile file; ``extends: NAME`` takes over each block that the file does not give
    itself.

    Raises ConfigError naming the file and the field.
    """
    profile: SessionProfile = _validated(SessionProfile, _with_base(path), path)
    _check_classes(profile, path)
    return profile


def load_mix(path: Path) -> Mix:
    """Read a file that mixes profiles."""
    mix: Mix = _validated(Mix, _read(path), path)
    return mix


def _with_base(path: Path) -> dict[str, Any]:
    block = _read(path)
    base = block.pop("extends", None)
    return block if base is None else _with_base(shipped(str(base))) | block


def _read(path: Path) -> dict[str, Any]:
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read profile: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a profile is a mapping of blocks")
    return content


def _validated(model: type[Any], content: dict[str, Any], path: Path) -> Any:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {where}: {first['msg']}") from error


def _check_classes(profile: SessionProfile, path: Path) -> None:
    """Raise an error unless every class that can be drawn has all its parameters."""
    missing_rows = set(profile.tools.chain) - {"start"} - set(profile.tools.states)
    if missing_rows:
        raise ConfigError(f"{path}: tools.states: no classes for {sorted(missing_rows)}")
    classes = set(profile.classes())
    needed = {
        "output_tokens.by_class": (set(profile.output_tokens.by_class), classes | {"end"}),
        "result_tokens.by_class": (set(profile.result_tokens.by_class), classes),
        "duration_s.by_class": (set(profile.duration_s.by_class), classes),
        "cpu": (set(profile.cpu), classes),
    }
    for field, (given, wanted) in needed.items():
        if wanted - given:
            raise ConfigError(f"{path}: {field}: no entry for {', '.join(sorted(wanted - given))}")
    if "subagent" in classes and profile.subagent is None:
        raise ConfigError(f"{path}: subagent: name the profile of sub-agent sessions")


__all__ = ["Distribution", "Mix", "SessionProfile", "constant", "load_mix", "load_profile"]
