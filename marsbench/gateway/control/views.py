"""Backends' /metrics read into numbers, and the ``SystemView`` policies decide on."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

from marsbench.admission.base import SessionView
from marsbench.core import HostView, Phase
from marsbench.engine import ENGINES
from marsbench.engine.kind import ServerEngine, attribute
from marsbench.engine.life import SessionState
from marsbench.engine.live.kinds.base import ServerKind
from marsbench.engine.live.metrics import ServerMetrics, parse_metrics

HIT_WINDOW = 64
"""Turns over which the prefix cache hit rate is taken, as in the simulator."""


def read_metrics(page: bytes) -> tuple[str, ServerMetrics] | None:
    """Return the kind of server that a /metrics page is of, and its numbers; None if it is of none
    known.
    """
    for kind in metered_kinds():
        assert kind.metrics is not None
        found = parse_metrics(page, kind.metrics)
        if found is not None:
            return kind.name, found
    return None


@cache
def metered_kinds() -> tuple[ServerKind, ...]:
    """Return the kinds of servers whose /metrics page is known."""
    found = [
        attribute(kind.server)() for kind in ENGINES.values() if isinstance(kind, ServerEngine)
    ]
    return tuple(kind for kind in found if kind.metrics is not None)


class ToolCounts(Protocol):
    """What the telemetry needs to know about tools."""

    @property
    def running(self) -> int: ...
    @property
    def queued(self) -> int: ...


@dataclass(slots=True)
class Shared:
    """What all views of one gateway read from."""

    active: Mapping[int, SessionState]
    """Admitted, unfinished sessions in order of admission."""
    tools: ToolCounts
    tool_cores: int
    homes: dict[int, int] = field(default_factory=dict)
    """Session -> index of its backend."""
    hits: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=HIT_WINDOW))
    """(cached, prompt) tokens of the last turns whose backend said so."""


class SharedView:
    """What a policy sees of the tools and of retention, whichever backends it looks at."""

    host: HostView | None = None
    """No server tells from outside what its host memory holds."""

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
    """One backend as a policy sees it (``marsbench.routing.base.RoutableReplica``).

    Blocks that turns sent since the last reading will need are counted as taken, since the reading
    does not show them yet. Without /metrics, running turns' contexts stand for the use of memory.
    """

    def __init__(self, index: int, shared: Shared, num_blocks: int, block_size: int) -> None:
        super().__init__(shared)
        self.index = index
        self.replicas: Sequence[ReplicaView] = ()
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.metrics: ServerMetrics | None = None
        self.submitted_blocks = 0
        """Of turns sent since the last reading."""
        self.in_flight = 0
        """Turns sent and not finished."""
        self.told_pinned_blocks = -1
        """Blocks that the backend's plug-in has pinned, as it says itself; -1 = it says nothing. For
        operators: to policies a pinned block is one that is not free."""
        self._hit_rate: float | None = None

    def update(self, metrics: ServerMetrics | None) -> None:
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
        """Return the number of blocks that hold so many tokens."""
        return -(-tokens // self.block_size)

    @property
    def free_blocks(self) -> int:
        """Unreferenced blocks."""
        if self.metrics is not None:
            free = round((1.0 - self.metrics.kv_usage) * self.num_blocks) - self.submitted_blocks
        else:
            held = (s for s in self.active if s.phase == Phase.ENGINE)
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
    def active(self) -> Sequence[SessionState]:
        """Sessions on this backend, in order of admission."""
        homes, index = self._shared.homes, self.index
        return [s for s in self._shared.active.values() if homes.get(s.session) == index]

    @property
    def sessions(self) -> int:
        """Unfinished sessions on this backend."""
        return len(self.active)

    @property
    def prefill_tokens(self) -> int:
        """New tokens of the turns in flight: when their first token came is not kept."""
        flying = (s for s in self.active if s.phase == Phase.ENGINE)
        return sum(s.prompt_tokens - self.cached_tokens(s) for s in flying)

    @property
    def context_tokens(self) -> int:
        """Prompt tokens of the turns in flight."""
        return sum(s.prompt_tokens for s in self.active if s.phase == Phase.ENGINE)

    def cached_tokens(self, turn: SessionView) -> int:
        """Return what the session left at this replica, if its last turn was here. Backends tell no
        KV events.
        """
        here = turn.turn_index > 0 and self._shared.homes.get(turn.session) == self.index
        return min(turn.context_tokens, turn.prompt_tokens) if here else 0

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
    def active(self) -> Sequence[SessionState]:
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
    """Return the token-weighted hit rate; 1.0 before anything is known."""
    prompt = sum(hit[1] for hit in hits)
    if prompt:
        return sum(hit[0] for hit in hits) / prompt
    return 1.0 if counted is None else counted
