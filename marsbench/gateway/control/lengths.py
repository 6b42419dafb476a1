"""How long prompts are, and how much of them is shared, before a backend has counted their tokens."""

from __future__ import annotations

from collections import OrderedDict

from marsbench.gateway.control.sessions import LiveSession
from marsbench.gateway.messages.prompt import Prompt

START_BYTES_PER_TOKEN = 4.0
RATIO_WEIGHT = 0.2
"""Weight of a new bytes-per-token observation (ThunderAgent's router uses the same)."""
MAX_HEADS = 10_000
"""Shared heads (tools and system messages) remembered."""


class PromptLengths:
    """Learns bytes per token, of each session and of all, and which heads engines have had."""

    def __init__(self) -> None:
        self._bytes_per_token = START_BYTES_PER_TOKEN
        self._heads: OrderedDict[bytes, None] = OrderedDict()

    def tokens(self, prompt: Prompt, session: LiveSession) -> int:
        """Return the length of a prompt in tokens, exact if it is token ids."""
        if prompt.tokens is not None:
            return prompt.tokens
        ratio = session.bytes_per_token or self._bytes_per_token
        return max(1, round(prompt.num_bytes / ratio))

    def shared_tokens(self, prompt: Prompt, tokens: int) -> int:
        """Return the tokens of tools and system messages, if an engine has had the same ones
        before.
        """
        if not prompt.head_bytes or prompt.head_digest not in self._heads:
            return 0
        return prompt.head_bytes * tokens // prompt.num_bytes

    def counted(self, prompt: Prompt, session: LiveSession, tokens: int) -> None:
        """Learn from the tokens that a backend has counted in a prompt."""
        if prompt.tokens is not None or tokens <= 0:
            return
        ratio = prompt.num_bytes / tokens
        session.bytes_per_token = ratio
        self._bytes_per_token += RATIO_WEIGHT * (ratio - self._bytes_per_token)

    def answered(self, prompt: Prompt) -> None:
        """Note that an engine has answered the prompt, so it has had its head."""
        if not prompt.head_bytes:
            return
        self._heads[prompt.head_digest] = None
        self._heads.move_to_end(prompt.head_digest)
        if len(self._heads) > MAX_HEADS:
            self._heads.popitem(last=False)
