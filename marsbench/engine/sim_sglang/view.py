"""The simulated engine with SGLang's rules as policies may read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from marsbench.core import HostView
from marsbench.engine.sim_sglang.turn import RadixTurn
from marsbench.scheduler.base import TurnView

if TYPE_CHECKING:
    from marsbench.engine.sim_sglang.batch import RadixBatch


class RadixView:
    """A core's queues and memory (``scheduler.base.EngineView``)."""

    host: HostView | None = None
    """SGLang's host tier is not modelled."""
    pinned_blocks = 0

    def __init__(self, batch: RadixBatch) -> None:
        self._batch = batch
        self.block_size = batch.config.block_size
        self.num_blocks = batch.config.num_blocks

    @property
    def free_blocks(self) -> int:
        """Pages that are empty, or in the tree and locked by nobody."""
        tree = self._batch.tree
        return (tree.free + tree.evictable) // self.block_size

    @property
    def waiting(self) -> list[RadixTurn]:
        """Waiting turns in queue order."""
        return self._batch.queue.turns

    @property
    def running(self) -> list[RadixTurn]:
        """Turns that hold memory, in order of admission."""
        return self._batch.running_turns()

    def cached_tokens(self, turn: TurnView) -> int:
        """Prefix hit of a waiting turn if it were scheduled now."""
        assert isinstance(turn, RadixTurn)
        if turn.computed:
            return turn.computed
        return self._batch.tree.hit(turn.content, turn.num_tokens - 1)
