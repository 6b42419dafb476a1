"""Decoding turns of the simulated engine as a whole: one token each a step, known as sums.

How many contexts' tokens a step reads, how many turns need a new block in it and which turn ends
next follow from the step counter alone, without a look at each turn.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from marsbench.engine.sim.turn import SimClock, SimTurn


class Decoding:
    """All turns of a core that decode."""

    def __init__(self, clock: SimClock, block_size: int) -> None:
        self._clock = clock
        self._block_size = block_size
        self.count = 0
        self.offset_sum = 0
        self.crossings = [0] * block_size
        """How many turns need a new block at steps congruent to the index."""
        self.last_steps: dict[SimTurn, int] = {}
        """Step that makes a turn's last token: the future, which no turn carries itself."""
        self.finishes: list[tuple[int, int, SimTurn]] = []
        """Heap of (last step, place in the batch, turn); turns that were stopped stay in it."""

    def start(self, turn: SimTurn, step: int, finish_step: int) -> None:
        """Take a turn in that runs from ``step`` on and makes its last token in ``finish_step``."""
        self.last_steps[turn] = finish_step
        offset = turn.computed - step
        turn.offset = offset
        turn.generated_offset = turn.generated - step
        turn.decoding = True
        self.count += 1
        self.offset_sum += offset
        self.crossings[-offset % self._block_size] += 1
        heapq.heappush(self.finishes, (finish_step, turn.run_order, turn))

    def stop(self, turn: SimTurn, step: int) -> int:
        """Take a turn out of the sums; ``step`` = the next step it would have run in. Returns the
        step that would have made its last token.
        """
        offset = turn.offset
        self.count -= 1
        self.offset_sum -= offset
        self.crossings[-offset % self._block_size] -= 1
        turn.computed = offset + step
        turn.generated = turn.generated_offset + step
        turn.decoding = False
        return self.last_steps.pop(turn)

    def next_finish(self) -> int:
        """Return the step in which the next turn ends; there must be one."""
        heap = self.finishes
        while True:
            step, _, turn = heap[0]
            if self.last_steps.get(turn) == step:
                return step
            heapq.heappop(heap)

    def stop_finished(self) -> list[SimTurn]:
        """Stop the turns whose last token the step just executed has made, and return them."""
        done: list[SimTurn] = []
        step = self._clock.step
        while self.count and self.finishes and self.next_finish() == step - 1:
            turn = heapq.heappop(self.finishes)[2]
            self.stop(turn, step)
            turn.holding.blocks = -(-turn.computed // self._block_size)
            done.append(turn)
        return done

    def blocks_over(self, step: int, steps: int) -> int:
        """Return how many new blocks are needed over ``steps`` steps from ``step``."""
        size = self._block_size
        cycles, rest = divmod(steps, size)
        need = cycles * self.count
        if rest:
            start = step % size
            end = start + rest
            if end <= size:
                need += sum(self.crossings[start:end])
            else:
                need += sum(self.crossings[start:]) + sum(self.crossings[: end - size])
        return need

    def steps_within(self, free: int, step: int, steps: int) -> int:
        """Return the most steps from ``step`` (at most ``steps``) for which ``free`` blocks
        suffice.
        """
        if self.count * (steps // self._block_size + 1) <= free:
            return steps
        if self.blocks_over(step, steps) <= free:
            return steps
        low, high = 0, steps
        while high - low > 1:
            middle = (low + high) // 2
            if self.blocks_over(step, middle) <= free:
                low = middle
            else:
                high = middle
        return low

    def check(self, running: Sequence[SimTurn]) -> None:
        """Assert that every sum is that of the decoding ones among these turns."""
        decoding = [turn for turn in running if turn.decoding]
        assert len(decoding) == self.count
        assert sum(turn.offset for turn in decoding) == self.offset_sum
        assert sum(self.crossings) == self.count
