"""The telemetry of a run: engine and tools as a gateway can poll them, for policies and the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from marsbench.core import PS_PER_S
from marsbench.engine.base import EngineCore
from marsbench.engine.sessions import SessionState

if TYPE_CHECKING:
    from marsbench.engine.driver import Driver

SAMPLE_PS = 5 * PS_PER_S
"""Least time between two telemetry samples in the log."""

KvSample = tuple[int, int, int, int, int, int]
"""Payload of KV_STATS."""
CpuSample = tuple[int, int, int, int]
"""Payload of CPU_STATS."""


class Telemetry:
    """Engine and tools as a gateway sees them (``admission.base.SystemView``)."""

    def __init__(self, driver: Driver, core: EngineCore, tool_cores: int) -> None:
        self._driver = driver
        self._core = core
        self.block_size = core.view.block_size
        self.num_blocks = core.view.num_blocks
        self.tool_cores = tool_cores
        self._sampled_ps = 0
        self._referenced_block_ps = 0
        self._evicted_blocks = 0

    @property
    def free_blocks(self) -> int:
        """Unreferenced blocks."""
        return self._core.view.free_blocks

    @property
    def pinned_blocks(self) -> int:
        """Blocks held by retention."""
        return self._core.view.pinned_blocks

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
        return list(self._driver.active.values())

    @property
    def tools_running(self) -> int:
        """Calls that run."""
        return self._driver.tools.running

    @property
    def tools_queued(self) -> int:
        """Calls that wait for a slot."""
        return len(self._driver.tool_queue)

    @property
    def prefix_cache_hit_rate(self) -> float:
        """Token-weighted, over the last turns scheduled."""
        cached, prompt = self._driver.recent_hits()
        return cached / prompt if prompt else 1.0

    def sample(self, now_ps: int) -> tuple[KvSample, CpuSample]:
        """Engine and tools now, and what they did since the last sample."""
        driver, core = self._driver, self._core
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
        tools = driver.tools
        cpu = (
            tools.running,
            len(driver.tool_queue),
            tools.busy_core_ps(now_ps),
            stats.busy_ps,
        )
        self._sampled_ps = now_ps
        self._referenced_block_ps = stats.referenced_block_ps
        self._evicted_blocks = stats.evicted_blocks
        return kv, cpu
