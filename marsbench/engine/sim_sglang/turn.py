"""A turn inside the simulated engine with SGLang's rules."""

from __future__ import annotations

from marsbench.core import to_s
from marsbench.engine.base import Request
from marsbench.engine.sim.kv import Holding
from marsbench.engine.sim.turn import SimClock, SimTurn
from marsbench.engine.sim_sglang.content import TokenRuns
from marsbench.engine.sim_sglang.tree import Node

NO_LENGTH = 1 << 30
"""Tokens that SGLang grants an answer whose client names no length, before memory limits them."""


class RadixTurn(SimTurn):
    """Read-only for policies; it knows nothing of its own future."""

    __slots__ = (
        "content",
        "end",
        "entered_ps",
        "grant",
        "hit",
        "kept",
        "key",
        "mark",
        "prefix",
        "published",
        "shared",
        "wanted",
    )

    def __init__(
        self, request: Request, sequence: int, page: int, clock: SimClock, content: TokenRuns
    ) -> None:
        super().__init__(request, sequence, Holding(request.session, 0, page), clock)
        self.key = str(sequence)
        self.content = content
        self.grant = NO_LENGTH
        """Tokens that SGLang would let it answer."""
        self.entered_ps = 0
        """When it came into the waiting queue, for the last time."""
        self.end: Node | None = None
        """The end of its path in the tree, which it locks; None while it waits."""
        self.kept = 0
        """Leading tokens of it that the tree has; the rest of its pages are its own."""
        self.published = 0
        """Most tokens it ever put into the tree since it was admitted."""
        self.shared = (
            min(request.prefix_tokens, request.reused_tokens) if request.prefix_id >= 0 else 0
        )
        """Leading tokens that are its shared prefix's."""
        self.hit = 0
        """What the tree had of it when the queue last looked."""
        self.wanted = 0
        """Tokens it had to have computed when it was last asked; 0 before."""
        self.prefix = 0
        """Tokens before its next chunk, as far as that is known."""
        self.mark = 0
        """Tokens that had been prefilled in the engine when it came."""

    @property
    def num_tokens(self) -> int:
        """Tokens that have to have KV before the next one can be made."""
        return self.prompt_tokens + self.generated_tokens

    @property
    def last_scheduled_s(self) -> float:
        """Start of the last step that ran it; one that decodes next was last run by its prefill."""
        last = self.last_scheduled_ps
        if self.decoding and self.clock.last_start_ps > last:
            last = self.clock.last_start_ps
        return to_s(last)
