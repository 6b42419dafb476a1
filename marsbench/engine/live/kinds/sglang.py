"""SGLang's API server: its command line, its metrics, its request fields, its plug-in."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from marsbench.engine.base import EngineConfig
from marsbench.engine.live.kinds.base import SERVED_NAME, Launch, check_length, shared_words, told
from marsbench.engine.live.metrics import MetricNames
from marsbench.engine.live.request import CompletionRequest
from marsbench.engine.live.server import ServerCommand
from marsbench.engine.sglang.flags import STARTED, VARIABLE, check, command_line, server_fields
from marsbench.errors import EngineError

SERVER = "sglang.launch_server"
ANNOUNCED = str(Path(__file__).resolve().parents[2] / "sglang" / "announced")
"""A folder whose metadata announces the plug-in: SGLang's environment need not have marsbench
installed, nor one whose installation is up to date."""
ON_CPU = (
    *("--device", "cpu", "--attention-backend", "torch_native"),
    "--disable-overlap-schedule",  # there is no other device to overlap with
    "--skip-server-warmup",  # the client has a warm-up of its own
    "--sleep-on-idle",  # else an idle scheduler spins on a core
)


class Sglang:
    """How marsbench starts an SGLang server and speaks to it (a ``ServerKind``)."""

    name = "sglang"
    package = "sglang"
    metrics: MetricNames | None = MetricNames(
        prefix=b"sglang",
        summed={
            b"num_running_reqs": "running",
            b"num_queue_reqs": "waiting",
            b"prefill_effective_tokens_total": "queried_tokens",
            b"cached_tokens_total": "hit_tokens",
            b"num_retracted_requests_total": "preemptions",
            b"prompt_tokens_total": "prompt_tokens",
            b"generation_tokens_total": "generated_tokens",
            b"cuda_graph_passes_total": "steps",  # all forward passes, those without a graph too
            b"num_pages": "num_blocks",
        },
        usage=(b"token_usage",),
        alike={b"page_size": "block_size"},
    )
    hosts_policies = True

    def fields(self, request: CompletionRequest) -> dict[str, Any]:
        """Ask for exact output lengths and token ids, and say what a scheduler may know of the
        turn.

        The priority is always told: a server that schedules by priorities puts requests without one
        last, and any other reads it and does nothing.
        """
        body: dict[str, Any] = {
            "ignore_eos": True,
            "return_token_ids": True,
            "priority": request.priority,
        }
        if request.session_id:
            body["session_id"] = request.session_id
        if request.hints:
            body["custom_params"] = dict(request.hints)
        return body

    def command(self, launch: Launch) -> ServerCommand:
        """Return the command of a plain SGLang server; with policies of ours inside, its plug-in is
        switched on.
        """
        check_flags(launch.flags)
        options = launch.options
        if options.scheduler_cls:
            raise EngineError(
                "engine sglang: SGLang takes no scheduler class (scheduler_cls is vLLM's); name a "
                "system with --system"
            )
        on_cpu = options.on_cpu()
        argv = [
            *(str(launch.python), "-m", SERVER),
            *("--model-path", launch.model, "--served-model-name", SERVED_NAME),
            *("--host", "127.0.0.1", "--port", str(launch.port)),
            *command_line(server_fields(launch.flags)),
            *("--enable-cache-report", "--enable-metrics", "--log-level-http", "warning"),
            *shared_words(options),
        ]
        # NOTE: SGLang's /health makes the model answer a request of one token, which a scheduler
        # would take for a session's; with this it says whether the server is up.
        env = {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0", VARIABLE: ""}
        if launch.policies is not None:
            env[VARIABLE] = json.dumps(told(launch.policies, launch.link))
        if on_cpu:
            argv += ON_CPU
            env |= {"SGLANG_USE_CPU_ENGINE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        extra = shlex.split(options.extra_flags)
        url = f"http://127.0.0.1:{launch.port}"
        return ServerCommand((*argv, *extra), url, SERVED_NAME, env, (ANNOUNCED,))

    def check_log(self, launch: Launch, log: str) -> None:
        """Raise EngineError if the plug-in is missing from the log: SGLang serves without one it
        could not load.
        """
        if launch.policies is not None and STARTED.partition("{")[0] not in log:
            raise EngineError(
                "SGLang started without the plug-in that runs the policies; its log says why (look "
                "for marsbench), and SGLANG_PLUGINS must not leave out marsbench"
            )


def check_flags(config: EngineConfig) -> None:
    """Raise EngineError for flags with which SGLang would not start, or would not do what they say."""
    check(config, "sglang")
    if config.enable_session_radix_cache:
        raise EngineError(
            "engine sglang: enable_session_radix_cache wants to be told when a session ends, which "
            "the client of live servers does not do; run it on --engine sglang-core"
        )
    if config.max_num_batched_tokens % config.block_size:
        raise EngineError(
            f"engine sglang: chunks of max_num_batched_tokens={config.max_num_batched_tokens} must "
            f"be whole pages of block_size={config.block_size}"
        )
    check_length(config)
