"""Turns as SGLang requests: token ids, and sampling parameters that do not say how long it gets."""

from __future__ import annotations

from array import array

from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
from sglang.srt.sampling.sampling_params import SamplingParams

from marsbench.engine.base import Request
from marsbench.engine.vllm.tokens import TokenStreams

STOP = 1 << 61
"""The token that ends every answer. Its KV is never computed, so what it is changes nothing."""


class SglangRequestFactory:
    """Makes the request of a turn.

    An agent's client names no length: SGLang then reserves for the answer what its own rules say
    (at most 4,096 tokens), and learns of the end when the stop token comes.
    """

    def __init__(self, block_size: int, *, priorities: bool, sessions: bool) -> None:
        self._streams = TokenStreams(block_size)
        self._priorities = priorities
        self._sessions = sessions
        self._made = 0

    def make(self, turn: Request) -> tuple[TokenizedGenerateReqInput, list[int]]:
        """Make the request of a turn; returns it with the tokens that the model will answer."""
        content = self._streams.compose(turn)
        sampling = SamplingParams(max_new_tokens=None, stop_token_ids=[STOP])
        sampling.normalize(None)
        request = TokenizedGenerateReqInput(
            rid=f"{self._made:012d}",
            input_text=None,
            input_ids=array("q", content.prompt),
            input_embeds=None,
            mm_inputs=None,
            token_type_ids=None,
            sampling_params=sampling,
            return_logprob=False,
            logprob_start_len=-1,
            top_logprobs_num=0,
            token_ids_logprob=None,
            stream=False,
            session_id=str(turn.session) if self._sessions else None,
            priority=turn.priority if self._priorities else None,
        )
        self._made += 1
        return request, [*content.output[:-1], STOP]

    def forget(self, session: int) -> None:
        """Forget a session's context, since no further turn of this session will come."""
        self._streams.forget(session)
