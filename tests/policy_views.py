"""Views that policies see, with defaults for what a test ignores: one engine of 16,000 tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from marsbench.core import PolicyContext


@dataclass(frozen=True)
class Turn:
    """A turn in an engine."""

    session: int = 0
    turn_index: int = 0
    session_arrival_s: float = 0.0
    ready_s: float = 0.0
    sequence: int = 0
    prompt_tokens: int = 1000
    computed_tokens: int = 0
    generated_tokens: int = 0
    num_blocks: int = 0
    num_preemptions: int = 0
    last_scheduled_s: float = 0.0


@dataclass(frozen=True)
class Host:
    """Host memory; ``held`` maps a session to its leading tokens there. 1 s loads 100,000 tokens."""

    num_blocks: int = 2000
    used_blocks: int = 0
    held: Mapping[int, int] | tuple[tuple[int, int], ...] = ()

    def tokens(self, session: int) -> int:
        return dict(self.held).get(session, 0)

    def load_s(self, tokens: int) -> float:
        return tokens / 100_000


@dataclass(frozen=True)
class Engine:
    """An engine; ``cached`` maps a session to its prefix hit."""

    block_size: int = 16
    num_blocks: int = 1000
    free_blocks: int = 1000
    pinned_blocks: int = 0
    host: Host | None = None
    waiting: tuple[Turn, ...] = ()
    running: tuple[Turn, ...] = ()
    cached: Mapping[int, int] | tuple[tuple[int, int], ...] = ()

    def cached_tokens(self, turn: Turn) -> int:
        return dict(self.cached).get(turn.session, 0)


@dataclass(frozen=True)
class Pin:
    """Retained KV."""

    session: int = 0
    turn_index: int = 0
    num_blocks: int = 10
    context_tokens: int = 1000
    since_s: float = 0.0
    until_s: float = 10.0
    returned: bool = False


@dataclass(frozen=True)
class Sess:
    """A session at the gate."""

    session: int = 0
    arrival_s: float = 0.0
    turn_index: int = 0
    prompt_tokens: int = 1000
    context_tokens: int = 1000
    served_tokens: int = 0
    phase: str = "pending"
    phase_since_s: float = 0.0
    is_child: bool = False


@dataclass(frozen=True)
class Sys:
    """Telemetry."""

    active: tuple[Sess, ...] = ()
    block_size: int = 16
    num_blocks: int = 1000
    free_blocks: int = 1000
    pinned_blocks: int = 0
    host: Host | None = None
    num_running: int = 0
    num_waiting: int = 0
    tool_cores: int = 0
    tools_running: int = 0
    tools_queued: int = 0
    prefix_cache_hit_rate: float = 1.0


def context(**changes: Any) -> PolicyContext:
    """A deployment with 16,000 tokens of KV that prefills 1000 tokens/s and decodes 50/s."""
    params = changes.pop("params", {})
    base: dict[str, Any] = {
        "num_blocks": 1000,
        "block_size": 16,
        "max_num_batched_tokens": 8192,
        "max_num_seqs": 256,
        "tool_cores": 0,
        "prefill_tokens_per_s": 1000.0,
        "decode_step_s": 0.02,
    }
    return PolicyContext(**{**base, **changes}, params=params)
