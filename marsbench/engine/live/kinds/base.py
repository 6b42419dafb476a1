"""What marsbench must know of one kind of inference server: everything that differs between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from marsbench.engine.base import EngineConfig
from marsbench.engine.live.metrics import MetricNames
from marsbench.engine.live.options import LiveOptions
from marsbench.engine.live.request import CompletionRequest
from marsbench.engine.live.server import ServerCommand
from marsbench.engine.plan import Identity
from marsbench.errors import EngineError

SERVED_NAME = "marsbench"
"""What a server that we start calls its model."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How a server is to be started."""

    python: Path
    """Interpreter of an environment that has the server's package."""
    model: str
    """Folder or name of the weights."""
    flags: EngineConfig
    options: LiveOptions
    port: int
    policies: Identity | None = None
    """The system whose engine-side policies run inside the server; None: the server's own."""
    link: Mapping[str, str] = field(default_factory=dict)
    """Addresses at which those policies hear of what happens outside, and tell what they do."""
    sockets: str = ""
    """Folder for sockets between the server's processes; empty: where the server likes."""


class ServerKind(Protocol):
    """One kind of server. A new kind is one file here and one line in ``marsbench.engine``."""

    @property
    def name(self) -> str:
        """As in ``--engine``."""
        ...

    @property
    def package(self) -> str:
        """Python package that holds the server; empty if marsbench cannot start one."""
        ...

    @property
    def metrics(self) -> MetricNames | None:
        """How its ``/metrics`` page names things; None if it is not known to have one."""
        ...

    @property
    def hosts_policies(self) -> bool:
        """Whether a system's engine-side policies can run inside a server that we start."""
        ...

    def fields(self, request: CompletionRequest) -> dict[str, Any]:
        """Return the fields of a completion request beyond the OpenAI API."""
        ...

    def command(self, launch: Launch) -> ServerCommand:
        """Return how to start a server; EngineError for flags with which it would not start."""
        ...

    def check_log(self, launch: Launch, log: str) -> None:
        """Raise EngineError if a server that is ready is not what was to be started, as its log
        tells.
        """
        ...


def told(policies: Identity, link: Mapping[str, str]) -> dict[str, Any]:
    """Return what a server with policies of ours inside is told: the system, and where to listen
    and tell.
    """
    return {
        "system": policies.system,
        "profile": policies.profile,
        "params": dict(policies.params),
        "tool_cores": policies.tool_cores,
        "seed": policies.seed,
        **link,
    }


def shared_words(options: LiveOptions) -> list[str]:
    """Return the words of a command line that vLLM and SGLang have alike: streams and made-up weights."""
    words = []
    if options.stream_interval != 1:
        words += ["--stream-interval", str(options.stream_interval)]
    if options.random_weights or not options.model:
        words += ["--load-format", "dummy"]
    return words


def check_length(config: EngineConfig) -> None:
    """Raise EngineError if a turn of the model's length does not fit the KV cache alone.

    Neither vLLM nor SGLang starts with such flags.
    """
    kv_tokens = config.num_blocks * config.block_size
    if config.max_model_len > kv_tokens:
        raise EngineError(
            f"max_model_len={config.max_model_len} does not fit {config.num_blocks} KV blocks of "
            f"{config.block_size}, so the server will not start; add engine.params "
            f"max_model_len={kv_tokens} or more num_blocks"
        )
