"""What one prefill pass of SGLang may still promise: tokens of memory, and of the chunk."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from marsbench.engine.sim_sglang.tree import RadixTree
from marsbench.engine.sim_sglang.turn import RadixTurn

LONGEST_ANSWER = 4096
"""Tokens that an answer is expected to have at most."""
FIRST_RATIO = 0.7
"""Share of an answer's expected tokens that is reserved for a running turn, at first, ..."""
LAST_RATIO = FIRST_RATIO * 0.14
"""... at least, ..."""
DECAY = (FIRST_RATIO - LAST_RATIO) / 600
"""... and how much less after each decode step."""
RETRACT_STEPS = 20
"""Decode steps of the turns that stay for which a retraction makes room."""


class Next(Enum):
    """Whether the next waiting turn is asked."""

    ASK = auto()
    NO_MEMORY = auto()
    STOP = auto()
    """The step is full, or another reason."""


class NewTokenRatio:
    """Share of an answer's expected tokens that is reserved for a running turn."""

    def __init__(self) -> None:
        self._value = FIRST_RATIO
        self._steps = 0

    @property
    def value(self) -> float:
        """The share now, subtracted step by step because what is left depends on it to the last bit."""
        for _ in range(self._steps):
            self._value = max(self._value - DECAY, LAST_RATIO)
            if self._value == LAST_RATIO:
                break
        self._steps = 0
        return self._value

    def decay(self, steps: int) -> None:
        """Note that so many decode steps went by without a retraction."""
        self._steps += steps

    def set(self, value: float) -> None:
        """Begin anew from a value."""
        self._value, self._steps = value, 0

    def reset(self) -> None:
        """Begin as SGLang does whenever nothing is left to run."""
        self.set(FIRST_RATIO)

    def retracted(self, staying: Sequence[RadixTurn]) -> None:
        """Estimate anew from the turns that stay after a retraction."""
        made = sum(turn.generated_tokens for turn in staying)
        granted = sum(turn.grant for turn in staying)
        self.set(min(1.0, (made + RETRACT_STEPS * len(staying)) / (granted + 1)))


def whole_answer(turn: RadixTurn) -> int:
    """Return how many tokens a turn's answer is expected to have at most."""
    return min(turn.grant, LONGEST_ANSWER)


def rest_of_answer(turn: RadixTurn) -> int:
    """Return how many tokens a turn is expected to answer from here on at most."""
    return min(turn.grant - turn.generated_tokens, LONGEST_ANSWER)


class Budget:
    """What is left to promise in one pass."""

    def __init__(
        self, tree: RadixTree, running: Sequence[RadixTurn], ratio: float, chunk: int
    ) -> None:
        self._tree = tree
        self._page = tree.page
        self.chunk = chunk
        """Tokens of the step that are left."""
        self._now = 0
        self._promised: float = 0.0
        for turn in running:
            self._promised += rest_of_answer(turn) * ratio

    @property
    def left(self) -> float:
        """Tokens that are not promised to anybody."""
        return self._tree.free + self._tree.evictable - self._promised

    def verdict(self) -> Next:
        """Return whether anything is left, of memory and of the step."""
        left_now = self._tree.free + self._tree.evictable - self._now
        if self.left <= 0 or left_now <= 0:
            return Next.NO_MEMORY
        return Next.STOP if self.chunk <= 0 else Next.ASK

    def promise(self, tokens: int) -> None:
        """Keep memory from turns that come later in this pass."""
        self._promised += tokens

    def charge(self, tokens: int, answer: int) -> None:
        """Charge a chunk that is in the step, and reserve its answer."""
        paged = self._tree.paged(tokens)
        self._promised += paged + self._page + answer
        self._now += paged + self._page
        self.chunk -= paged

    def release(self, turn: RadixTurn, ratio: float) -> None:
        """Reserve nothing any more for a running turn that gave its place up."""
        self._promised -= rest_of_answer(turn) * ratio
