"""Backends' /metrics read into numbers, and the ``SystemView`` policies decide on."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from marsbench.gateway.sessions import LiveSession

HIT_WINDOW = 64
"""Turns over which the prefix cache hit rate is taken, as in the simulator."""

_GAUGES = {
    "vllm:kv_cache_usage_perc": "kv_use",
    "vllm:gpu_cache_usage_perc": "kv_use",
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:prefix_cache_queries_total": "queried_tokens",
    "vllm:prefix_cache_hits_total": "hit_tokens",
    "vllm:num_preemptions_total": "preemptions",
    "sglang:token_usage": "kv_use",
    "sglang:num_running_reqs": "running",
    "sglang:num_queue_reqs": "waiting",
}
_LINE = re.compile(r"^([a-z_]+:[a-z_]+)(?:\{([^}]*)\})?[ \t]+([0-9.eE+-]+)", re.MULTILINE)
_LABEL = re.compile(r'([a-z_]+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """One reading of a backend's /metrics; counters are totals since its start."""

    is_vllm: bool
    kv_use: float = 0.0
    """Share of KV blocks that running turns hold, mean over the backend's engines."""
    running: int = 0
    waiting: int = 0
    queried_tokens: int = 0
    hit_tokens: int = 0
    preemptions: int = 0
    num_blocks: int = 0
    """0 = not said."""
    block_size: int = 0


def read_metrics(text: str) -> EngineMetrics | None:
    """The numbers of a vLLM or SGLang /metrics page; None if it is neither."""
    found: dict[str, list[float]] = {}
    blocks = block_size = 0
    for name, labels, value in _LINE.findall(text):
        if name in _GAUGES:
            found.setdefault(_GAUGES[name], []).append(float(value))
        elif name == "vllm:cache_config_info":
            config = dict(_LABEL.findall(labels))
            blocks += _whole(config.get("num_gpu_blocks", ""))
            block_size = _whole(config.get("block_size", "")) or block_size
    if not found:
        return None
    total = {name: sum(values) for name, values in found.items()}
    use = found.get("kv_use", [0.0])
    return EngineMetrics(
        is_vllm="vllm:num_requests_running" in text,
        kv_use=sum(use) / len(use),
        running=round(total.get("running", 0)),
        waiting=round(total.get("waiting", 0)),
        queried_tokens=round(total.get("queried_tokens", 0)),
        hit_tokens=round(total.get("hit_tokens", 0)),
        preemptions=round(total.get("preemptions", 0)),
        num_blocks=blocks,
        block_size=block_size,
    )


def _whole(text: str) -> int:
    return int(text) if text.isdigit() else 0


class ToolCounts(Protocol):
    """What the telemetry needs to know about tools."""

    @property
    def running(self) -> int: ...
    @property
    def queued(self) -> int: ...


@dataclass(slots=True)
class Shared:
    """What all views of one gateway read from."""

    active: dict[int, LiveSession]
    """Admitted, unfinished sessions in order of admission."""
    tools: ToolCounts
    tool_cores: int
    hits: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=HIT_WINDOW))
    """(cached, prompt) tokens of the last turns whose backend said so."""


class SharedView:
    """What a policy sees of the tools and of retention, whichever backends it looks at."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    @property
    def pinned_blocks(self) -> int:
        """Not visible from outside an engine: counted as referenced there."""
        return 0

    @property
    def tool_cores(self) -> int:
        """Of the gateway's tool pool; 0 = unlimited."""
        return self._shared.tool_cores

    @property
    def tools_running(self) -> int:
        """Calls that run."""
        return self._shared.tools.running

    @property
    def tools_queued(self) -> int:
        """Calls that wait for a slot."""
        return self._shared.tools.queued


class ReplicaView(SharedView):
    """One backend as a policy sees it (``marsbench.admission.base.SystemView``).

    Blocks that turns sent since the last reading will need are counted as taken, since the reading
    does not show them yet. Without /metrics, running turns' contexts stand for the use of memory.
    """

    def __init__(self, index: int, shared: Shared, num_blocks: int, block_size: int) -> None:
        super().__init__(shared)
        self.index = index
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.metrics: EngineMetrics | None = None
        self.submitted_blocks = 0
        """Of turns sent since the last reading."""
        self.in_flight = 0
        """Turns sent and not finished."""
        self._hit_rate: float | None = None

    def update(self, metrics: EngineMetrics | None) -> None:
        """Take in a reading."""
        before, self.metrics = self.metrics, metrics
        self.submitted_blocks = 0
        if metrics is None:
            return
        if metrics.num_blocks:
            self.num_blocks = metrics.num_blocks
            self.block_size = metrics.block_size or self.block_size
        if before is not None and metrics.queried_tokens > before.queried_tokens:
            hits = metrics.hit_tokens - before.hit_tokens
            self._hit_rate = hits / (metrics.queried_tokens - before.queried_tokens)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.block_size)

    @property
    def free_blocks(self) -> int:
        """Unreferenced blocks."""
        if self.metrics is not None:
            free = round((1.0 - self.metrics.kv_use) * self.num_blocks) - self.submitted_blocks
        else:
            held = (s for s in self.active if s.phase == "engine")
            free = self.num_blocks - sum(self.blocks_for(s.prompt_tokens) for s in held)
        return max(0, min(free, self.num_blocks))

    @property
    def num_running(self) -> int:
        """Turns running in the engine."""
        if self.metrics is None:
            return self.in_flight
        return self.metrics.running

    @property
    def num_waiting(self) -> int:
        """Turns waiting in the engine."""
        return 0 if self.metrics is None else self.metrics.waiting

    @property
    def active(self) -> Sequence[LiveSession]:
        """Sessions on this backend, in order of admission."""
        return [s for s in self._shared.active.values() if s.backend == self.index]

    @property
    def prefix_cache_hit_rate(self) -> float:
        """From the token counts of the last replies, else from the backend's counters."""
        return hit_rate(self._shared.hits, self._hit_rate)

    @property
    def counted_hit_rate(self) -> float | None:
        """Between the last two readings of the backend's counters."""
        return self._hit_rate


class FleetView(SharedView):
    """All backends as one system."""

    def __init__(self, replicas: Sequence[ReplicaView], shared: Shared) -> None:
        super().__init__(shared)
        self.replicas = replicas

    @property
    def block_size(self) -> int:
        """Of the first backend; the fleet is taken to be alike."""
        return self.replicas[0].block_size

    @property
    def num_blocks(self) -> int:
        """Of all backends."""
        return sum(replica.num_blocks for replica in self.replicas)

    @property
    def free_blocks(self) -> int:
        """Of all backends."""
        return sum(replica.free_blocks for replica in self.replicas)

    @property
    def num_running(self) -> int:
        """On all backends."""
        return sum(replica.num_running for replica in self.replicas)

    @property
    def num_waiting(self) -> int:
        """On all backends."""
        return sum(replica.num_waiting for replica in self.replicas)

    @property
    def active(self) -> Sequence[LiveSession]:
        """Admitted, unfinished sessions in order of admission."""
        return list(self._shared.active.values())

    @property
    def prefix_cache_hit_rate(self) -> float:
        """Token-weighted, over the last turns."""
        rates = [r.counted_hit_rate for r in self.replicas if r.counted_hit_rate is not None]
        return hit_rate(self._shared.hits, sum(rates) / len(rates) if rates else None)


def hit_rate(
    hits: Sequence[tuple[int, int]] | deque[tuple[int, int]], counted: float | None
) -> float:
    """Token-weighted rate; 1.0 before anything is known."""
    prompt = sum(hit[1] for hit in hits)
    if prompt:
        return sum(hit[0] for hit in hits) / prompt
    return 1.0 if counted is None else counted
