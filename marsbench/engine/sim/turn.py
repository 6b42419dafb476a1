"""A turn inside the simulated engine, and what policies may see of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from marsbench.core import to_s
from marsbench.engine.base import Request
from marsbench.engine.sim.kv import Holding

if TYPE_CHECKING:
    from marsbench.engine.sim.offload import TurnCopies


class SimClock:
    """Step counter of a core: decoding turns derive their progress from it."""

    def __init__(self) -> None:
        self.step = 0
        self.last_start_ps = 0
        """Start of the last step executed."""


class SimTurn:
    """A turn as far as it has come. Read-only for policies (``scheduler.base.TurnView``).

    It knows nothing of its own future: how many tokens it will make stands in the batch's requests
    and in ``Decoding``. While it decodes, one token a step, nothing of it is updated: its counts
    are the step counter plus what they were when it began, less the step then.
    """

    __slots__ = (
        "cached",
        "clock",
        "computed",
        "copies",
        "decoding",
        "generated",
        "generated_offset",
        "here_tokens",
        "holding",
        "last_scheduled_ps",
        "lost",
        "num_preemptions",
        "offset",
        "prefilled",
        "prefix_id",
        "priority",
        "prompt_tokens",
        "ready_ps",
        "recomputed",
        "reused_tokens",
        "run_order",
        "sequence",
        "session",
        "session_arrival_ps",
        "turn_index",
    )

    def __init__(self, request: Request, sequence: int, holding: Holding, clock: SimClock) -> None:
        self.clock = clock
        self.session = request.session
        self.turn_index = request.turn_index
        self.prompt_tokens = request.prompt_tokens
        self.reused_tokens = request.reused_tokens
        self.here_tokens = request.here_tokens
        self.prefix_id = request.prefix_id
        self.priority = request.priority
        self.session_arrival_ps = request.session_arrival_ps
        self.ready_ps = request.ready_ps
        self.sequence = sequence
        self.holding = holding
        self.copies: TurnCopies | None = None
        """Only with host memory."""
        self.computed = 0
        """Tokens with KV; stale while decoding."""
        self.generated = 0
        """Output tokens made; stale while decoding."""
        self.decoding = False
        self.offset = 0
        """While decoding: computed tokens minus the step counter."""
        self.generated_offset = 0
        """While decoding: output tokens minus the step counter."""
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
    def computed_tokens(self) -> int:
        """Tokens whose KV the turn holds."""
        return self.offset + self.clock.step if self.decoding else self.computed

    @property
    def generated_tokens(self) -> int:
        """Output tokens produced so far."""
        if self.decoding:
            return self.generated_offset + self.clock.step
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
        return to_s(self.session_arrival_ps)

    @property
    def ready_s(self) -> float:
        """Submission to the engine, seconds."""
        return to_s(self.ready_ps)

    @property
    def last_scheduled_s(self) -> float:
        """Start of the last step that ran it, seconds; ``ready_s`` before the first."""
        last = self.clock.last_start_ps if self.decoding else self.last_scheduled_ps
        return to_s(last)
