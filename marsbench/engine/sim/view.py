"""The simulated engine as policies may read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from marsbench.engine.sim.turn import SimTurn
from marsbench.scheduler.base import TurnView

if TYPE_CHECKING:
    from marsbench.engine.sim.batch import Batch


class SimView:
    """A core's queues and memory (``scheduler.base.EngineView``)."""

    def __init__(self, batch: Batch) -> None:
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
        return pins.only_pinned() if pins.active else 0

    @property
    def waiting(self) -> list[SimTurn]:
        """Waiting turns in queue order."""
        return self._batch.waiting

    @property
    def running(self) -> list[SimTurn]:
        """Running turns in engine order."""
        return self._batch.running

    def cached_tokens(self, turn: TurnView) -> int:
        """Prefix hit of a waiting turn if it were scheduled now."""
        assert isinstance(turn, SimTurn)
        return self._batch.hit_blocks(turn)[0] * self.block_size
