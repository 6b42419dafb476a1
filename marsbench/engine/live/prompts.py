"""Token ids for real servers: the same content gives the same ids in every run and every order.

The virtual engines number tokens without end (``engine/vllm/tokens.py``); a real server has a
vocabulary, and its turns finish in an order nobody knows beforehand. So an id is drawn by a hash
of what the token is: (run, shared prefix, position), or (run, session, turn, position). Two blocks
of different content are equal by chance with probability ``|vocabulary| ** -block_size``. What the
server answered takes the place of the recorded output, so that prefixes stay aligned.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from marsbench.engine.base import Request
from marsbench.errors import EngineError

Ids = NDArray[np.int64]

DEFAULT_LOW, DEFAULT_HIGH = 256, 1024
"""Ids that are plain text in byte-level vocabularies: behind the bytes, far from special ids."""


class Vocabulary(NamedTuple):
    """The token ids that prompts are made of: from ``low`` up to, but without, ``high``."""

    low: int = DEFAULT_LOW
    high: int = DEFAULT_HIGH


class Prompts:
    """Composes prompts and remembers each session's context."""

    def __init__(self, vocabulary: Vocabulary | None = None, *, salt: str = "") -> None:
        """Runs with a different ``salt`` share no content, not even shared prefixes, so what an
        earlier run left in a server's cache is of no use to a later one.
        """
        self._vocabulary = vocabulary or Vocabulary()
        if self._vocabulary.high - self._vocabulary.low < 2 or self._vocabulary.low < 0:
            raise EngineError(f"prompt ids {self._vocabulary}: needs at least two ids, from 0 on")
        self.salt = salt
        self._contexts: dict[int, Ids] = {}

    def compose(self, request: Request) -> Ids:
        """Return the prompt of a turn. It is remembered with an invented output until ``answered``
        tells the real one.
        """
        reused = request.reused_tokens
        shared = min(request.prefix_tokens, reused) if request.prefix_id >= 0 else 0
        context = self._contexts.get(request.session)
        if shared < reused and (context is None or reused > len(context)):
            had = 0 if context is None else len(context)
            raise EngineError(
                f"session {request.session} turn {request.turn_index}: reuses {reused} tokens, "
                f"but its context has {had} and its shared prefix {shared}"
            )
        tokens = np.empty(request.prompt_tokens + request.output_tokens, dtype=np.int64)
        if shared:
            tokens[:shared] = self._draw(f"prefix/{request.prefix_id}", 0, shared)
        if context is not None:
            tokens[shared:reused] = context[shared:reused]
        stream = f"turn/{request.session}/{request.turn_index}"
        tokens[reused:] = self._draw(stream, reused, len(tokens))
        self._contexts[request.session] = tokens
        return tokens[: request.prompt_tokens]

    def answered(self, request: Request, token_ids: list[int]) -> None:
        """Put the server's own output into the session's context, as far as it goes."""
        context = self._contexts.get(request.session)
        if context is None:
            return
        start = request.prompt_tokens
        count = min(len(token_ids), len(context) - start)
        context[start : start + count] = token_ids[:count]

    def forget(self, session: int) -> None:
        """Forget a session's prompt, since no further turn of this session will come."""
        self._contexts.pop(session, None)

    def _draw(self, stream: str, start: int, stop: int) -> Ids:
        """Return the ids at positions start..stop of a stream: a 64-bit mix of (stream, position)."""
        digest = hashlib.blake2b(f"{self.salt}|{stream}".encode(), digest_size=8).digest()
        state = np.arange(start, stop, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        state += np.uint64(int.from_bytes(digest, "little"))
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            state ^= state >> np.uint64(shift)
            state *= np.uint64(factor)
        state ^= state >> np.uint64(31)
        low, high = self._vocabulary
        return (state % np.uint64(high - low)).astype(np.int64) + low
