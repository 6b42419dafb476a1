"""Protocols of the engine-side policies: order, prefill quantum, victim, retention.

An engine (simulated, vLLM's own classes in virtual time, or a live vLLM server) calls these;
the policy answers and never touches the engine. A policy may keep state of its own, fed by
``on_event`` and by its arguments; it has no clock and does no I/O. Everything passed in is
read-only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from marsbench.core import HostView
from marsbench.events import Event

Key = tuple[float, ...]
"""Sort key of a turn; smaller runs first. Ties keep the order of arrival in the engine."""


class TurnView(Protocol):
    """A turn inside an engine, as a policy may read it.

    Its counts hold for the call in which it was shown. Kept longer they may stand still, as they
    do where the engine is another project's.
    """

    @property
    def session(self) -> int: ...
    @property
    def turn_index(self) -> int: ...
    @property
    def session_arrival_s(self) -> float: ...
    @property
    def ready_s(self) -> float:
        """When the turn was submitted to the engine."""
        ...

    @property
    def sequence(self) -> int:
        """Order of submission to the engine (unique, growing)."""
        ...

    @property
    def prompt_tokens(self) -> int: ...
    @property
    def computed_tokens(self) -> int:
        """Tokens whose KV the turn holds now (0 while waiting)."""
        ...

    @property
    def generated_tokens(self) -> int:
        """Output tokens produced so far. (How many will come is not known.)"""
        ...

    @property
    def num_blocks(self) -> int:
        """KV blocks referenced by the turn now."""
        ...

    @property
    def num_preemptions(self) -> int: ...
    @property
    def last_scheduled_s(self) -> float:
        """Start of the last step that ran it; ``ready_s`` if none has."""
        ...


class EngineView(Protocol):
    """The engine, as a policy may read it."""

    @property
    def block_size(self) -> int: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def free_blocks(self) -> int:
        """Unreferenced blocks, those with reusable content included."""
        ...

    @property
    def pinned_blocks(self) -> int:
        """Blocks held only by retention."""
        ...

    @property
    def host(self) -> HostView | None:
        """Host memory for KV; None where there is none, or the engine does not tell."""
        ...

    @property
    def waiting(self) -> Sequence[TurnView]: ...
    @property
    def running(self) -> Sequence[TurnView]: ...
    def cached_tokens(self, turn: TurnView) -> int:
        """Prefix-cache hit the waiting turn would get if scheduled now."""
        ...


class SchedulingPolicy(Protocol):
    """Order of turns inside the engine."""

    reorders_running: bool
    """True if ``running_key`` is to be asked; else running turns keep engine order."""
    resort_s: float
    """Keys are asked before a step if a turn was submitted, finished, preempted or gave up a pin
    since they were last asked, and at least this often (0 = every step, inf = never else)."""

    def on_event(self, event: Event) -> None:
        """Called for every event of the stream, before the next decision."""
        ...

    def waiting_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """Position in the waiting queue (see ``resort_s``)."""
        ...

    def running_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """Position among running turns (see ``resort_s``)."""
        ...

    def prefill_quantum(self, turn: TurnView, view: EngineView, now_s: float) -> int | None:
        """Most prompt tokens the turn may compute in this step; None = no limit of its own."""
        ...

    def on_scheduled(
        self, turn: TurnView, new_tokens: int, quantum: int | None, now_s: float
    ) -> None:
        """A prefill chunk of ``new_tokens`` was put into the step that starts at ``now_s``."""
        ...

    def victim_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """The running turn with the *largest* key is preempted when blocks run out."""
        ...

    def skip_blocked(self) -> bool:
        """True: a waiting turn that does not fit lets later ones pass. False: vLLM's rule, stop."""
        ...

    def shrink_chunks(self) -> bool:
        """True: if a prefill chunk's blocks cannot be had, halve the chunk (down to one block)
        before giving up pins or preempting.
        """
        ...


class Retain(NamedTuple):
    """Keep a finished turn's blocks referenced."""

    until_s: float
    """Give them up at this time unless the session's next turn is already waiting."""


class RetainedView(Protocol):
    """Blocks kept for a session that is waiting for its tools."""

    @property
    def session(self) -> int: ...
    @property
    def turn_index(self) -> int: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def context_tokens(self) -> int: ...
    @property
    def since_s(self) -> float: ...
    @property
    def until_s(self) -> float: ...
    @property
    def returned(self) -> bool:
        """True once the session's next turn is waiting in the engine."""
        ...


class RetentionPolicy(Protocol):
    """Whether a finished turn's KV outlives it. Retention is soft: the engine takes it back
    whenever an allocation would otherwise fail (for waiting turns see ``yields_to``), in the order
    ``reclaim_key`` gives.
    """

    max_share: float
    """Most of the KV cache that may be pinned at once, 0..1 (a shared prefix counts in each pin)."""
    review_s: float
    """``review`` is asked before a step if anything was submitted, finished, preempted or pinned
    since it was last asked, and at least this often while pins exist."""

    def on_event(self, event: Event) -> None: ...

    def on_turn_end(
        self,
        turn: TurnView,
        tool_names: Sequence[str],
        is_last: bool,
        view: EngineView,
        now_s: float,
    ) -> Retain | None:
        """Called once when a turn has produced its last token, before its blocks are freed."""
        ...

    def review(
        self, retained: Sequence[RetainedView], view: EngineView, now_s: float
    ) -> Sequence[RetainedView]:
        """Pins to give up now, before a step is scheduled (expiry is the engine's own job)."""
        ...

    def reclaim_key(self, retained: RetainedView, view: EngineView, now_s: float) -> Key:
        """The pin with the largest key is given up first when blocks run out."""
        ...

    def yields_to(
        self, retained: RetainedView, turn: TurnView, view: EngineView, now_s: float
    ) -> bool:
        """Whether the pin may be given up so that a *waiting* turn fits. If not, the turn waits;
        a running turn's growth takes pins without asking, and so does a waiting one if nothing
        runs (the pool can never wedge).
        """
        ...

    def spares_returned(self) -> bool:
        """True: a pin whose time is up is kept while its session's next turn waits."""
        ...


class EngineOrder:
    """The null scheduling policy: vLLM's own order, quantum and victim."""

    reorders_running = False
    resort_s = math.inf

    def on_event(self, event: Event) -> None:
        """Nothing to learn."""

    def waiting_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """Order of submission; a preempted turn goes to the front."""
        return (0.0 if turn.num_preemptions else 1.0, float(turn.sequence))

    def running_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """Never asked."""
        return ()

    def prefill_quantum(self, turn: TurnView, view: EngineView, now_s: float) -> int | None:
        """The engine's own limits only."""
        return None

    def on_scheduled(
        self, turn: TurnView, new_tokens: int, quantum: int | None, now_s: float
    ) -> None:
        """Nothing to learn."""

    def victim_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """Equal for all: the engine takes the last of the running turns."""
        return ()

    def skip_blocked(self) -> bool:
        """VLLM stops at the first turn that does not fit."""
        return False

    def shrink_chunks(self) -> bool:
        """VLLM preempts at once."""
        return False


class NoRetention:
    """The null retention policy: a finished turn's blocks go to the prefix cache's LRU."""

    max_share = 0.0
    review_s = math.inf

    def on_event(self, event: Event) -> None:
        """Nothing to learn."""

    def on_turn_end(
        self,
        turn: TurnView,
        tool_names: Sequence[str],
        is_last: bool,
        view: EngineView,
        now_s: float,
    ) -> Retain | None:
        """Never retains."""
        return None

    def review(
        self, retained: Sequence[RetainedView], view: EngineView, now_s: float
    ) -> Sequence[RetainedView]:
        """Nothing is retained."""
        return ()

    def reclaim_key(self, retained: RetainedView, view: EngineView, now_s: float) -> Key:
        """Never asked."""
        return ()

    def yields_to(
        self, retained: RetainedView, turn: TurnView, view: EngineView, now_s: float
    ) -> bool:
        """Never asked."""
        return True

    def spares_returned(self) -> bool:
        """Never asked."""
        return False
