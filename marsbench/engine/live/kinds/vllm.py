"""vLLM's API server: its command line, its metrics, its request fields, its scheduler hook."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

from marsbench.engine.base import EngineConfig
from marsbench.engine.live.kinds.base import SERVED_NAME, Launch, check_length, shared_words, told
from marsbench.engine.live.metrics import MetricNames
from marsbench.engine.live.request import CompletionRequest
from marsbench.engine.live.server import ServerCommand

SCHEDULER = "marsbench.engine.vllm.plugin.ServedScheduler"
SYNC_SCHEDULER = "marsbench.engine.vllm.plugin.SyncServedScheduler"


class Vllm:
    """How marsbench starts a vLLM server and speaks to it (a ``ServerKind``)."""

    name = "vllm"
    package = "vllm"
    metrics: MetricNames | None = MetricNames(
        prefix=b"vllm",
        summed={
            b"num_requests_running": "running",
            b"num_requests_waiting": "waiting",
            b"prefix_cache_queries_total": "queried_tokens",
            b"prefix_cache_hits_total": "hit_tokens",
            b"num_preemptions_total": "preemptions",
            b"prompt_tokens_total": "prompt_tokens",
            b"generation_tokens_total": "generated_tokens",
            b"iteration_tokens_total_count": "steps",
        },
        usage=(b"kv_cache_usage_perc", b"gpu_cache_usage_perc"),
        sizes=b"cache_config_info",
        num_blocks=b"num_gpu_blocks",
        block_size=b"block_size",
        unusable_blocks=1,  # the null block
    )
    hosts_policies = True

    def fields(self, request: CompletionRequest) -> dict[str, Any]:
        """Ask for exact output lengths and token ids, and say what a scheduler may know of the
        turn.
        """
        # NOTE: min_tokens would fix lengths too, by masking logits in every step: that costs time.
        body: dict[str, Any] = {"ignore_eos": True, "return_token_ids": True}
        if request.session_id:
            body["session_id"] = request.session_id
        if request.priority:
            body["priority"] = request.priority
        if request.hints:
            body["vllm_xargs"] = dict(request.hints)
        return body

    def command(self, launch: Launch) -> ServerCommand:
        """Return the command that starts vLLM's API server.

        It is ``python -m``, because CPU builds of vLLM are distributed under another name, which
        breaks the ``vllm`` console script.
        """
        check_length(launch.flags)
        options = launch.options
        on_cpu = options.on_cpu()
        extra = shlex.split(options.extra_flags)
        scheduler = options.scheduler_cls
        if launch.policies is not None:
            scheduler = scheduler or scheduler_for(extra)
            told_policies = {"marsbench": told(launch.policies, launch.link)}
            extra += ["--additional-config", json.dumps(told_policies)]
        argv = [
            *(str(launch.python), "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", launch.model, "--served-model-name", SERVED_NAME),
            *("--host", "127.0.0.1", "--port", str(launch.port)),
            *_engine_flags(launch.flags),
            *("--enable-prompt-tokens-details", "--enable-per-request-metrics"),
            "--no-enable-log-requests",
            *shared_words(options),
        ]
        if on_cpu:
            argv += ["--enforce-eager"]
        if scheduler:
            argv += ["--scheduler-cls", scheduler]
        env = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
        if launch.sockets:
            env["VLLM_RPC_BASE_PATH"] = launch.sockets  # vLLM leaves them behind when it ends
        if on_cpu:
            # NOTE: with a process of its own for the model, scheduler and worker each spin while they
            # wait for the other, and take half a core from whatever else runs there.
            env |= {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
            env["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(options.worker_process))
        url = f"http://127.0.0.1:{launch.port}"
        return ServerCommand((*argv, *extra), url, SERVED_NAME, env)

    def check_log(self, launch: Launch, log: str) -> None:
        """Do nothing: a vLLM that cannot load its scheduler class does not start."""


def scheduler_for(flags: Sequence[str]) -> str:
    """Return the scheduler class, as a dotted path, that goes with the other flags of a server."""
    return SYNC_SCHEDULER if "--no-async-scheduling" in flags else SCHEDULER


def _engine_flags(flags: EngineConfig) -> list[str]:
    found = [
        *("--block-size", str(flags.block_size)),
        *("--num-gpu-blocks-override", str(flags.num_blocks + 1)),  # one is vLLM's null block
        *("--max-num-batched-tokens", str(flags.max_num_batched_tokens)),
        *("--max-num-seqs", str(flags.max_num_seqs)),
        *("--max-model-len", str(flags.max_model_len)),
        *("--scheduling-policy", flags.policy),
        "--enable-prefix-caching" if flags.enable_prefix_caching else "--no-enable-prefix-caching",
    ]
    if flags.long_prefill_token_threshold:
        found += ["--long-prefill-token-threshold", str(flags.long_prefill_token_threshold)]
    return found
