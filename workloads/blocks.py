"""Reads block hashes of prompts: the size of a block, and what sessions have in common."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from marsbench.core import SharedPrefix


def common_blocks(before: Sequence[int], after: Sequence[int]) -> int:
    """Return how many leading blocks two prompts have in common."""
    same = 0
    for old, new in zip(before, after, strict=False):
        if old != new:
            break
        same += 1
    return same


def block_size(prompts: Iterable[tuple[int, int]], default: int) -> int:
    """Infer the tokens of a block from (tokens, blocks) of prompts whose last block may be partly filled.

    Of all sizes that fit every prompt, the smallest power of two is taken, or else the smallest;
    ``default`` if none fits.
    """
    least, most = 1, float("inf")
    for tokens, blocks in prompts:
        if tokens and blocks:
            least = max(least, -(-tokens // blocks))
        if blocks > 1:
            most = min(most, (tokens - 1) // (blocks - 1))
    if least > most or least == 1:
        return default
    power = 1 << (least - 1).bit_length()
    return power if power <= most < float("inf") else default


def shared_prefixes(
    prompts: Mapping[str, Sequence[int]], tokens_per_block: int, prefix_id: str
) -> dict[str, SharedPrefix]:
    """Return, by the name of each session, the longest beginning that it shares with another one.

    ``prompts`` are the full blocks of each session's first prompt. A beginning that another one
    continues has the same id as the longest continuation that sessions share, so that both have
    their common blocks in common.
    """
    chains = _Chains()
    paths = {name: chains.add(blocks) for name, blocks in prompts.items()}
    found: dict[str, SharedPrefix] = {}
    for name, path in paths.items():
        depth = sum(chains.sessions[node] > 1 for node in path)
        if depth:
            tail = chains.longest(path[depth - 1])
            found[name] = SharedPrefix(f"{prefix_id}/{tail}", depth * tokens_per_block)
    return found


class _Chains:
    """A tree of blocks, each node of which stands for a block and all that comes before it."""

    def __init__(self) -> None:
        self.sessions: list[int] = []
        """How many sessions begin with each node's blocks."""
        self._nodes: dict[tuple[int, int], int] = {}
        self._following: dict[int, list[int]] = defaultdict(list)

    def add(self, blocks: Sequence[int]) -> list[int]:
        """Count a session and return the nodes of its blocks."""
        path: list[int] = []
        parent = -1
        for block in blocks:
            node = self._nodes.get((parent, block))
            if node is None:
                node = self._nodes[parent, block] = len(self.sessions)
                self.sessions.append(0)
                self._following[parent].append(node)
            self.sessions[node] += 1
            path.append(node)
            parent = node
        return path

    def longest(self, node: int) -> int:
        """Return the end of the way that most sessions take from a node, as long as two of them do."""
        while True:
            further = [n for n in self._following[node] if self.sessions[n] > 1]
            if not further:
                return node
            node = max(further, key=lambda n: (self.sessions[n], -n))
