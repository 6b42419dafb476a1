"""The waiting queue as SGLang orders it before each prefill."""

from __future__ import annotations

from marsbench.engine.base import EngineConfig
from marsbench.engine.sim_sglang.tree import RadixTree
from marsbench.engine.sim_sglang.turn import RadixTurn

LONG_QUEUE = 128
"""Beyond so many waiting turns prefixes are not looked up, and lpm and hrrn are fcfs."""
REFRESH_EVERY = 32
"""Each so many prefills, an order that looks no prefixes up marks those of the queue as used."""
FEW_TOKENS = 32
"""Turns with at most so large a hit that share at least so many tokens of a prefix wait for the first
of them, which then puts it into the tree."""
LOOKING = ("lpm", "hrrn", "shortest-prefill-first")
"""Orders that look up the prefix of every waiting turn."""

Key = tuple[float, ...]


class Queue:
    """Waiting turns, and the order they are asked in."""

    def __init__(self, config: EngineConfig, tree: RadixTree) -> None:
        self.turns: list[RadixTurn] = []
        self._tree = tree
        self._by_priority = config.policy == "priority"
        self._order = config.schedule_policy if tree.enabled else "fcfs"
        self._refreshes = tree.enabled and config.radix_eviction_policy == "lru"
        self._passes = 0

    @property
    def shortest_first(self) -> bool:
        """Whether the order is shortest prefill first, which also shortens chunks."""
        return self._order == "shortest-prefill-first"

    def sort(self, prefilled: int) -> bool:
        """Order the queue for a prefill; returns whether every prefix was looked up for it.
        ``prefilled`` = tokens prefilled in the engine so far.
        """
        turns = self.turns
        order = self._order
        if order in {"lpm", "hrrn"} and len(turns) > LONG_QUEUE:
            order = "fcfs"
        if order in LOOKING:
            later = self._look_up()
            if order == "lpm":
                turns.sort(key=lambda turn: _longest_hit(turn, later))
            elif order == "hrrn":
                turns.sort(key=lambda turn: _response_ratio(turn, later, prefilled))
            else:
                turns.sort(key=lambda turn: (turn in later, left_to_prefill(turn), turn.entered_ps))
            return True
        if self._by_priority:
            turns.sort(key=lambda turn: (turn.priority, turn.entered_ps))
        if self._refreshes and turns:
            if self._passes % REFRESH_EVERY == 0:
                for turn in reversed(turns[:LONG_QUEUE]):
                    self._tree.match(turn.content, turn.num_tokens)
            self._passes += 1
        return False

    def _look_up(self) -> set[RadixTurn]:
        """Look all prefixes up; returns those that had better wait for another's."""
        later: set[RadixTurn] = set()
        coming: dict[int, int] = {}
        for turn in self.turns:
            length = turn.num_tokens
            high = self._tree.match(turn.content, length).high
            turn.hit = high if high < length else length - 1
            if high > FEW_TOKENS or not turn.shared:
                continue
            first = coming.get(turn.prefix_id, 0)
            if min(first, turn.shared) >= FEW_TOKENS:
                later.add(turn)
            else:
                coming[turn.prefix_id] = max(first, turn.shared)
        return later


def left_to_prefill(turn: RadixTurn) -> int:
    """Return how many tokens of a waiting turn were not found when it was last looked up."""
    left = turn.num_tokens - turn.hit
    return max(1, left)


def _longest_hit(turn: RadixTurn, later: set[RadixTurn]) -> float:
    return float("inf") if turn in later else -turn.hit


def _response_ratio(turn: RadixTurn, later: set[RadixTurn], prefilled: int) -> Key:
    if turn in later:
        return (float("inf"), turn.sequence)
    uncached = turn.prompt_tokens - turn.hit
    if uncached <= 0:
        return (-float("inf"), turn.sequence)
    waited = prefilled - turn.mark
    return (-(max(waited, 0) / uncached), turn.sequence)
