"""Hardware profiles: one model on one kind of GPU, as step cost and engine flags, with sources.

A profile is a YAML file below ``marsbench/profiles`` (its name is its path there without the
suffix) or any YAML file given by path. It has either ``model``, ``gpu``, ``efficiency`` and
``overhead``, from which the step cost is derived, or ``coefficients`` fitted to measured steps;
``turn`` is what a turn takes beside its steps (none if it is missing).
Every block, and the KV capacity, names its source.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from marsbench.core import PS_PER_S, PolicyContext, to_s
from marsbench.engine.base import EngineConfig
from marsbench.engine.cost import StepCost, TurnCost
from marsbench.errors import ConfigError
from marsbench.registry import unknown

PROFILES = Path(__file__).resolve().parent.parent / "profiles"

PS_PER_US = 1_000_000
BLOCKS = ("model", "gpu", "efficiency", "overhead", "coefficients", "turn")
"""Parts of a profile that it may lack; each that is there has a source."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Experts(_Part):
    """The mixture-of-experts layers of a model."""

    layers: int = Field(gt=0)
    count: int = Field(gt=0)
    per_token: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    """Width of one expert (three matrices, as gated MLPs have)."""
    param_bytes: float = Field(gt=0)
    """Bytes a stored parameter takes, scales included."""

    def expected_active(self, tokens: int) -> float:
        """Experts of one layer that ``tokens`` tokens touch, if routing is uniform and
        independent. Real routers are skewed and touch fewer.
        """
        missed = 1.0 - self.per_token / self.count
        return self.count * (1.0 - float(missed**tokens))


class Model(_Part):
    """Shape of a decoder-only transformer."""

    name: str
    layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    q_heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_size: int = Field(gt=0)
    mlp_size: int = Field(default=0, ge=0)
    """Width of the gated MLP of layers without experts."""
    vocab_size: int = Field(gt=0)
    tied_embeddings: bool = False
    param_bytes: float = Field(default=2.0, gt=0)
    kv_bytes: float = Field(default=2.0, gt=0)
    experts: Experts | None = None
    sliding_window: int = Field(default=0, ge=0)
    """Tokens a windowed layer sees; 0 if no layer is windowed."""
    sliding_layers: int = Field(default=0, ge=0)

    @property
    def attention_params(self) -> int:
        """Projections of all layers."""
        width = (2 * self.q_heads + 2 * self.kv_heads) * self.head_size
        return self.layers * self.hidden_size * width

    @property
    def dense_params(self) -> int:
        """What every token passes through: projections, MLPs without experts, routers."""
        routed = self.experts.layers if self.experts else 0
        mlp = (self.layers - routed) * 3 * self.hidden_size * self.mlp_size
        router = routed * self.hidden_size * self.experts.count if self.experts else 0
        return self.attention_params + mlp + router

    @property
    def expert_params(self) -> int:
        """One expert of every routed layer."""
        if self.experts is None:
            return 0
        return self.experts.layers * 3 * self.hidden_size * self.experts.hidden_size

    @property
    def head_params(self) -> int:
        """The output head; an input embedding that is not tied has as many."""
        return self.vocab_size * self.hidden_size

    @property
    def total_params(self) -> int:
        """All parameters but norms and biases."""
        experts = self.experts.count * self.expert_params if self.experts else 0
        heads = self.head_params * (1 if self.tied_embeddings else 2)
        return self.dense_params + experts + heads

    @property
    def active_params(self) -> int:
        """Parameters one token is multiplied with, the output head left out."""
        per_token = self.experts.per_token if self.experts else 0
        return self.dense_params + per_token * self.expert_params

    @property
    def full_layers(self) -> int:
        """Layers that attend to the whole context."""
        return self.layers - self.sliding_layers

    @property
    def kv_bytes_per_token(self) -> int:
        """KV of one token in all layers, as vLLM counts capacity."""
        return round(2 * self.layers * self.kv_heads * self.head_size * self.kv_bytes)

    @property
    def weight_bytes(self) -> int:
        """Memory of all weights."""
        experts = self.experts.count * self.expert_params if self.experts else 0
        expert_bytes = self.experts.param_bytes if self.experts else 0.0
        return round((self.total_params - experts) * self.param_bytes + experts * expert_bytes)


class Gpu(_Part):
    """One worker's GPUs."""

    name: str
    count: int = Field(default=1, gt=0)
    """Tensor-parallel size."""
    tflops: float = Field(gt=0)
    """Dense peak of one GPU in the type the matrices are multiplied in."""
    bandwidth_gb_per_s: float = Field(gt=0)
    memory_gb: float = Field(gt=0)
    link_gb_per_s: float = Field(default=0, ge=0)
    """Of one GPU to its peers, one direction; needed if count > 1."""

    @model_validator(mode="after")
    def _link(self) -> Gpu:
        if self.count > 1 and not self.link_gb_per_s:
            raise ValueError("link_gb_per_s is needed with more than one GPU")
        return self


class Efficiency(_Part):
    """Reached share of a peak."""

    linear: float = Field(gt=0, le=1)
    """Matrix multiplications of large batches."""
    attention: float = Field(gt=0, le=1)
    """Attention of prefills."""
    weights: float = Field(gt=0, le=1)
    """Bandwidth when reading weights."""
    kv: float = Field(gt=0, le=1)
    """Bandwidth when reading KV."""


class Overhead(_Part):
    """Time of a step that no roofline explains."""

    step_us: float = Field(gt=0)
    seq_us: float = Field(ge=0)
    allreduce_us: float = Field(default=0, ge=0)
    """Latency of one all-reduce (two a layer); 0 with one GPU."""


class TurnOverhead(_Part):
    """Time of a turn that no step takes: client, HTTP, parsing, and the way back."""

    fixed_us: float = Field(ge=0)
    prompt_token_us: float = Field(default=0, ge=0)


class Flags(_Part):
    """Engine flags that go with the profile, named as vLLM names them."""

    block_size: int = Field(gt=0)
    max_num_batched_tokens: int = Field(gt=0)
    max_num_seqs: int = Field(gt=0)
    max_model_len: int = Field(gt=0)


class Profile(_Part):
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
        return self

    def step_cost(self) -> StepCost:
        """Step cost in picoseconds: as fitted, or derived from shape and hardware."""
        if self.coefficients is not None:
            return StepCost.from_dict(self.coefficients)
        assert self.model is not None
        assert self.gpu is not None
        assert self.efficiency is not None
        assert self.overhead is not None
        return derive(self.model, self.gpu, self.efficiency, self.overhead)

    def turn_cost(self) -> TurnCost | None:
        """What a turn takes beside its steps, if the profile says."""
        if self.turn is None:
            return None
        return TurnCost(
            round(self.turn.fixed_us * PS_PER_US), round(self.turn.prompt_token_us * PS_PER_US)
        )

    def engine_config(self, **overrides: int | str | bool) -> EngineConfig:
        """Engine flags; ``overrides`` are fields of EngineConfig."""
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
        return EngineConfig(**(fields | overrides))

    def policy_context(self, tool_cores: int, seed: int) -> PolicyContext:
        """What a policy is told about this deployment."""
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


def derive(model: Model, gpu: Gpu, efficiency: Efficiency, overhead: Overhead) -> StepCost:
    """Step cost from shape and hardware (see ``marsbench.engine.cost`` for the terms)."""
    flops = gpu.tflops * 1e12 * gpu.count
    linear_ps = PS_PER_S / (flops * efficiency.linear)
    attention_ps = PS_PER_S / (flops * efficiency.attention)
    bandwidth = gpu.bandwidth_gb_per_s * 1e9 * gpu.count
    weight_ps = PS_PER_S / (bandwidth * efficiency.weights)
    kv_ps = PS_PER_S / (bandwidth * efficiency.kv)

    pair_flops = 4 * model.q_heads * model.head_size
    kv_layer_bytes = 2 * model.kv_heads * model.head_size * model.kv_bytes
    windowed = model.sliding_layers * model.sliding_window
    c_tok = 2 * model.active_params * linear_ps + pair_flops * windowed * attention_ps
    o_step = overhead.step_us * PS_PER_US
    if gpu.count > 1:
        # A ring all-reduce moves 2 (n-1)/n of a layer's activations over each link, twice a layer.
        moved = 2 * (gpu.count - 1) / gpu.count * model.hidden_size * model.param_bytes
        c_tok += 2 * model.layers * moved * PS_PER_S / (gpu.link_gb_per_s * 1e9)
        o_step += 2 * model.layers * overhead.allreduce_us * PS_PER_US
    return StepCost.from_coefficients(
        c_tok=round(c_tok),
        c_pair=round(pair_flops * model.full_layers * attention_ps),
        weights=_exposed_weights(model, weight_ps, 2 * model.dense_params * linear_ps),
        m_ctx=round(kv_layer_bytes * model.full_layers * kv_ps),
        o_step=round(o_step),
        o_seq=round(
            overhead.seq_us * PS_PER_US
            + 2 * model.head_params * linear_ps
            + kv_layer_bytes * windowed * kv_ps
        ),
    )


def _exposed_weights(model: Model, weight_ps: float, dense_tok_ps: float) -> list[int]:
    """Reading time of the weights that computing does not hide, by tokens in the step.

    Layers every token passes are a roofline: reading hides behind computing. Experts are not: a
    step multiplies many small matrices, each read for the few tokens routed to it, and measured
    operator tables (AIConfigurator 0.10.0, H100 and H200, vLLM) show reading and computing to
    add up from 512 to 64 k tokens a step.
    """
    dense_ps = (model.dense_params + model.head_params) * model.param_bytes * weight_ps
    experts = model.experts
    expert_ps = model.expert_params * experts.param_bytes * weight_ps if experts else 0.0
    table: list[int] = []
    tokens = 0
    while True:
        left_ps = max(0.0, dense_ps - dense_tok_ps * tokens)
        if experts is not None:
            active = experts.expected_active(tokens)
            saturated = experts.count - active < 0.05
            left_ps += (experts.count if saturated else active) * expert_ps
        else:
            saturated = True
        table.append(round(left_ps))
        if saturated and dense_tok_ps * tokens >= dense_ps:
            return table
        tokens += 1


def list_profiles() -> list[str]:
    """Names of the shipped profiles."""
    return sorted(
        path.relative_to(PROFILES).with_suffix("").as_posix() for path in PROFILES.rglob("*.yaml")
    )


def load_profile(name_or_path: str | Path) -> Profile:
    """A shipped profile by name, or any profile by the path of its YAML file."""
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
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
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
