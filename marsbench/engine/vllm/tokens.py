"""Token ids that are equal exactly where the content of two prompts is equal."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from marsbench.engine.base import Request
from marsbench.errors import EngineError

PREFIX_STRIDE = 1 << 24
"""Ids set aside for one shared prefix: no prefix is longer."""


class Content(NamedTuple):
    """What a turn sends and what the model will answer."""

    prompt: list[int]
    output: list[int]
    known_hashes: list[bytes]
    """Hashes of leading full blocks, computed before for the same tokens."""


class _Context:
    """Tokens of a session's last prompt and output."""

    __slots__ = ("block_hashes", "tokens")

    def __init__(self, tokens: NDArray[np.int64]) -> None:
        self.tokens = tokens
        self.block_hashes: list[bytes] = []


class TokenStreams:
    """Gives every new token an id of its own, so no two contents are equal by accident.

    Shared prefixes have negative ids, a function of the prefix and the position alone.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._next_id = 0
        self._contexts: dict[int, _Context] = {}
        self._prefix_hashes: dict[int, list[bytes]] = {}

    def compose(self, request: Request) -> Content:
        """Compose prompt and output of a turn, and remember them as the session's context."""
        reused = request.reused_tokens
        shared = min(request.prefix_tokens, reused) if request.prefix_id >= 0 else 0
        context = self._contexts.get(request.session)
        if shared < reused and (context is None or reused > len(context.tokens)):
            had = 0 if context is None else len(context.tokens)
            raise EngineError(
                f"session {request.session} turn {request.turn_index}: reuses {reused} tokens, "
                f"but its context has {had} and its shared prefix {shared}"
            )
        fresh = request.prompt_tokens - reused
        total = request.prompt_tokens + request.output_tokens
        tokens = np.empty(total, dtype=np.int64)
        if shared:
            base = -(request.prefix_id + 1) * PREFIX_STRIDE
            tokens[:shared] = np.arange(base, base + shared)
        if context is not None:
            tokens[shared:reused] = context.tokens[shared:reused]
        tokens[reused:] = np.arange(self._next_id, self._next_id + fresh + request.output_tokens)
        self._next_id += fresh + request.output_tokens
        known = self._known_hashes(request, context, shared)
        self._contexts[request.session] = _Context(tokens)
        ids = tokens.tolist()
        return Content(ids[: request.prompt_tokens], ids[request.prompt_tokens :], known)

    def _known_hashes(self, request: Request, context: _Context | None, shared: int) -> list[bytes]:
        known = [] if context is None else context.block_hashes
        num_same = request.reused_tokens // self._block_size
        if context is None or len(known) < shared // self._block_size:
            known = self._prefix_hashes.get(request.prefix_id, [])
            num_same = shared // self._block_size
        return known[:num_same]

    def known_hashes(self, request: Request) -> list[bytes]:
        """Return the hashes of a turn's leading blocks that earlier turns had, as far as they are
        known.
        """
        shared = request.prefix_tokens if request.prefix_id >= 0 else 0
        context = self._contexts.get(request.session)
        return self._known_hashes(request, context, min(shared, request.reused_tokens))

    def hashed(self, request: Request, block_hashes: list[bytes]) -> None:
        """Keep what later prompts can share of the hashes that the engine computed for a turn's
        prompt.
        """
        if request.session in self._contexts:
            self._contexts[request.session].block_hashes = block_hashes
        if request.prefix_id >= 0:
            num = request.prefix_tokens // self._block_size
            if num > len(self._prefix_hashes.get(request.prefix_id, [])):
                self._prefix_hashes[request.prefix_id] = block_hashes[:num]

    def forget(self, session: int) -> None:
        """Forget a session's context, since no further turn of this session will come."""
        self._contexts.pop(session, None)
