"""What SGLang holds for the retention book: paths of its radix tree, by a lock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch

from marsbench.core import to_s
from marsbench.engine.retention import Pin, RetentionBook
from marsbench.scheduler.base import EngineView, RetentionPolicy, TurnView


class Path(NamedTuple):
    """A locked path from the root of the tree."""

    lock: Any
    slots: torch.Tensor
    """Where in the pool its tokens are; a lock keeps them there."""


def releaser(scheduler: Any) -> Callable[[Path], None]:
    """Return the function that drops a pin's lock; whoever waits for memory is asked again then."""

    def release(path: Path) -> None:
        scheduler.tree_cache.unlock(path.lock)
        scheduler.running_batch.batch_is_full = False

    return release


def retain(
    book: RetentionBook[Path],
    scheduler: Any,
    turn: TurnView,
    request: Any,
    *,
    tool_names: Sequence[str],
    is_last: bool,
    now_ps: int,
) -> None:
    """Lock what the tree has of a finished turn's context, if the policy says so."""
    node, tokens = _end_of(scheduler.tree_cache, request)
    blocks = tokens // int(scheduler.page_size)
    until_ps = book.keep_until(turn, tool_names, is_last, blocks, now_ps)
    if until_ps > now_ps:
        tree = scheduler.tree_cache
        path = Path(tree.lock(node), tree.path_device_indices(node)[:tokens])
        book.pin(turn, path, blocks, now_ps, until_ps)


def only_pinned(pins: Sequence[Pin[Path]], scheduler: Any, running: Iterable[Any]) -> int:
    """Count the blocks that nothing but pins hold, each of them once."""
    if not pins:
        return 0
    page = int(scheduler.page_size)
    held = torch.zeros(int(scheduler.max_total_num_tokens) + page, dtype=torch.bool)
    for pin in pins:
        held[pin.held.slots] = True
    table = scheduler.req_to_token_pool.req_to_token
    for request in running:
        if request.kv.holds_kv:
            held[table[request.kv.req_pool_idx, : request.kv.cache_protected_len].long()] = False
    return int(held.sum()) // page


def yielding(
    pins: Sequence[Pin[Path]],
    policy: RetentionPolicy,
    waiting: TurnView,
    view: EngineView,
    now_ps: int,
) -> int:
    """Count the blocks of the pins that would be given up for a waiting turn."""
    now_s = to_s(now_ps)
    others = (pin for pin in pins if pin.session != waiting.session)
    return sum(p.num_blocks for p in others if policy.yields_to(p, waiting, view, now_s))


def _end_of(tree: Any, request: Any) -> tuple[Any, int]:
    """Where in the tree a finished turn's content ends, and how many of its tokens are there.

    The KV of its last token was never computed.
    """
    from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
    from sglang.srt.mem_cache.radix_cache import RadixKey

    tokens = request.origin_input_ids + request.output_ids
    key = RadixKey(
        token_ids=tokens[:-1], extra_key=request.extra_key, cache_salt=request.cache_salt
    )
    found = tree.match_prefix(MatchPrefixParams(key=key))
    return found.last_device_node, int(found.device_prefix_len)
