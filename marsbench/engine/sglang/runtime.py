"""Finds the installed SGLang, checks its version and builds its scheduler without a server."""

from __future__ import annotations

import contextlib
import gc
import importlib
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
from marsbench.engine.sglang.clock import install
from marsbench.engine.sglang.flags import SUPPORTED, SUPPORTED_TEXT, server_fields
from marsbench.errors import EngineError

ANY = "MARSBENCH_SGLANG_ANY"
"""Environment variable that lets any version in: for scripts/check_sglang.py, and for who has run it."""

NEVER_S = 1e7
"""Seconds after which SGLang's watchdog looks at its scheduler."""

TINY_MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "head_dim": 16,
    "intermediate_size": 16,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "num_hidden_layers": 1,
    "vocab_size": 64,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
    "eos_token_id": -1,  # no token of ours is: each answer ends where it was recorded to end
}
"""A model with a few made-up weights, which is loaded and never run."""

VOCABULARY = 1 << 62
"""Token ids SGLang is told to take for real: ours only have to tell contents apart."""


def installed_version() -> str | None:
    """Return the version of the installed SGLang; None if there is none."""
    try:
        return metadata.version("sglang")
    except metadata.PackageNotFoundError:
        return None


def require_sglang(who: str = "engine sglang-core") -> str:
    """Return the installed version; EngineError that says what to install, in the name of ``who``,
    if it is none of those supported.
    """
    version = installed_version()
    if version is None:
        raise EngineError(
            f"{who} needs SGLang, which is not installed here: run "
            "scripts/setup_sglang_cpu.sh, which makes .venv-sglang"
        )
    if version not in SUPPORTED and not os.environ.get(ANY):
        raise EngineError(
            f"{who} supports {SUPPORTED_TEXT}, installed is {version}: run "
            "scripts/setup_sglang_cpu.sh"
        )
    return version


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Set the environment for a block that builds something of SGLang: its CPU platform, no
    downloads, one architecture, no chatter about kernels that never run here.
    """
    os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
    os.environ.setdefault("SGLANG_EXTERNAL_MODEL_PACKAGE", "marsbench.engine.sglang.models")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def server_arguments(config: EngineConfig, model: str) -> Any:
    """Return SGLang's ServerArgs for the flags of an engine."""
    from sglang.srt.server_args import ServerArgs

    return ServerArgs(
        **server_fields(config),
        model_path=model,
        skip_tokenizer_init=True,
        load_format="dummy",
        device="cpu",
        attention_backend="torch_native",
        disable_overlap_schedule=True,
        watchdog_timeout=NEVER_S,
        random_seed=0,
        log_level="error",
    )


class Runtime:
    """A scheduler of SGLang and the process-wide configuration it reads while it works."""

    def __init__(self, config: EngineConfig) -> None:
        from sglang.srt.runtime_context import SpawnRanks, create_context, use_context
        from sglang.srt.server_args import PortArgs

        from marsbench.engine.sglang.scheduler import EmbeddedScheduler

        self._use_context = use_context
        with _folder() as folder:
            described = {**TINY_MODEL, "max_position_embeddings": config.max_model_len}
            Path(folder, "config.json").write_text(json.dumps(described), encoding="utf-8")
            arguments = server_arguments(config, folder)
            ports = PortArgs.init_new(arguments)
            ranks = SpawnRanks(world_rank=0, dp_rank=None, gpu_id=0)
            self.context = create_context(arguments, role="scheduler", ranks=ranks)
            with _process_groups(self.context.parallel), use_context(self.context):
                self.scheduler = EmbeddedScheduler(arguments, ports)
        self.scheduler.model_config.vocab_size = VOCABULARY
        install()

    def active(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which the scheduler is to be asked anything, because its
        configuration holds only there.
        """
        manager: contextlib.AbstractContextManager[Any] = self._use_context(self.context)
        return manager


_GROUPS: dict[str, Any] = {}
"""Process groups of one process each, by the name SGLang knows them under."""


@contextlib.contextmanager
def _process_groups(parallel: Any) -> Iterator[None]:
    """A process makes them once, with its first scheduler; later ones are given the same."""
    from sglang.srt.distributed import bootstrap

    if _GROUPS:
        parallel.override_permanently(**_GROUPS)
        bootstrap.init_parallel_runtime = lambda **_: None
    else:  # SGLang collects garbage while it builds: not again all that was imported
        gc.collect()
        gc.freeze()
    yield
    found = parallel._stamp.items()  # noqa: SLF001 - nothing public lists them
    _GROUPS.update({name: value for name, value in found if name.endswith("group")})


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    """A folder for the model's description and SGLang's socket files, which are not used."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="marsbench-sglang-") as folder:
        tempfile.tempdir = folder
        try:
            yield folder
        finally:
            tempfile.tempdir = before


def build(config: EngineConfig) -> Runtime:
    """Build SGLang's scheduler over the KV cache of ``config``; EngineError if it refuses the
    flags.
    """
    with quietly():
        try:
            importlib.import_module("sglang.srt.managers.scheduler")
        except (ImportError, RuntimeError, OSError) as error:
            raise EngineError(
                f"the installed SGLang cannot be imported ({error}): run scripts/setup_sglang_cpu.sh, "
                "which installs what its CPU platform needs"
            ) from error
        try:
            return Runtime(config)
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise EngineError(f"SGLang refuses the engine flags: {reason}") from error
