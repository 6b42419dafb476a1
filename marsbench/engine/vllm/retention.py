"""KV blocks kept referenced for sessions that wait for their tools, and how they are given up."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from marsbench.core import to_ps, to_s
from marsbench.errors import PolicyError
from marsbench.events import Unpin
from marsbench.scheduler.base import EngineView, RetentionPolicy, TurnView

FOREVER_S = 9.0e6
"""Latest expiry: about 104 days still fits 64-bit picoseconds."""

OnPin = Callable[[int, int, int, int, int], None]
OnUnpin = Callable[[int, int, int, int, int, int], None]


class Pin:
    """Retained blocks of one session (a ``RetainedView``)."""

    __slots__ = (
        "blocks",
        "context_tokens",
        "returned",
        "session",
        "since_ps",
        "turn_index",
        "until_ps",
    )

    def __init__(
        self,
        session: int,
        turn_index: int,
        blocks: Sequence[Any],
        context_tokens: int,
        since_ps: int,
        until_ps: int,
    ) -> None:
        self.session = session
        self.turn_index = turn_index
        self.blocks = blocks
        self.context_tokens = context_tokens
        self.since_ps = since_ps
        self.until_ps = until_ps
        self.returned = False

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)

    @property
    def since_s(self) -> float:
        return to_s(self.since_ps)

    @property
    def until_s(self) -> float:
        return to_s(self.until_ps)


class Pins:
    """All retained blocks of an engine, in order of pinning."""

    def __init__(
        self, policy: RetentionPolicy, pool: Any, on_pin: OnPin, on_unpin: OnUnpin
    ) -> None:
        self._policy = policy
        self._pool = pool
        self._limit = int(policy.max_share * (pool.num_gpu_blocks - 1))
        self._on_pin = on_pin
        self._on_unpin = on_unpin
        self._pins: dict[int, Pin] = {}
        self._reviewed_ps = -1
        self._expiry_ps = picoseconds(math.inf, "expiry")
        """No pin's time is up before."""
        self.num_blocks = 0
        """Blocks of all pins; a shared prefix counts in each."""
        self.dirty = False
        """Something happened since the policy last reviewed."""

    def holders(self) -> Counter[int]:
        """How many pins hold each block, by block id."""
        return Counter(block.block_id for pin in self._pins.values() for block in pin.blocks)

    def only_pinned(self) -> int:
        """Blocks that nothing but pins hold, each counted once."""
        alone = 0
        shared: Counter[Any] = Counter()
        for pin in self._pins.values():
            counts = [block.ref_cnt for block in pin.blocks]
            alone += counts.count(1)  # most blocks have one reference, and it is this pin's
            shared.update(b.block_id for b, num in zip(pin.blocks, counts, strict=True) if num > 1)
        blocks = self._pool.blocks
        return alone + sum(bool(blocks[index].ref_cnt == num) for index, num in shared.items())

    def turn_ended(
        self,
        turn: TurnView,
        tool_names: Sequence[str],
        is_last: bool,
        blocks: Sequence[Any],
        view: EngineView,
        now_ps: int,
    ) -> None:
        """Ask the policy about a finished turn and reference its full blocks if it says so."""
        answer = self._policy.on_turn_end(turn, tool_names, is_last, view, to_s(now_ps))
        if answer is None or is_last:
            return
        until_ps = picoseconds(answer.until_s, f"on_turn_end of session {turn.session}")
        kept = [block for block in blocks if block.block_hash is not None]
        if not kept or until_ps <= now_ps or self.num_blocks + len(kept) > self._limit:
            return
        assert turn.session not in self._pins, turn.session
        self._pool.touch(kept)
        context = turn.prompt_tokens + turn.generated_tokens
        self._pins[turn.session] = Pin(
            turn.session, turn.turn_index, kept, context, now_ps, until_ps
        )
        self._expiry_ps = min(self._expiry_ps, until_ps)
        self.num_blocks += len(kept)
        self.dirty = True
        self._on_pin(turn.session, turn.turn_index, now_ps, len(kept), until_ps)

    def returned(self, session: int) -> None:
        """The session's next turn is waiting."""
        if (pin := self._pins.get(session)) is not None:
            pin.returned = True

    def before_step(self, view: EngineView, now_ps: int) -> bool:
        """Expiries, then the policy's review. True if a pin was given up."""
        before = len(self._pins)
        if not before:
            return False
        if now_ps >= self._expiry_ps:
            self._expire(now_ps)
        review_ps = picoseconds(self._policy.review_s, "review_s")
        if self._pins and (self.dirty or now_ps >= self._reviewed_ps + review_ps):
            self.dirty = False
            self._reviewed_ps = now_ps
            for given in self._policy.review(list(self._pins.values()), view, to_s(now_ps)):
                if (pin := self._pins[given.session]) is not given:
                    raise PolicyError(f"review gave up {given!r}, which is not a current pin")
                self._give_up(pin, now_ps, Unpin.EXPIRE)
        return len(self._pins) < before

    def _expire(self, now_ps: int) -> None:
        """Give up the pins whose time is up."""
        spares = self._policy.spares_returned()
        for pin in list(self._pins.values()):
            if pin.until_ps <= now_ps and not (spares and pin.returned):
                self._give_up(pin, now_ps, Unpin.EXPIRE)
        forever_ps = picoseconds(math.inf, "expiry")
        self._expiry_ps = min((pin.until_ps for pin in self._pins.values()), default=forever_ps)

    def reclaim(self, view: EngineView, now_ps: int, waiting: TurnView | None) -> bool:
        """Give up the pin with the largest key; False if there is none to give.

        For a ``waiting`` turn: not its own session's (that is its prefix hit), and only pins that
        yield to it.
        """
        if not self._pins:
            return False
        now_s = to_s(now_ps)
        pins = list(self._pins.values())
        if waiting is not None:
            pins = [
                pin
                for pin in pins
                if pin.session != waiting.session
                and self._policy.yields_to(pin, waiting, view, now_s)
            ]
        if not pins:
            return False
        worst = max(pins, key=lambda pin: self._policy.reclaim_key(pin, view, now_s))
        self._give_up(worst, now_ps, Unpin.PRESSURE)
        return True

    def release(self, session: int, now_ps: int, reason: Unpin) -> bool:
        """The session does not need its pin any more. False if it has none."""
        pin = self._pins.get(session)
        if pin is not None:
            self._give_up(pin, now_ps, reason)
        return pin is not None

    def _give_up(self, pin: Pin, now_ps: int, reason: Unpin) -> None:
        del self._pins[pin.session]
        self.num_blocks -= len(pin.blocks)
        self._pool.free_blocks(reversed(pin.blocks))
        held_ps = now_ps - pin.since_ps
        self._on_unpin(pin.session, pin.turn_index, now_ps, len(pin.blocks), int(reason), held_ps)


def picoseconds(value_s: float, what: str) -> int:
    """A policy's time or interval in picoseconds; infinity is FOREVER_S."""
    if math.isnan(value_s):
        raise PolicyError(f"{what}: not a number of seconds")
    return to_ps(min(value_s, FOREVER_S))
