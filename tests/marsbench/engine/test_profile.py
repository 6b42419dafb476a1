"""Profiles: shapes against published sizes, steps against measured operator tables, clear errors."""

from __future__ import annotations

import pytest
import yaml

from marsbench.engine.cost import StepCost
from marsbench.engine.hardware import Experts, Gpu, derive
from marsbench.engine.profile import PROFILES, list_profiles, load_profile
from marsbench.errors import ConfigError

H100_SXM = Gpu(name="H100 SXM", tflops=989, bandwidth_gb_per_s=3350, memory_gb=80)
H200_SXM = Gpu(name="H200 SXM", tflops=989, bandwidth_gb_per_s=4800, memory_gb=141)
H200_SXM_TP2 = Gpu(
    name="H200 SXM", count=2, tflops=989, bandwidth_gb_per_s=4800, memory_gb=141, link_gb_per_s=450
)

# Milliseconds of single steps by AIConfigurator 0.10.0 (measured operator tables, vLLM backend;
# h100_sxm 0.19.0, h200_sxm 0.18.0). Prefills: (new tokens, prefix tokens, ms) of one sequence.
# Decodes: (sequences, tokens in the cache of each, ms). The number after the GPU is the largest
# mean error allowed; experts whose routing the tables draw skewed fit less well.
OPERATOR_TABLES = {
    "h100-nvl/qwen3-coder-30b-a3b": (
        H100_SXM,
        0.06,
        [
            (1000, 0, 33.1),
            (1000, 65536, 97.4),
            (2048, 16384, 79.3),
            (8000, 0, 141.8),
            (20000, 0, 457.4),
            (65536, 0, 2920.0),
        ],
        [
            (1, 1000, 4.37),
            (4, 20000, 10.24),
            (8, 50000, 22.96),
            (16, 20000, 22.57),
            (32, 20000, 39.75),
            (64, 50000, 124.89),
        ],
    ),
    "h200-nvl/qwen3-coder-30b-a3b": (
        H200_SXM,
        0.06,
        [
            (1000, 0, 27.7),
            (1000, 65536, 99.0),
            (2048, 16384, 75.7),
            (8000, 0, 134.4),
            (20000, 0, 444.1),
            (65536, 0, 3079.8),
        ],
        [
            (1, 1000, 3.78),
            (4, 20000, 7.89),
            (8, 50000, 16.61),
            (16, 20000, 16.92),
            (32, 20000, 28.52),
            (64, 50000, 84.27),
        ],
    ),
    "h200-nvl/gpt-oss-120b": (
        H200_SXM,
        0.08,
        [
            (1000, 0, 53.0),
            (1000, 65536, 90.3),
            (2048, 16384, 95.3),
            (8000, 0, 200.7),
            (20000, 0, 509.2),
            (65536, 0, 2519.4),
        ],
        [
            (1, 1000, 5.20),
            (4, 20000, 8.08),
            (8, 50000, 13.38),
            (16, 20000, 14.99),
            (32, 20000, 21.35),
            (64, 50000, 50.19),
        ],
    ),
    "h100-nvl/llama-3.1-8b": (
        H100_SXM,
        0.04,
        [
            (1000, 0, 21.4),
            (1000, 65536, 64.0),
            (2048, 16384, 67.2),
            (8000, 0, 195.8),
            (20000, 0, 546.4),
            (65536, 0, 2673.3),
        ],
        [
            (1, 1000, 6.40),
            (4, 20000, 9.78),
            (8, 50000, 23.98),
            (16, 20000, 20.16),
            (32, 20000, 33.49),
            (64, 50000, 142.33),
        ],
    ),
    "h200-nvl/qwen3-32b-tp2": (
        H200_SXM_TP2,
        0.04,
        [
            (1000, 0, 54.8),
            (1000, 65536, 149.8),
            (2048, 16384, 158.1),
            (8000, 0, 468.8),
            (20000, 0, 1313.3),
            (65536, 0, 6400.7),
        ],
        [
            (1, 1000, 11.08),
            (4, 20000, 13.30),
            (8, 50000, 22.96),
            (16, 20000, 20.67),
            (32, 20000, 30.12),
            (64, 50000, 102.75),
        ],
    ),
    "h200-sxm/qwen3-32b": (
        H200_SXM,
        0.04,
        [
            (1000, 0, 91.8),
            (1000, 65536, 298.4),
            (2048, 16384, 290.7),
            (8000, 0, 832.9),
            (20000, 0, 2440.7),
            (65536, 0, 12210.7),
        ],
        [
            (1, 1000, 18.21),
            (4, 20000, 23.11),
            (8, 50000, 42.25),
            (16, 20000, 38.31),
            (32, 20000, 56.58),
            (64, 50000, 201.53),
        ],
    ),
}


def prefill_ms(cost, new, prefix=0):
    return cost.step_ps(new, new * prefix + new * (new + 1) // 2, prefix + new, 1) / 1e9


def decode_ms(cost, seqs, cached):
    return cost.step_ps(seqs, seqs * (cached + 1), seqs * (cached + 1), seqs) / 1e9


@pytest.mark.parametrize("name", OPERATOR_TABLES)
def test_steps_agree_with_measured_operator_tables(name):
    """On the GPU the tables were measured on, no error exceeds 16 %, and the mean stays small."""
    gpu, mean_limit, prefills, decodes = OPERATOR_TABLES[name]
    profile = load_profile(name)
    cost = derive(profile.model, gpu, profile.efficiency, profile.overhead)
    errors = [prefill_ms(cost, new, prefix) / ms - 1 for new, prefix, ms in prefills]
    errors += [decode_ms(cost, seqs, cached) / ms - 1 for seqs, cached, ms in decodes]
    assert max(map(abs, errors)) < 0.16
    assert sum(map(abs, errors)) / len(errors) < mean_limit


def test_qwen3_32b_on_h200_against_published_estimates():
    """Decode steps of the tool's vLLM 0.19.0 set within 5 %; its prefills fit linear layers only.

    The attention table behind those two prefills implies more than nine times the GPU's peak.
    """
    cost = load_profile("h200-sxm/qwen3-32b").step_cost()
    for seqs, cached, ms in (
        (1, 1000, 18.3),
        (8, 20000, 29.6),
        (16, 20000, 37.9),
        (32, 20000, 56.1),
    ):
        assert decode_ms(cost, seqs, cached) == pytest.approx(ms, rel=0.05)
    for new, ms in ((8000, 730), (20000, 1876)):
        linear_ms = cost.step_ps(new, 0, new, 1) / 1e9
        assert linear_ms == pytest.approx(ms, rel=0.06)
        attention_flops = 64 * 4 * 64 * 128 * new * (new + 1) / 2
        assert attention_flops / 989e12 * 1e3 > 2 * abs(ms - linear_ms)


def test_tiny_cpu_has_its_measured_steps():
    """8 ms per decode step at 1 and at 16 sequences, 8,000 tokens of prefill in 0.4 s (10 %)."""
    cost = load_profile("tiny-cpu").step_cost()
    assert decode_ms(cost, 1, 100) == pytest.approx(8, rel=0.1)
    assert decode_ms(cost, 16, 100) == pytest.approx(8, rel=0.1)
    chunks = [(2048, 0), (2048, 2048), (2048, 4096), (1856, 6144)]
    assert sum(prefill_ms(cost, new, prefix) for new, prefix in chunks) == pytest.approx(
        400, rel=0.1
    )


@pytest.mark.parametrize(
    ("name", "total", "active", "kv_bytes"),
    [
        ("h100-nvl/qwen3-coder-30b-a3b", 30.5e9, 3.0e9, 98_304),
        ("h100-nvl/gpt-oss-120b", 116.8e9, 5.1e9, 73_728),
        ("h100-nvl/llama-3.1-8b", 8.03e9, 7.5e9, 131_072),
        ("h200-nvl/qwen3-32b-tp2", 32.8e9, 32.0e9, 262_144),
    ],
)
def test_shapes_have_the_published_sizes(name, total, active, kv_bytes):
    """Parameters derived from the shape are those of the model card (active: with the head)."""
    model = load_profile(name).model
    assert model.total_params == pytest.approx(total, rel=0.005)
    assert model.active_params + model.head_params == pytest.approx(active, rel=0.02)
    assert model.kv_bytes_per_token == kv_bytes


@pytest.mark.parametrize("name", [name for name in list_profiles() if load_profile(name).gpu])
def test_kv_capacity_fits_the_memory(name):
    """Weights and KV fit 90 % of the memory (GB as on the box) with room for activations."""
    profile = load_profile(name)
    usable = 0.9 * profile.gpu.count * profile.gpu.memory_gb * 1.07e9
    kv = profile.num_kv_tokens * profile.model.kv_bytes_per_token
    assert 0.8 * usable < profile.model.weight_bytes + kv < usable - 3e9


@pytest.mark.parametrize("name", list_profiles())
def test_every_shipped_profile_is_usable(name):
    """Names match paths; every block has a source; flags, cost and policy context can be built."""
    profile = load_profile(name)
    assert profile.name == name
    config = profile.engine_config()
    assert config.num_blocks * config.block_size <= profile.num_kv_tokens
    assert config.max_model_len <= profile.num_kv_tokens
    context = profile.policy_context(tool_cores=16, seed=3)
    assert (context.num_blocks, context.tool_cores, context.seed) == (config.num_blocks, 16, 3)
    assert context.prefill_tokens_per_s > 1000
    assert 0 < context.decode_step_s < 0.1
    again = StepCost.from_dict(profile.step_cost().to_dict())
    assert again.with_link(profile.link_cost()) == profile.step_cost()


def test_policy_context_is_derived_from_the_step_cost():
    """Prefill speed is a full chunk without attention; the pair term stands beside it."""
    profile = load_profile("h100-nvl/llama-3.1-8b")
    cost, context = profile.step_cost(), profile.policy_context(8, 0)
    chunk_s = 8192 / context.prefill_tokens_per_s + context.prefill_s_per_pair * 8192 * 8193 / 2
    assert chunk_s == pytest.approx(prefill_ms(cost, 8192) / 1e3, rel=0.005)
    assert context.decode_step_s == pytest.approx(decode_ms(cost, 1, 1023) / 1e3)


def test_paper_setups_have_the_stated_capacity():
    """The two Qwen set-ups hold 220,000 and 650,000 tokens."""
    assert load_profile("h100-nvl/qwen3-coder-30b-a3b").engine_config().num_blocks == 13_750
    assert load_profile("h200-nvl/qwen3-coder-30b-a3b").engine_config().num_blocks == 40_625


def test_roofline_of_a_dense_model():
    """Without experts the table makes linear layers max(compute, read)."""
    cost = load_profile("h200-sxm/qwen3-32b").step_cost()
    read = cost.weights[0]
    for tokens in (0, 1, 50, 179, 180, 5000):
        linear = cost.c_tok * tokens + cost.weights[min(tokens, len(cost.weights) - 1)]
        assert linear == pytest.approx(max(read, cost.c_tok * tokens), abs=tokens + 2)


def test_expected_experts():
    """One token touches its own experts; two overlap by chance; many touch all."""
    experts = Experts(layers=1, count=128, per_token=8, hidden_size=1, param_bytes=2)
    assert experts.expected_active(1) == 8
    assert experts.expected_active(2) == pytest.approx(8 + 8 * (1 - 8 / 128))
    assert experts.expected_active(1000) == pytest.approx(128)


def test_windowed_layers_cost_no_context():
    """Halving the full-attention layers halves the terms that grow with context."""
    profile = load_profile("h200-nvl/gpt-oss-120b")
    full = profile.model.model_copy(update={"sliding_window": 0, "sliding_layers": 0})
    windowed = profile.step_cost()
    unwindowed = derive(full, profile.gpu, profile.efficiency, profile.overhead)
    assert unwindowed.c_pair == pytest.approx(2 * windowed.c_pair, abs=1)
    assert unwindowed.m_ctx == pytest.approx(2 * windowed.m_ctx, abs=1)
    assert windowed.o_seq > unwindowed.o_seq
    assert windowed.c_tok > unwindowed.c_tok


def test_overrides():
    """Flags can be overridden; a new block size keeps the capacity in tokens."""
    profile = load_profile("h100-nvl/qwen3-coder-30b-a3b")
    assert profile.engine_config(policy="priority", max_num_seqs=8).max_num_seqs == 8
    assert profile.engine_config(block_size=32).num_blocks == 6875
    assert profile.engine_config(num_blocks=100).num_blocks == 100
    with pytest.raises(ConfigError, match=r"unknown engine field 'max_seqs'; did you mean"):
        profile.engine_config(max_seqs=8)


def test_unknown_name_says_the_closest():
    """A misspelt profile gets the closest known name."""
    with pytest.raises(ConfigError, match=r"did you mean 'h100-nvl/llama-3\.1-8b'"):
        load_profile("h100/llama-3.1-8b")


def test_profile_by_path(tmp_path):
    """A file of one's own is loaded by its path, with fitted coefficients if it has them."""
    path = tmp_path / "mine.yaml"
    data = {
        "name": "mine",
        "summary": "fitted",
        "coefficients": {
            "c_tok": 1,
            "c_pair": 2,
            "weights": [3],
            "m_ctx": 4,
            "o_step": 5,
            "o_seq": 6,
        },
        "engine": {
            "block_size": 16,
            "max_num_batched_tokens": 2048,
            "max_num_seqs": 8,
            "max_model_len": 4096,
        },
        "num_kv_tokens": 8000,
        "kv_source": "log",
        "sources": {"coefficients": "fit", "engine": "flags"},
    }
    path.write_text(yaml.safe_dump(data))
    assert load_profile(path).step_cost().to_dict() == data["coefficients"]
    assert load_profile(path).turn_cost() is None
    data["turn"] = {"fixed_us": 4000, "prompt_token_us": 0.5}
    data["sources"]["turn"] = "probes"
    path.write_text(yaml.safe_dump(data))
    # 4 ms and 2,000 tokens of 0.5 us
    assert load_profile(path).turn_cost().delay_ps(2000) == 5_000_000_000


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.update(speed=3), "speed: Extra inputs"),
        (lambda d: d["sources"].pop("gpu"), "sources.gpu is missing"),
        (lambda d: d.pop("gpu"), "needs model, gpu, efficiency and overhead, or coefficients"),
        (lambda d: d["gpu"].update(tflops=-1), "gpu.tflops: Input should be greater than 0"),
        (lambda d: d["gpu"].update(count=2), "gpu: link_gb_per_s is needed"),
        (lambda d: d["efficiency"].update(kv=1.5), "efficiency.kv: Input should be less than"),
        (lambda d: d.update(turn={"fixed_us": 1}), "sources.turn is missing"),
        (lambda d: d.update(turn={"fixed_us": -1}), "turn.fixed_us: Input should be greater"),
        (lambda d: d.update(num_kv_tokens=3), "less than one block"),
        (lambda d: d.update(coefficients={"c_tok": 1}), "keep one form"),
    ],
)
def test_wrong_profile_is_one_clear_line(tmp_path, edit, message):
    """A wrong field is named, with the file."""
    data = yaml.safe_load((PROFILES / "h100-nvl/llama-3.1-8b.yaml").read_text())
    edit(data)
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError, match=message) as caught:
        load_profile(path)
    assert "wrong.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_files(tmp_path):
    """No file, no YAML, or no mapping: one line each."""
    with pytest.raises(ConfigError, match="no such file"):
        load_profile(tmp_path / "none.yaml")
    path = tmp_path / "bad.yaml"
    path.write_text("a: [1")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_profile(path)
    path.write_text("- 1")
    with pytest.raises(ConfigError, match="must be a mapping"):
        load_profile(path)


# ---- host memory


def test_a_profile_says_what_copies_to_host_memory_take():
    """98,304 B of KV a token at 50 GB/s are 1.966 us; with two GPUs each copies its half."""
    link = load_profile("h100-nvl/qwen3-coder-30b-a3b").link_cost()
    assert link is not None
    assert link.h2d_token_ps == link.d2h_token_ps == 1_966_080
    assert link.latency_ps == 20_000_000
    assert link.token_bytes == 98_304
    two = load_profile("h200-nvl/qwen3-32b-tp2")
    model, pair = two.model, two.link_cost()
    assert model is not None
    assert pair is not None
    assert pair.h2d_token_ps == round(model.kv_bytes_per_token / 2 / 50e9 * 1e12)


def test_host_memory_holds_whole_chunks():
    """1 GiB per GPU holds as many chunks as its bytes, rounded up to pages, go into it."""
    profile = load_profile("h100-nvl/qwen3-coder-30b-a3b")
    assert profile.engine_config().host_chunks == 0
    assert profile.engine_config(1.0).host_chunks == (1 << 30) // (98_304 * 16)
    assert profile.engine_config(1.0, blocks_per_chunk=4).host_chunks == (1 << 30) // (98_304 * 64)
    two = load_profile("h200-nvl/qwen3-32b-tp2")
    assert two.model is not None
    per_block = two.model.kv_bytes_per_token * 16
    assert two.engine_config(1.0).host_chunks == (2 << 30) // per_block
    assert profile.engine_config(1.0, host_chunks=7).host_chunks == 7


def test_host_memory_that_cannot_be_is_one_line():
    """Too much, too little, and a profile that knows nothing of it."""
    profile = load_profile("h100-nvl/qwen3-coder-30b-a3b")
    with pytest.raises(ConfigError, match="256 GiB of host memory per GPU"):
        profile.engine_config(257.0)
    with pytest.raises(ConfigError, match="less than one chunk of 1600 tokens"):
        profile.engine_config(0.1, blocks_per_chunk=100)
    with pytest.raises(ConfigError, match="no `host` block"):
        load_profile("tiny-cpu").engine_config(1.0)
