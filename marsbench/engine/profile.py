"""Hardware profiles: one model on one kind of GPU, as step cost and engine flags, with sources.

A profile is a YAML file below ``marsbench/profiles`` (its name is its path there without the
suffix) or any YAML file given by path. It has either ``model``, ``gpu``, ``efficiency`` and
``overhead``, from which the step cost is derived, or ``coefficients`` fitted to measured steps;
``turn`` is what a turn takes beside its steps (none if it is missing), ``host`` the host memory that
can keep KV which leaves the GPU.
Every block, and the KV capacity, names its source.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from marsbench.core import PS_PER_S, PolicyContext, to_s
from marsbench.engine.base import EngineConfig
from marsbench.engine.cost import LinkCost, StepCost, TurnCost
from marsbench.engine.hardware import (
    PS_PER_US,
    Efficiency,
    Flags,
    Gpu,
    HostMemory,
    Model,
    Overhead,
    ProfileBlock,
    TurnOverhead,
    derive,
)
from marsbench.errors import ConfigError
from marsbench.profiles import PROFILES, list_profiles
from marsbench.registry import unknown
from marsbench.strict_yaml import load_yaml

GIB = 1 << 30
PAGE_BYTES = 4096
"""Chunks of KV in host memory take whole pages, as in vLLM."""
BLOCKS = ("model", "gpu", "efficiency", "overhead", "coefficients", "turn", "host")
"""Parts of a profile that it may lack; each that is there has a source."""


class Profile(ProfileBlock):
    """One model on one kind of GPU."""

    name: str
    summary: str
    model: Model | None = None
    gpu: Gpu | None = None
    efficiency: Efficiency | None = None
    overhead: Overhead | None = None
    coefficients: dict[str, int | list[int]] | None = None
    """A fitted step cost (``StepCost.to_dict``), instead of the four blocks above."""
    turn: TurnOverhead | None = None
    """None: turns reach the engine at once."""
    host: HostMemory | None = None
    """None: nothing is known of host memory, and no cell can have any."""
    engine: Flags
    num_kv_tokens: int = Field(gt=0)
    kv_source: str = Field(min_length=1)
    sources: dict[str, str]
    """Where the numbers of each block come from."""

    @model_validator(mode="after")
    def _complete(self) -> Profile:
        derived = (self.model, self.gpu, self.efficiency, self.overhead)
        if self.coefficients is None and None in derived:
            raise ValueError("needs model, gpu, efficiency and overhead, or coefficients")
        if self.coefficients is not None and any(derived[1:]):
            raise ValueError("has coefficients beside gpu, efficiency or overhead; keep one form")
        for block in (*BLOCKS, "engine"):
            if getattr(self, block) is not None and not self.sources.get(block):
                raise ValueError(f"sources.{block} is missing: say where its numbers come from")
        if self.num_kv_tokens < self.engine.block_size:
            raise ValueError("num_kv_tokens is less than one block")
        if self.host is not None and self.model is None:
            raise ValueError("has host without model, whose shape says what a token's KV takes")
        return self

    def step_cost(self) -> StepCost:
        """Return the step cost in picoseconds, fitted or derived from shape and hardware, with the
        link to host memory if there is one.
        """
        return self._compute_cost().with_link(self.link_cost())

    def link_cost(self) -> LinkCost | None:
        """Return what copies to and from host memory take, if the profile says. GPUs copy side by
        side.
        """
        if self.host is None:
            return None
        assert self.model is not None
        token_bytes = self.model.kv_bytes_per_token / self.num_gpus
        return LinkCost(
            round(token_bytes * PS_PER_S / (self.host.h2d_gb_per_s * 1e9)),
            round(token_bytes * PS_PER_S / (self.host.d2h_gb_per_s * 1e9)),
            round(self.host.latency_us * PS_PER_US),
            self.model.kv_bytes_per_token,
        )

    @property
    def num_gpus(self) -> int:
        """GPUs that one engine has."""
        return self.gpu.count if self.gpu is not None else 1

    def _compute_cost(self) -> StepCost:
        if self.coefficients is not None:
            return StepCost.from_dict(self.coefficients)
        assert self.model is not None
        assert self.gpu is not None
        assert self.efficiency is not None
        assert self.overhead is not None
        return derive(self.model, self.gpu, self.efficiency, self.overhead)

    def turn_cost(self) -> TurnCost | None:
        """Return what a turn takes beside its steps; None if the profile does not say."""
        if self.turn is None:
            return None
        return TurnCost(
            round(self.turn.fixed_us * PS_PER_US), round(self.turn.prompt_token_us * PS_PER_US)
        )

    def engine_config(
        self, host_kv_gib: float = 0.0, /, **overrides: int | str | bool
    ) -> EngineConfig:
        """Return the engine flags. ``overrides`` are fields of EngineConfig, ``host_kv_gib`` is
        host memory for KV per GPU.
        """
        fields: dict[str, Any] = {
            "num_blocks": self.num_kv_tokens // self.engine.block_size,
            **self.engine.model_dump(),
        }
        known = EngineConfig.__dataclass_fields__
        for name in overrides:
            if name not in known:
                raise unknown("engine field", name, known)
        if "block_size" in overrides and "num_blocks" not in overrides:
            fields["num_blocks"] = self.num_kv_tokens // int(overrides["block_size"])
        config = EngineConfig(**(fields | overrides))
        if "host_chunks" in overrides:
            return config
        return replace(config, host_chunks=self._host_chunks(config, host_kv_gib))

    def _host_chunks(self, config: EngineConfig, gib: float) -> int:
        """How many chunks of KV so much host memory per GPU holds."""
        if not gib:
            return 0
        if self.model is None or self.host is None:
            raise ConfigError(
                f"profile {self.name}: has no `host` block, so nothing is known of host memory; "
                "add one, or run without --host-kv"
            )
        if gib > self.host.memory_gib:
            raise ConfigError(
                f"host_kv_gib {gib:g}: profile {self.name} has {self.host.memory_gib:g} GiB of host "
                "memory per GPU; give less, or a profile that says otherwise"
            )
        tokens = config.block_size * config.blocks_per_chunk
        pages = -(-self.model.kv_bytes_per_token * tokens // PAGE_BYTES)
        chunks = int(gib * GIB * self.num_gpus) // (pages * PAGE_BYTES)
        if not chunks:
            raise ConfigError(f"host_kv_gib {gib:g}: less than one chunk of {tokens} tokens")
        return chunks

    def policy_context(self, tool_cores: int, seed: int) -> PolicyContext:
        """Return what a policy is told about this deployment."""
        cost = self.step_cost()
        config = self.engine_config()
        chunk = config.max_num_batched_tokens
        linear_ps = cost.step_ps(chunk, 0, 0, 1)
        return PolicyContext(
            num_blocks=config.num_blocks,
            block_size=config.block_size,
            max_num_batched_tokens=chunk,
            max_num_seqs=config.max_num_seqs,
            tool_cores=tool_cores,
            prefill_tokens_per_s=chunk / to_s(linear_ps),
            prefill_s_per_pair=to_s(cost.c_pair),
            decode_step_s=to_s(cost.step_ps(1, 1024, 1024, 1)),
            seed=seed,
        )


def load_profile(name_or_path: str | Path) -> Profile:
    """Read a shipped profile by its name, or any profile by the path of its YAML file."""
    text = str(name_or_path)
    path = Path(text)
    if path.suffix not in {".yaml", ".yml"}:
        if text not in list_profiles():
            raise unknown("profile", text, list_profiles())
        path = PROFILES / f"{text}.yaml"
    elif path.is_file() is False:
        raise ConfigError(
            f"profile {text}: no such file; `marsbench list profiles` has the shipped"
        )
    try:
        data = load_yaml(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        where = str(error).replace("\n", " ")
        raise ConfigError(f"profile {text}: not valid YAML: {where}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"profile {text}: must be a mapping with a name, engine flags and so on")
    try:
        profile = Profile.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"profile {text}: {_first(error)}") from error
    profile.step_cost()
    return profile


def _first(error: ValidationError) -> str:
    """The first problem as one line: field, what is wrong, how many more."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    what = problem["msg"].removeprefix("Value error, ")
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {what}{more}" if where else f"{what}{more}"
