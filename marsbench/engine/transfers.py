"""The link between GPU and host memory: one channel each way, copies one after the other on each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from marsbench.core import to_s
from marsbench.engine.base import EngineConfig, TierStats
from marsbench.engine.cost import LinkCost, StepCost
from marsbench.errors import EngineError

Job = TypeVar("Job")


class Channel(Generic[Job]):
    """Copies in one direction, first come first served; both directions run at once."""

    def __init__(self, block_ps: int, latency_ps: int) -> None:
        self._block_ps = block_ps
        self._latency_ps = latency_ps
        self._free_at_ps = 0
        self._copies: deque[tuple[int, Job]] = deque()
        self.busy_ps = 0
        self.blocks = 0

    def submit(self, job: Job, blocks: int, now_ps: int) -> int:
        """Queue a copy of ``blocks`` blocks; returns when it will be done."""
        start_ps = max(now_ps, self._free_at_ps)
        took_ps = self._latency_ps + blocks * self._block_ps
        self._free_at_ps = start_ps + took_ps
        self.busy_ps += took_ps
        self.blocks += blocks
        self._copies.append((self._free_at_ps, job))
        return self._free_at_ps

    @property
    def next_done_ps(self) -> int | None:
        """When the next copy is done; None if there is none."""
        return self._copies[0][0] if self._copies else None

    def take_done(self, now_ps: int) -> list[Job]:
        """Return the copies that are done by now and were not taken before, in order."""
        done: list[Job] = []
        while self._copies and self._copies[0][0] <= now_ps:
            done.append(self._copies.popleft()[1])
        return done


class HostLink(Generic[Job]):
    """Both channels between a core's GPU and its host memory."""

    def __init__(self, link: LinkCost, block_size: int) -> None:
        self.d2h: Channel[Job] = Channel(link.d2h_token_ps * block_size, link.latency_ps)
        self.h2d: Channel[Job] = Channel(link.h2d_token_ps * block_size, link.latency_ps)

    def next_done_ps(self) -> int | None:
        """Return when the next copy in either direction is done; None if none is under way."""
        times = [c.next_done_ps for c in (self.d2h, self.h2d) if c.next_done_ps is not None]
        return min(times, default=None)


class TierView:
    """A core's host memory as policies see it (``core.HostView``)."""

    def __init__(
        self,
        config: EngineConfig,
        link: LinkCost,
        used_chunks: Callable[[], int],
        leading_chunks: Callable[[int], int],
    ) -> None:
        """``leading_chunks`` says how much of a session's last prompt is held, from its beginning."""
        self.num_blocks = config.host_chunks * config.blocks_per_chunk
        self._chunk_blocks = config.blocks_per_chunk
        self._chunk_tokens = config.blocks_per_chunk * config.block_size
        self._link = link
        self._used_chunks = used_chunks
        self._leading_chunks = leading_chunks

    @property
    def used_blocks(self) -> int:
        """Blocks held, those on their way included."""
        return self._used_chunks() * self._chunk_blocks

    def tokens(self, session: int) -> int:
        """Return how many leading tokens of the session's last prompt are held."""
        return self._leading_chunks(session) * self._chunk_tokens

    def load_s(self, tokens: int) -> float:
        """Return how many seconds a copy to the GPU takes on an idle link."""
        return to_s(self._link.latency_ps + tokens * self._link.h2d_token_ps)


def tier_stats(config: EngineConfig, link: LinkCost) -> TierStats:
    """Return the counters of an engine's host memory, at zero."""
    blocks = config.host_chunks * config.blocks_per_chunk
    return TierStats(blocks, link.token_bytes * config.block_size)


def link_of(config: EngineConfig, cost: StepCost) -> LinkCost | None:
    """Return the link of an engine with host memory, None for one without. EngineError if it cannot
    be had.
    """
    if not config.host_chunks:
        return None
    if cost.link is None:
        raise EngineError(
            "host memory for KV needs the link's bandwidth: add a `host` block to the profile"
        )
    if not config.enable_prefix_caching:
        raise EngineError("host memory for KV needs enable_prefix_caching=true")
    if config.eviction_policy not in {"lru", "arc"}:
        raise EngineError(f"eviction_policy {config.eviction_policy!r}: must be lru or arc")
    return cost.link
