"""The simulated engine with SGLang's rules as policies may read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from marsbench.core import HostView
from marsbench.engine.sim_sglang.turn import RadixTurn
from marsbench.scheduler.base import TurnView

if TYPE_CHECKING:
    from marsbench.engine.sim_sglang.batch import RadixBatch
    from marsbench.engine.sim_sglang.policies import Inside


class RadixView:
    """A core's queues and memory (``scheduler.base.EngineView``)."""

    host: HostView | None = None
    """SGLang's host tier is not modelled."""

    def __init__(self, batch: RadixBatch, inside: Inside) -> None:
        self._batch = batch
        self._inside = inside
        self.looked = False
        """The prefixes of all waiting turns have just been looked up."""
        self.block_size = batch.config.block_size
        self.num_blocks = batch.config.num_blocks

    @property
    def free_blocks(self) -> int:
        """Pages that are empty, or in the tree and locked by nobody."""
        tree = self._batch.tree
        return (tree.free + tree.evictable) // self.block_size

    @property
    def pinned_blocks(self) -> int:
        """Pages that nothing but pins hold."""
        return self._inside.pinned_blocks

    @property
    def waiting(self) -> list[RadixTurn]:
        """Waiting turns in queue order."""
        return self._batch.queue.turns

    @property
    def running(self) -> list[RadixTurn]:
        """Turns that hold memory, in order of admission."""
        return self._batch.running_turns()

    def cached_tokens(self, turn: TurnView) -> int:
        """Return the prefix hit of a waiting turn if it were scheduled now. Looking marks it as used,
        as it does in SGLang.
        """
        assert isinstance(turn, RadixTurn)
        if not self.looked:
            length = turn.num_tokens
            high = self._batch.tree.match(turn.content, length).high
            turn.hit = high if high < length else length - 1
        return turn.hit // self.block_size * self.block_size
