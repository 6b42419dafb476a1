"""A turn inside the simulated engine, and what policies may see of it and of its pins."""

from __future__ import annotations

from marsbench.core import to_s
from marsbench.engine.base import Request
from marsbench.engine.sim.kv import Holding

FOREVER = 1 << 62
"""A time that never comes, picoseconds."""


class SimClock:
    """Step counter of a core: decoding turns derive their progress from it."""

    def __init__(self) -> None:
        self.step = 0
        self.last_start_ps = 0
        """Start of the last step executed."""


class SimTurn:
    """One request and its progress. Read-only for policies (``scheduler.base.TurnView``).

    While a turn decodes, one token a step, nothing of it is updated: its counts follow from the
    step counter and from ``finish_step``, the step that makes its last token.
    """

    __slots__ = (
        "cached",
        "clock",
        "computed",
        "decoding",
        "finish_step",
        "generated",
        "holding",
        "last_scheduled_ps",
        "lost",
        "num_preemptions",
        "output_tokens",
        "prefilled",
        "prompt_tokens",
        "recomputed",
        "request",
        "run_order",
        "sequence",
        "session",
        "turn_index",
    )

    def __init__(self, request: Request, sequence: int, holding: Holding, clock: SimClock) -> None:
        self.request = request
        self.clock = clock
        self.session = request.session
        self.turn_index = request.turn_index
        self.prompt_tokens = request.prompt_tokens
        self.output_tokens = request.output_tokens
        self.sequence = sequence
        self.holding = holding
        self.computed = 0
        """Tokens with KV; stale while decoding."""
        self.generated = 0
        """Output tokens made; stale while decoding."""
        self.decoding = False
        self.finish_step = -1
        self.run_order = -1
        self.cached = -1
        """Prefix hit when first scheduled, tokens; -1 before."""
        self.prefilled = 0
        self.recomputed = 0
        self.lost = 0
        """Computed tokens at the last preemption."""
        self.num_preemptions = 0
        self.last_scheduled_ps = request.ready_ps

    @property
    def offset(self) -> int:
        """Computed tokens minus the step counter, constant while decoding."""
        return self.prompt_tokens + self.output_tokens - 2 - self.finish_step

    @property
    def computed_tokens(self) -> int:
        """Tokens whose KV the turn holds."""
        return self.offset + self.clock.step if self.decoding else self.computed

    @property
    def generated_tokens(self) -> int:
        """Output tokens produced so far."""
        if self.decoding:
            return self.output_tokens - 1 - self.finish_step + self.clock.step
        return self.generated

    @property
    def num_blocks(self) -> int:
        """Blocks referenced now."""
        if self.decoding:
            pages = self.holding.block_size
            return -(-self.computed_tokens // pages)
        return self.holding.blocks

    @property
    def session_arrival_s(self) -> float:
        """Arrival of the session, seconds."""
        return to_s(self.request.session_arrival_ps)

    @property
    def ready_s(self) -> float:
        """Submission to the engine, seconds."""
        return to_s(self.request.ready_ps)

    @property
    def last_scheduled_s(self) -> float:
        """Start of the last step that ran it, seconds; ``ready_s`` before the first."""
        last = self.clock.last_start_ps if self.decoding else self.last_scheduled_ps
        return to_s(last)


class Pin:
    """Blocks kept for a session whose tools are running (``scheduler.base.RetainedView``)."""

    __slots__ = (
        "context_tokens",
        "holding",
        "num_blocks",
        "returned",
        "session",
        "since_ps",
        "turn_index",
        "until_ps",
    )

    def __init__(
        self, holding: Holding, turn: SimTurn, *, context_tokens: int, since_ps: int, until_ps: int
    ) -> None:
        self.holding = holding
        self.session = turn.session
        self.turn_index = turn.turn_index
        self.num_blocks = holding.blocks
        self.context_tokens = context_tokens
        self.since_ps = since_ps
        self.until_ps = until_ps
        self.returned = False

    @property
    def since_s(self) -> float:
        """When the turn ended, seconds."""
        return to_s(self.since_ps)

    @property
    def until_s(self) -> float:
        """When the pin expires, seconds."""
        return to_s(self.until_ps)
