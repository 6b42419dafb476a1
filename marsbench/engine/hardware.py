"""What a profile describes: a model's shape, GPUs, host memory, and the step cost they give."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from marsbench.core import PS_PER_S
from marsbench.engine.cost import StepCost

PS_PER_US = 1_000_000


class ProfileBlock(BaseModel):
    """A block of a profile: frozen, and without keys that nobody knows."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Experts(ProfileBlock):
    """The mixture-of-experts layers of a model."""

    layers: int = Field(gt=0)
    count: int = Field(gt=0)
    per_token: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    """Width of one expert (three matrices, as gated MLPs have)."""
    param_bytes: float = Field(gt=0)
    """Bytes a stored parameter takes, scales included."""

    def expected_active(self, tokens: int) -> float:
        """Return how many experts of one layer ``tokens`` tokens touch, if routing is uniform and
        independent. Real routers are skewed and touch fewer.
        """
        missed = 1.0 - self.per_token / self.count
        return self.count * (1.0 - float(missed**tokens))


class Model(ProfileBlock):
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
        """Parameters that every token passes through: projections, MLPs without experts, and
        routers.
        """
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


class Gpu(ProfileBlock):
    """The GPUs that one replica of a model runs on, as one."""

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


class Efficiency(ProfileBlock):
    """Shares of the peak rates that real kernels reach."""

    linear: float = Field(gt=0, le=1)
    """Matrix multiplications of large batches."""
    attention: float = Field(gt=0, le=1)
    """Attention of prefills."""
    weights: float = Field(gt=0, le=1)
    """Bandwidth when reading weights."""
    kv: float = Field(gt=0, le=1)
    """Bandwidth when reading KV."""


class Overhead(ProfileBlock):
    """Time of a step that no roofline explains."""

    step_us: float = Field(gt=0)
    seq_us: float = Field(ge=0)
    allreduce_us: float = Field(default=0, ge=0)
    """Latency of one all-reduce (two a layer); 0 with one GPU."""


class TurnOverhead(ProfileBlock):
    """Time of a turn that no step takes: client, HTTP, parsing, and the way back."""

    fixed_us: float = Field(ge=0)
    prompt_token_us: float = Field(default=0, ge=0)


class HostMemory(ProfileBlock):
    """Host memory beside the GPUs and the link of each GPU to it."""

    memory_gib: float = Field(gt=0)
    """What such a server has per GPU. How much of it holds KV is for a run to say: none by default."""
    h2d_gb_per_s: float = Field(gt=0)
    """Host to device, of large pinned copies."""
    d2h_gb_per_s: float = Field(gt=0)
    latency_us: float = Field(ge=0)
    """What every copy takes beside its bytes."""


class Flags(ProfileBlock):
    """Engine flags that go with the profile, named as vLLM names them."""

    block_size: int = Field(gt=0)
    max_num_batched_tokens: int = Field(gt=0)
    max_num_seqs: int = Field(gt=0)
    max_model_len: int = Field(gt=0)


def derive(model: Model, gpu: Gpu, efficiency: Efficiency, overhead: Overhead) -> StepCost:
    """Compute the step cost from the shape of the model and the hardware; ``marsbench.engine.cost``
    explains the terms.
    """
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
