"""Turns as vLLM requests: token ids, sampling parameters, block hashes computed once per content."""

from __future__ import annotations

from typing import Any

from vllm.sampling_params import SamplingParams
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.request import Request as VllmRequest

from marsbench.engine.base import Request
from marsbench.engine.vllm.tokens import TokenStreams


def content_hash(block: Any) -> bytes:
    """Hash (parent hash, token ids, extra keys): equal within a process for equal content.

    vLLM's default is SHA-256 of a pickle. What the hash is decides nothing as long as it tells
    contents apart; Python's 64-bit one costs a tenth.
    """
    return hash(block).to_bytes(8, "little", signed=True)


class VllmRequestFactory:
    """Makes the vLLM request of a turn."""

    def __init__(self, block_size: int, *, hashing: bool) -> None:
        init_none_hash(content_hash)
        self._hasher = get_request_block_hasher(block_size, content_hash) if hashing else None
        self._streams = TokenStreams(block_size)
        self._sampling: dict[int, SamplingParams] = {}
        self._made = 0

    def make(self, turn: Request) -> tuple[VllmRequest, list[int]]:
        """Make the request of a turn; returns it with the tokens that the model will answer.

        Request ids grow with submission, so vLLM breaks ties of equal arrival in that order.
        """
        content = self._streams.compose(turn)
        sampling = self._sampling.get(turn.output_tokens)
        if sampling is None:
            sampling = SamplingParams(max_tokens=turn.output_tokens, ignore_eos=True)
            self._sampling[turn.output_tokens] = sampling
        request = VllmRequest(
            f"{self._made:012d}",
            content.prompt,
            sampling,
            pooling_params=None,
            arrival_time=turn.ready_ps,  # only compared; integers are exact
            priority=turn.priority,
            session_id=str(turn.session),
        )
        self._made += 1
        if self._hasher is not None:
            # The same hashes the hasher would compute, taken from the prompt they came from.
            request.block_hashes.extend(content.known_hashes)
            request._block_hasher = self._hasher  # noqa: SLF001
            request.update_block_hashes()
            self._streams.hashed(turn, request.block_hashes)
        return request, content.output

    def forget(self, session: int) -> None:
        """Forget a session's context, since no further turn of this session will come."""
        self._streams.forget(session)

    def shares(self, other: VllmRequestFactory) -> None:
        """Take tokens from the other's source: equal content is equal for both."""
        self._streams = other._streams

    def known_hashes(self, turn: Request) -> list[bytes]:
        """Return the hashes of the leading blocks that a turn, not made yet, has from earlier ones."""
        return self._streams.known_hashes(turn) if self._hasher is not None else []
