"""The simulated engine as policies may read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from marsbench.core import HostView
from marsbench.engine.sim.pins import only_pinned
from marsbench.engine.sim.turn import SimTurn
from marsbench.scheduler.base import TurnView

if TYPE_CHECKING:
    from marsbench.engine.sim.batch import SimBatch


class SimView:
    """A core's queues and memory (``scheduler.base.EngineView``)."""

    def __init__(self, batch: SimBatch) -> None:
        self._batch = batch
        self.block_size = batch.config.block_size
        self.num_blocks = batch.config.num_blocks

    @property
    def free_blocks(self) -> int:
        """Unreferenced blocks."""
        return self._batch.kv.free

    @property
    def pinned_blocks(self) -> int:
        """Blocks that nothing but pins hold."""
        pins = self._batch.pins
        return only_pinned(pins.pins()) if pins.active else 0

    @property
    def host(self) -> HostView | None:
        """Host memory, if there is any."""
        offload = self._batch.offload
        return None if offload is None else offload.view

    @property
    def waiting(self) -> list[SimTurn]:
        """Waiting turns in queue order, those that load first."""
        batch = self._batch
        return batch.loading + batch.waiting if batch.loading else batch.waiting

    @property
    def running(self) -> list[SimTurn]:
        """Running turns in engine order."""
        return self._batch.running

    def cached_tokens(self, turn: TurnView) -> int:
        """Return the prefix hit of a waiting turn, tokens, if it were scheduled now."""
        assert isinstance(turn, SimTurn)
        if turn.computed:
            return turn.computed
        return self._batch.hit_blocks(turn)[0] * self.block_size
