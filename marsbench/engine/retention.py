"""The retention book: KV that an engine keeps for sessions whose tools are running.

Whether a finished turn's blocks are kept is the policy's word; what is kept, until when, and who
gives way when memory runs out is written down here, in the same way for every engine. An engine
puts in what it holds for a session (its own kind of reference to blocks) and how to let go of it.

Pins are soft. They expire, the policy may review them, together they never exceed its share of
the cache, and the engine gives them up one by one before it lets an allocation fail.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from marsbench.core import to_ps, to_s
from marsbench.errors import PolicyError
from marsbench.events import Unpin
from marsbench.scheduler.base import EngineView, NoRetention, RetentionPolicy, TurnView

FOREVER = 1 << 62
"""A time that never comes, picoseconds."""
FOREVER_S = 9.0e6
"""The longest time a policy can name, seconds: about 104 days still fits 64-bit picoseconds."""

Held = TypeVar("Held")
"""What an engine holds for a session: its own kind of reference to blocks."""


class PinListener(Protocol):
    """Whom the book tells about pins. All times in picoseconds."""

    def on_pin(
        self, session: int, turn_index: int, at_ps: int, blocks: int, until_ps: int
    ) -> None: ...
    def on_unpin(
        self, session: int, turn_index: int, at_ps: int, blocks: int, reason: int, held_ps: int
    ) -> None: ...


class Pin(Generic[Held]):
    """What is kept for one session (a ``scheduler.base.RetainedView``)."""

    __slots__ = (
        "context_tokens",
        "held",
        "num_blocks",
        "returned",
        "session",
        "since_ps",
        "turn_index",
        "until_ps",
    )

    def __init__(
        self, turn: TurnView, held: Held, num_blocks: int, since_ps: int, until_ps: int
    ) -> None:
        self.held = held
        self.session = turn.session
        self.turn_index = turn.turn_index
        self.num_blocks = num_blocks
        self.context_tokens = turn.prompt_tokens + turn.generated_tokens
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


class RetentionBook(Generic[Held]):
    """All pins of an engine, by session, in order of pinning."""

    def __init__(
        self,
        policy: RetentionPolicy,
        view: EngineView,
        listener: PinListener,
        num_blocks: int,
        release: Callable[[Held], object],
    ) -> None:
        """``release`` gives the engine back what it holds for a pin."""
        self._policy = policy
        self._view = view
        self._listener = listener
        self._release = release
        self.enabled = type(policy) is not NoRetention
        """Whether anything can ever be kept: if not, the book need not be asked."""
        self._limit = int(policy.max_share * num_blocks)
        finite = self.enabled and policy.review_s < to_s(FOREVER)
        self._review_ps = picoseconds(policy.review_s, "review_s") if finite else FOREVER
        self._reviewed_at_ps = -1
        self._spares = self.enabled and policy.spares_returned()
        self._pins: dict[int, Pin[Held]] = {}
        self.blocks = 0
        """Blocks of all pins; a shared prefix counts in each."""
        self.active = False
        """Whether there is any pin."""
        self.dirty = False
        """Something happened since the policy last reviewed."""
        self.next_change_ps = FOREVER
        """Next time at which a pin expires or a review is due."""

    def pins(self) -> list[Pin[Held]]:
        """Return all pins, in order of pinning."""
        return list(self._pins.values())

    # --- pins come and go ------------------------------------------------------------------

    def keep_until(
        self,
        turn: TurnView,
        tool_names: Sequence[str],
        is_last: bool,
        num_blocks: int,
        now_ps: int,
    ) -> int:
        """Ask about a finished turn of so many full blocks. Until when they are to be kept: if
        that is later than now, the engine has to hold them and ``pin`` what it holds.
        """
        answer = self._policy.on_turn_end(turn, tool_names, is_last, self._view, to_s(now_ps))
        if answer is None or is_last:
            return now_ps
        until_ps = picoseconds(answer.until_s, f"on_turn_end of session {turn.session}")
        fits = 0 < num_blocks <= self._limit - self.blocks
        return until_ps if fits else now_ps

    def pin(self, turn: TurnView, held: Held, num_blocks: int, now_ps: int, until_ps: int) -> None:
        """Pin blocks of a turn that the engine holds for as long as ``keep_until`` said."""
        session = turn.session
        assert session not in self._pins, session
        self._pins[session] = Pin(turn, held, num_blocks, now_ps, until_ps)
        self.blocks += num_blocks
        self.dirty = True
        self._changed()
        self._listener.on_pin(session, turn.turn_index, now_ps, num_blocks, until_ps)

    def returned(self, session: int) -> None:
        """Note that the next turn of a session with a pin waits in the engine."""
        pin = self._pins.get(session)
        if pin is not None:
            pin.returned = True
            self._changed()

    def drop(self, session: int, now_ps: int, reason: Unpin) -> bool:
        """Give up a session's pin; False if it has none."""
        pin = self._pins.pop(session, None)
        if pin is None:
            return False
        self._release(pin.held)
        self.blocks -= pin.num_blocks
        self._changed()
        self._listener.on_unpin(
            session, pin.turn_index, now_ps, pin.num_blocks, int(reason), now_ps - pin.since_ps
        )
        return True

    # --- before a step, and when memory runs out -------------------------------------------

    def review(self, now_ps: int) -> bool:
        """Drop expired pins and those the policy gives up. True if any was."""
        if not self.active or (now_ps < self.next_change_ps and not self.dirty):
            return False
        dropped = False
        for session in [s for s, pin in self._pins.items() if self._expired(pin, now_ps)]:
            dropped |= self.drop(session, now_ps, Unpin.EXPIRE)
        if self._pins and (self.dirty or now_ps >= self._reviewed_at_ps + self._review_ps):
            self._reviewed_at_ps = now_ps
            self.dirty = False
            for pin in self._policy.review(self.pins(), self._view, to_s(now_ps)):
                if not self.drop(pin.session, now_ps, Unpin.EXPIRE):
                    raise PolicyError(f"review gave up session {pin.session}, which has no pin")
                dropped = True
            self._changed()
        return dropped

    def reclaim(self, now_ps: int, waiting: TurnView | None) -> bool:
        """Give up the pin with the largest key; False if there is none to give.

        For a ``waiting`` turn: not its own session's (that is its prefix hit), and only pins that
        yield to it.
        """
        best: Pin[Held] | None = None
        best_key: tuple[float, ...] = ()
        now_s = to_s(now_ps)
        for pin in self._pins.values():
            if waiting is not None and (
                pin.session == waiting.session
                or not self._policy.yields_to(pin, waiting, self._view, now_s)
            ):
                continue
            key = self._policy.reclaim_key(pin, self._view, now_s)
            if best is None or key > best_key:
                best, best_key = pin, key
        return best is not None and self.drop(best.session, now_ps, Unpin.PRESSURE)

    def _expired(self, pin: Pin[Held], now_ps: int) -> bool:
        return pin.until_ps <= now_ps and not (self._spares and pin.returned)

    def _changed(self) -> None:
        self.active = bool(self._pins)
        change = FOREVER
        for pin in self._pins.values():
            if pin.until_ps < change and not (self._spares and pin.returned):
                change = pin.until_ps
        if self.active and self._review_ps < FOREVER:
            due = self._reviewed_at_ps + self._review_ps
            change = min(change, due)
        self.next_change_ps = change


def picoseconds(value_s: float, what: str) -> int:
    """Convert a policy's time or interval to picoseconds, infinity to FOREVER_S; PolicyError for
    what is no number.
    """
    if math.isnan(value_s):
        raise PolicyError(f"{what}: not a number of seconds")
    return to_ps(min(value_s, FOREVER_S))
