"""The telemetry of a run: engine and tools as a gateway can poll them, for policies and the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from marsbench.admission.base import SystemView
from marsbench.core import PS_PER_S, HostView
from marsbench.engine.base import EngineCore
from marsbench.engine.life import CallState, Life, SessionState
from marsbench.events import Kind
from marsbench.tools.base import ToolModel

Sample = tuple[Kind, tuple[int, ...]]
"""An event of telemetry and its payload."""


class Replicas(Protocol):
    """The engines that a core is made of."""

    @property
    def views(self) -> Sequence[SystemView]:
        """Those that live."""
        ...

    def samples(self) -> list[Sample]:
        """Return the telemetry of each replica."""
        ...


class Alone:
    """A core that is one engine, and has no replicas to sample."""

    views: Sequence[SystemView] = ()

    def samples(self) -> list[Sample]:
        """Return no sample: a single engine's own telemetry says it all."""
        return []


SAMPLE_PS = 5 * PS_PER_S
"""Least time between two telemetry samples in the log."""


class Telemetry:
    """Engine and tools as a gateway sees them (``admission.base.SystemView``)."""

    def __init__(
        self,
        life: Life,
        core: EngineCore,
        tools: ToolModel,
        tool_queue: Sequence[CallState],
        tool_cores: int,
        replicas: Replicas,
    ) -> None:
        self._life = life
        self._core = core
        self._tools = tools
        self._tool_queue = tool_queue
        self.block_size = core.view.block_size
        self.tool_cores = tool_cores
        self._replicas = replicas
        self._sampled_ps = 0
        self._referenced_block_ps = 0
        self._evicted_blocks = 0

    @property
    def num_blocks(self) -> int:
        """KV blocks of the engine."""
        return self._core.view.num_blocks

    @property
    def replicas(self) -> Sequence[SystemView]:
        """The engines one by one; none where there is one."""
        return self._replicas.views

    @property
    def free_blocks(self) -> int:
        """Unreferenced blocks."""
        return self._core.view.free_blocks

    @property
    def pinned_blocks(self) -> int:
        """Blocks held by retention."""
        return self._core.view.pinned_blocks

    @property
    def host(self) -> HostView | None:
        """Host memory for KV, if there is any."""
        return self._core.view.host

    @property
    def num_running(self) -> int:
        """Turns running in the engine."""
        return len(self._core.view.running)

    @property
    def num_waiting(self) -> int:
        """Turns waiting in the engine."""
        return len(self._core.view.waiting)

    @property
    def active(self) -> Sequence[SessionState]:
        """Admitted, unfinished sessions in order of admission."""
        return list(self._life.active.values())

    @property
    def tools_running(self) -> int:
        """Calls that run."""
        return self._tools.running

    @property
    def tools_queued(self) -> int:
        """Calls that wait for a slot."""
        return len(self._tool_queue)

    @property
    def prefix_cache_hit_rate(self) -> float:
        """Token-weighted, over the last turns scheduled."""
        cached, prompt = self._life.recent_hits()
        return cached / prompt if prompt else 1.0

    def samples(self, now_ps: int) -> list[Sample]:
        """Return the state of engine and tools now, and what they did since the last sample."""
        core, tools = self._core, self._tools
        stats, view = core.stats, core.view
        span_ps = now_ps - self._sampled_ps
        referenced = stats.referenced_block_ps - self._referenced_block_ps
        told = stats.evicted_blocks >= 0  # -1: a live server does not say
        evicted = stats.evicted_blocks - self._evicted_blocks if told else -1
        free = view.free_blocks
        held = view.num_blocks - free
        pinned = min(view.pinned_blocks, held)
        mean_referenced = referenced * 1000 // span_ps if span_ps > 0 else 0
        kv = (free, held - pinned, pinned, core.cached_blocks(), mean_referenced, evicted)
        cpu = (
            tools.running,
            len(self._tool_queue),
            tools.busy_core_ps(now_ps),
            stats.busy_ps,
        )
        self._sampled_ps = now_ps
        self._referenced_block_ps = stats.referenced_block_ps
        self._evicted_blocks = stats.evicted_blocks
        found: list[Sample] = [(Kind.KV_STATS, kv), (Kind.CPU_STATS, cpu)]
        if stats.tier is not None:
            found.append((Kind.HOST_STATS, stats.tier.host_sample()))
            found.append((Kind.LINK_STATS, stats.tier.link_sample()))
        return found + self._replicas.samples()
