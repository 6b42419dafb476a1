"""What must be known of SGLang without importing it: versions, and flags as it names them.

The flags are the same for its scheduler alone and for its server.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from marsbench.engine.base import EngineConfig
from marsbench.errors import EngineError

SUPPORTED = ("0.5.23",)
SUPPORTED_TEXT = "sglang==" + " or ".join(SUPPORTED)

VARIABLE = "MARSBENCH_SGLANG"
"""Environment variable that tells the plug-in which policies to run; see ``plugin``."""
STARTED = "marsbench: system {system} inside SGLang {version}"
"""What a scheduler with policies inside says in the server's log once it has them."""

LOOK_TIMEOUT_S = 60.0
LOOK = """
import importlib.metadata as m, importlib.util as u, json
def version(*names):
    for name in names:
        try:
            return m.version(name)
        except m.PackageNotFoundError:
            pass
kernels = u.find_spec("sgl_kernel") and (version("sglang-kernel", "sgl-kernel") or "for CPU tests")
print(json.dumps([version("sglang") or "", kernels]))
"""
"""Run by the environment's own interpreter; imports nothing heavy."""

Flag = bool | int | str | dict[str, int] | None

MAX_PREFILL_TOKENS = 16384
"""SGLang's default of ``--max-prefill-tokens``; a larger chunk raises it."""

UNKNOWN_FLAGS = {
    "long_prefill_token_threshold": 0,
    "long_prefill_token_threshold_adaptive": False,
    "scheduler_reserve_full_isl": True,
}
"""Flags of vLLM that SGLang has nothing for, and the values that ask for nothing."""


class Found(NamedTuple):
    """The versions of SGLang and of its kernels that an environment has."""

    version: str
    kernels: str | None
    """Version of SGLang's kernels, or that a stand-in is there; None: nothing is."""


def look_into(python: Path) -> Found:
    """Ask the interpreter of an environment that has SGLang; EngineError if it does not answer."""
    try:
        done = subprocess.run(  # noqa: S603 - the interpreter is the user's choice
            [python, "-c", LOOK], capture_output=True, text=True, timeout=LOOK_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise EngineError(f"cannot run {python}: {error}") from error
    return Found(*json.loads(done.stdout))


def check(config: EngineConfig, engine: str) -> None:
    """Raise EngineError for flags that SGLang has nothing for, in the name of an engine of ours."""
    if config.host_chunks:
        raise EngineError(
            f"engine {engine}: SGLang's host tier is not wired up here, so KV that leaves the GPU is "
            "lost: run with --host-kv 0"
        )
    for name, neutral in UNKNOWN_FLAGS.items():
        if getattr(config, name) != neutral:
            raise EngineError(f"engine {engine}: SGLang has no {name}; leave it at {neutral}")


def server_fields(config: EngineConfig) -> dict[str, Flag]:
    """Return the fields of SGLang's ServerArgs that say what ``config`` says. All others keep their
    defaults.
    """
    priority = config.policy == "priority"
    tlru = config.radix_eviction_policy == "tlru"
    chunk = config.max_num_batched_tokens
    return {
        "context_length": config.max_model_len,
        "max_total_tokens": config.num_blocks * config.block_size,
        "page_size": config.block_size,
        "max_running_requests": config.max_num_seqs,
        "chunked_prefill_size": chunk,
        "max_prefill_tokens": max(MAX_PREFILL_TOKENS, chunk),
        "prefill_decode_interval": config.prefill_decode_interval,
        "schedule_policy": config.schedule_policy,
        "enable_priority_scheduling": priority,
        "schedule_low_priority_values_first": priority,
        "retraction_policy": config.retraction_policy,
        "radix_eviction_policy": config.radix_eviction_policy,
        "radix_eviction_policy_config": (
            {
                "threshold": config.tlru_threshold,
                "next_prompt_estimate": config.tlru_next_prompt_estimate,
            }
            if tlru
            else None
        ),
        "enable_session_radix_cache": config.enable_session_radix_cache,
        "disable_radix_cache": not config.enable_prefix_caching,
    }


def command_line(given: Mapping[str, Flag]) -> list[str]:
    """Write fields of ServerArgs as words of ``python -m sglang.launch_server``."""
    words: list[str] = []
    for name, value in given.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif isinstance(value, dict):
            words += [flag, json.dumps(value)]
        elif value is not None and value is not False:
            words += [flag, str(value)]
    return words
