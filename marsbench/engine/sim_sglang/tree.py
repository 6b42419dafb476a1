"""SGLang's radix cache: KV of finished and of running turns in one tree of token sequences.

The rules are those of SGLang 0.5.23: a node is a run of whole pages; who looks a prefix up marks
its path as used, the end after its ancestors' beginnings; a turn's path is locked while it runs;
memory is made by dropping whole leaves that nobody has locked, in the order of the eviction policy,
until enough is free. No page has a name here: memory is a number of tokens.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from marsbench.engine.base import EngineConfig
from marsbench.engine.sim_sglang.content import NOTHING, TokenRuns

TICK = 1 << 20
"""Between two uses; within one, an ancestor is a little older than its child."""
PROTECTED_HITS = 2
"""SLRU: a node that was used as often is evicted after all that were not."""


class Node:
    """Tokens ``low..high-1`` of a content, after those of the parent."""

    __slots__ = (
        "children",
        "content",
        "deepest",
        "high",
        "hits",
        "last",
        "locks",
        "low",
        "parent",
        "priority",
        "used",
    )

    def __init__(self, parent: Node | None, content: TokenRuns, low: int, high: int) -> None:
        self.parent = parent
        self.content = content
        self.low = low
        self.high = high
        self.last = content.at(high - 1)
        """Serial number of the last token, which tells the whole path."""
        self.children: dict[int, Node] = {}
        """By the serial number at the end of their first page."""
        self.used = 0
        """Time of the last use; no two nodes have the same."""
        self.locks = 0
        """Turns that lock the path to here, and children that are locked."""
        self.hits = 0
        self.priority = 0
        self.deepest = 0
        """TLRU: the longest context there has ever been on a path through here."""

    @property
    def size(self) -> int:
        """Tokens."""
        return self.high - self.low

    def path(self) -> Iterator[Node]:
        """Yield it and all above it but the root."""
        node = self
        while node.parent is not None:
            yield node
            node = node.parent


class RadixTree:
    """The tree and the memory that is in it or free."""

    def __init__(self, config: EngineConfig) -> None:
        self.page = config.block_size
        self.enabled = config.enable_prefix_caching
        self.free = config.num_blocks * config.block_size
        """Tokens in pages that hold nothing."""
        self.evictable = 0
        """Tokens in nodes that nobody has locked."""
        self.protected = 0
        self.evicted = 0
        """Tokens dropped so far."""
        self.root = Node(None, NOTHING, 0, 0)
        self.reclaim: Callable[[], bool] | None = None
        """Unlocks something when nothing else can be dropped; False if there is nothing."""
        self._policy = config.radix_eviction_policy
        self._counts = self._policy in {"lfu", "slru"}
        self._tail = config.tlru_next_prompt_estimate - config.tlru_threshold
        self._leaves: set[Node] = set()
        """Leaves that nobody has locked."""
        self._clock = 0

    def paged(self, tokens: int) -> int:
        """Return how many tokens the pages have that so many tokens take."""
        return -(-tokens // self.page) * self.page

    # --- looking up -------------------------------------------------------------------------

    def match(self, content: TokenRuns, limit: int) -> Node:
        """Return the end of what the tree has of the first ``limit`` tokens, and mark it as used."""
        limit -= limit % self.page
        if limit <= 0 or not self.enabled:
            return self.root
        node = self.root
        while node.high < limit:
            child = node.children.get(content.at(node.high + self.page - 1))
            if child is None:
                break
            if child.high <= limit and child.last == content.at(child.high - 1):
                node = child
                continue
            node = self._split(child, self._agreed(child, content, limit))
            break
        self._clock += TICK
        used = self._clock
        walked: Node | None = node
        while walked is not None:
            walked.used = used
            used -= 1
            walked = walked.parent
        return node

    def _agreed(self, child: Node, content: TokenRuns, limit: int) -> int:
        high = min(limit, child.high)
        agreed = content.agrees(child.content, child.low + 1, high)
        return agreed - agreed % self.page

    # --- putting in -------------------------------------------------------------------------

    def insert(
        self, content: TokenRuns, length: int, *, counted: int, priority: int
    ) -> tuple[Node, int]:
        """Put the first ``length`` tokens, whole pages, into the tree.

        Returns where they end, and how many of them it had already. Nodes beyond ``counted`` tokens
        count a hit.
        """
        node = self.root
        while node.high < length:
            child = node.children.get(content.at(node.high + self.page - 1))
            if child is None:
                break
            child.used = self._tick()
            if child.high > length or child.last != content.at(child.high - 1):
                child = self._split(child, self._agreed(child, content, length))
            node = child
            node.priority = max(priority, node.priority)
            node.hits += node.high > counted
        had = node.high
        if had < length:
            leaf = Node(node, content, had, length)
            leaf.used = self._tick()
            leaf.priority = priority
            leaf.hits = int(length > counted)
            node.children[content.at(had + self.page - 1)] = leaf
            self.evictable += leaf.size
            self._leaves.discard(node)
            self._leaves.add(leaf)
            above: Node | None = leaf
            while above is not None and above.deepest < length:
                above.deepest = length
                above = above.parent
            node = leaf
        return node, had

    def _split(self, child: Node, at: int) -> Node:
        """Cut a node in two; returns the upper part."""
        parent = child.parent
        assert parent is not None
        assert child.low < at < child.high, (child.low, at, child.high)
        page = self.page
        upper = Node(parent, child.content, child.low, at)
        upper.priority, upper.hits, upper.deepest = child.priority, child.hits, child.deepest
        upper.locks = int(child.locks > 0)
        upper.used = self._tick()
        parent.children[child.content.at(child.low + page - 1)] = upper
        child.parent = upper
        child.low = at
        child.used = self._tick()
        upper.children[child.content.at(at + page - 1)] = child
        return upper

    def _tick(self) -> int:
        self._clock += TICK
        return self._clock

    # --- locks ------------------------------------------------------------------------------

    def lock(self, node: Node) -> None:
        """Keep the path to a node until it is unlocked as often."""
        while node.parent is not None:
            node.locks += 1
            if node.locks > 1:
                return
            self.evictable -= node.size
            self.protected += node.size
            self._leaves.discard(node)
            node = node.parent

    def unlock(self, node: Node) -> None:
        """Undo one ``lock``."""
        while node.parent is not None:
            node.locks -= 1
            if node.locks:
                return
            self.evictable += node.size
            self.protected -= node.size
            if not node.children:
                self._leaves.add(node)
            node = node.parent

    # --- making room ------------------------------------------------------------------------

    def make_room(self, tokens: int) -> None:
        """Drop leaves until so many tokens are free, or nothing is left to drop."""
        if not self.enabled:
            return
        while self.free < tokens:
            if self._leaves:
                self._drop_leaves(tokens)
            if self.free >= tokens or self.reclaim is None or not self.reclaim():
                return

    def _drop_leaves(self, tokens: int) -> None:
        heap = [(self._worth(leaf), leaf) for leaf in self._leaves]
        heapq.heapify(heap)
        while heap and self.free < tokens:
            leaf = heapq.heappop(heap)[1]
            parent = leaf.parent
            assert parent is not None
            self._leaves.remove(leaf)
            del parent.children[leaf.content.at(leaf.low + self.page - 1)]
            self.free += leaf.size
            self.evictable -= leaf.size
            self.evicted += leaf.size
            if not parent.children and not parent.locks and parent.parent is not None:
                self._leaves.add(parent)
                heapq.heappush(heap, (self._worth(parent), parent))

    def _worth(self, node: Node) -> tuple[int, int]:
        """Return what a leaf is sorted by: that of least worth is dropped first."""
        if self._policy == "lru":
            return (0, node.used)
        if self._policy == "lfu":
            return (node.hits, node.used)
        if self._policy == "slru":
            return (int(node.hits >= PROTECTED_HITS), node.used)
        if self._policy == "priority":
            return (node.priority, node.used)
        needed = node.deepest + self._tail
        return (-1 if node.low >= (max(0, needed)) else 0, node.used)

    # --- invariants -------------------------------------------------------------------------

    def nodes(self) -> Iterator[Node]:
        """Yield all nodes but the root."""
        ahead = list(self.root.children.values())
        while ahead:
            node = ahead.pop()
            ahead += node.children.values()
            yield node

    def check(self) -> None:
        """Assert that every sum is right and every node is where it belongs."""
        evictable = protected = 0
        leaves: set[Node] = set()
        for node in self.nodes():
            assert node.parent is not None
            assert node.low == node.parent.high < node.high
            assert node.size % self.page == 0
            locked = sum(child.locks > 0 for child in node.children.values())
            assert node.locks >= locked
            if node.locks:
                protected += node.size
            else:
                evictable += node.size
                if not node.children:
                    leaves.add(node)
        assert (evictable, protected) == (self.evictable, self.protected)
        assert leaves == self._leaves
