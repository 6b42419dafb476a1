"""Retention in the simulated engine: blocks kept referenced for sessions that wait for tools.

Pins are soft. They expire, the policy may review them, they never exceed its share of the cache,
and the core gives them up one by one before it lets an allocation fail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from marsbench.core import to_ps, to_s
from marsbench.engine.base import CoreListener
from marsbench.engine.sim.kv import Holding, KvCache
from marsbench.engine.sim.turn import FOREVER, Pin, SimTurn
from marsbench.errors import PolicyError
from marsbench.events import Unpin
from marsbench.scheduler.base import NoRetention, RetentionPolicy

if TYPE_CHECKING:
    from marsbench.engine.sim.view import SimView

FOREVER_S = 9.0e6
"""Latest expiry: about 104 days still fits 64-bit picoseconds."""


class Pins:
    """All pins of a core, by session."""

    def __init__(
        self,
        kv: KvCache,
        policy: RetentionPolicy,
        view: SimView,
        listener: CoreListener,
        num_blocks: int,
    ) -> None:
        self._kv = kv
        self._policy = policy
        self._view = view
        self._listener = listener
        self._enabled = type(policy) is not NoRetention
        self._limit = int(policy.max_share * num_blocks)
        finite = self._enabled and policy.review_s < to_s(FOREVER)
        self._review_ps = to_ps(policy.review_s) if finite else FOREVER
        self._reviewed_at_ps = -1
        self._spares = self._enabled and policy.spares_returned()
        self._pins: dict[int, Pin] = {}
        self.blocks = 0
        """Blocks of all pins; a shared prefix counts in each."""
        self.active = False
        self.dirty = False
        """Something happened since the policy last reviewed."""
        self.next_change_ps = FOREVER
        """Next time at which a pin expires or a review is due."""

    def holdings(self) -> list[Holding]:
        """What the pins reference."""
        return [pin.holding for pin in self._pins.values()]

    def only_pinned(self) -> int:
        """Blocks that nothing but pins hold, each counted once."""
        count = 0
        seen: set[int] = set()
        for pin in self._pins.values():
            holding = pin.holding
            count += pin.num_blocks
            for run in holding.prefix_runs:
                count -= run.hi - run.lo
                if id(run) not in seen and all(holder.pinned for holder in run.holders):
                    count += run.hi - run.lo
                seen.add(id(run))
        return count

    def retain(self, turn: SimTurn, now_ps: int) -> bool:
        """Ask whether a finished turn's blocks are kept; if so, keep them."""
        if not self._enabled:
            return False
        request = turn.request
        answer = self._policy.on_turn_end(
            turn, request.tool_names, request.is_last, self._view, to_s(now_ps)
        )
        full = turn.computed // self._kv.block_size if self._kv.enable_caching else 0
        if answer is None or request.is_last or full == 0 or self.blocks + full > self._limit:
            return False
        if answer.until_s != answer.until_s:  # NaN
            raise PolicyError(f"session {turn.session}: on_turn_end retains until NaN")
        until_ps = to_ps(min(answer.until_s, FOREVER_S))
        if until_ps <= now_ps:
            return False
        tokens = turn.prompt_tokens + turn.generated
        holding = self._kv.keep(turn.holding, turn.computed)
        pin = Pin(holding, turn, context_tokens=tokens, since_ps=now_ps, until_ps=until_ps)
        self._pins[turn.session] = pin
        self.blocks += full
        self.dirty = True
        self._changed()
        self._listener.on_pin(turn.session, turn.turn_index, now_ps, full, until_ps)
        return True

    def returned(self, session: int) -> None:
        """The session's next turn waits in the engine."""
        pin = self._pins.get(session)
        if pin is not None:
            pin.returned = True
            self._changed()

    def drop(self, session: int, now_ps: int, reason: Unpin) -> bool:
        """Give up a session's pin, if there is one."""
        pin = self._pins.pop(session, None)
        if pin is None:
            return False
        self._kv.release(pin.holding, pin.num_blocks * self._kv.block_size)
        self.blocks -= pin.num_blocks
        self._changed()
        self._listener.on_unpin(
            session, pin.turn_index, now_ps, pin.num_blocks, reason, now_ps - pin.since_ps
        )
        return True

    def review(self, now_ps: int) -> bool:
        """Drop expired pins and those the policy gives up. True if any was."""
        dropped = False
        for session in [s for s, pin in self._pins.items() if self._expired(pin, now_ps)]:
            dropped |= self.drop(session, now_ps, Unpin.EXPIRE)
        if self._pins and (self.dirty or now_ps >= self._reviewed_at_ps + self._review_ps):
            self._reviewed_at_ps = now_ps
            self.dirty = False
            given_up = self._policy.review(list(self._pins.values()), self._view, to_s(now_ps))
            for pin in given_up:
                if pin.session not in self._pins:
                    raise PolicyError(f"review gave up session {pin.session}, which has no pin")
                dropped |= self.drop(pin.session, now_ps, Unpin.EXPIRE)
            self._changed()
        return dropped

    def reclaim(self, now_ps: int, waiting: SimTurn | None) -> bool:
        """Give up the pin with the largest key; False if there is none to give.

        For a ``waiting`` turn: not its own session's (that is its prefix hit), and only pins that
        yield to it.
        """
        best: Pin | None = None
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

    def _expired(self, pin: Pin, now_ps: int) -> bool:
        return pin.until_ps <= now_ps and not (self._spares and pin.returned)

    def _changed(self) -> None:
        self.active = bool(self._pins)
        change = FOREVER
        for pin in self._pins.values():
            if pin.until_ps < change and not (self._spares and pin.returned):
                change = pin.until_ps
        if self.active and self._review_ps < FOREVER:
            due = self._reviewed_at_ps + self._review_ps
            change = due if due < change else change
        self.next_change_ps = change
