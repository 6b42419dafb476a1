"""Policies inside the simulated SGLang: order, quantum, victim and retention of any marsbench policy.

They are asked where ``sglang-core`` asks them: the queue is sorted after SGLang has ordered it; a
chunk is clipped, pins are given up for a turn that does not fit, and later ones may pass; memory is
taken back from pins when the tree has nothing else to drop; retraction asks for the victim. With
the null policies none of these does anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from marsbench.core import to_s
from marsbench.engine.base import Request
from marsbench.engine.retention import PinListener, RetentionBook, picoseconds
from marsbench.engine.sim_sglang.tree import Node
from marsbench.engine.sim_sglang.turn import RadixTurn
from marsbench.engine.sim_sglang.view import RadixView
from marsbench.errors import PolicyError
from marsbench.events import Unpin
from marsbench.scheduler.base import EngineOrder, SchedulingPolicy
from marsbench.system import Policies

if TYPE_CHECKING:
    from marsbench.engine.sim_sglang.batch import RadixBatch


class Inside:
    """The policies of one core, and what they keep."""

    def __init__(self, batch: RadixBatch, policies: Policies, listener: PinListener) -> None:
        stock = type(policies.scheduling) is EngineOrder
        self.order: SchedulingPolicy | None = None if stock else policies.scheduling
        self.view = RadixView(batch, self)
        self.book: RetentionBook[Node] = RetentionBook(
            policies.retention, self.view, listener, batch.config.num_blocks, self._release
        )
        self.now_ps = 0
        self.refused = 0
        """Waiting turns passed over in this pass because they do not fit."""
        self._batch = batch
        self._retention = policies.retention
        self._resort_ps = picoseconds(policies.scheduling.resort_s, "resort_s")
        self._sorted_ps = -1
        self._resort = True
        self._pinned = -1
        """Pages only pins hold; -1: not known any more."""
        if self.book.enabled:
            batch.tree.reclaim = self._take_back

    @property
    def pinned_blocks(self) -> int:
        """Pages that nothing but pins hold, each counted once."""
        if self._pinned < 0:
            pinned: dict[Node, None] = {}
            for pin in self.book.pins():
                pinned.update(dict.fromkeys(pin.held.path()))
            for turn in self._batch.admitted:
                for node in turn.end.path() if turn.end is not None and pinned else ():
                    pinned.pop(node, None)
            self._pinned = sum(node.size for node in pinned) // self.view.block_size
        return self._pinned

    def _release(self, node: Node) -> None:
        self._batch.tree.unlock(node)
        self._batch.ask_again()

    def _gave_up(self) -> bool:
        """Note that a pin is gone: who waits may be ordered differently, and fit."""
        self._resort = True
        self._pinned = -1
        return True

    def _take_back(self) -> bool:
        """Give up a pin because an allocation would fail."""
        return self.book.reclaim(self.now_ps, None) and self._gave_up()

    # --- a turn's life ----------------------------------------------------------------------

    def changed(self) -> None:
        """Ask keys and review again, since a turn was submitted, retracted or finished."""
        self._resort = True
        self._pinned = -1
        self.book.dirty = True
        if self.order is not None and self.order.skip_blocked():
            self._batch.ask_again()

    def submitted(self, turn: RadixTurn) -> None:
        """Note that a turn is in the waiting queue."""
        pinned = self._pinned
        self.book.returned(turn.session)
        self.changed()
        self._pinned = pinned  # nobody's memory changed

    def admitted(self, turn: RadixTurn, now_ps: int) -> None:
        """Drop the pin of a turn that holds memory."""
        self._pinned = -1
        self.book.drop(turn.session, now_ps, Unpin.RETURN)

    def finished(self, turn: RadixTurn, request: Request, now_ps: int) -> None:
        """Lock what the tree has of a finished turn's context if the policy says so."""
        self.changed()
        if not self.book.enabled:
            return
        tree = self._batch.tree
        node = tree.match(turn.content, turn.num_tokens - 1)
        blocks = node.high // tree.page
        until_ps = self.book.keep_until(turn, request.tool_names, request.is_last, blocks, now_ps)
        if until_ps > now_ps:
            tree.lock(node)
            self.book.pin(turn, node, blocks, now_ps, until_ps)
        self._pinned = -1

    def session_ended(self, session: int, now_ps: int) -> None:
        """Drop the pin of a session of which no further turn will come."""
        if self.book.drop(session, now_ps, Unpin.END):
            self._gave_up()

    # --- a pass -----------------------------------------------------------------------------

    def begin(self, now_ps: int) -> None:
        """Begin a pass: review pins."""
        self.now_ps = now_ps
        self.refused = 0
        if self.book.review(now_ps):
            self._gave_up()

    def waits_for_nothing(self, now_ps: int) -> bool:
        """Whether the next pass would not review anything."""
        book = self.book
        return not book.active or not (book.dirty or book.next_change_ps <= now_ps)

    def sort(self, turns: list[RadixTurn], *, looked: bool) -> None:
        """Ask for the order of the queue, if that is due. ``looked``: prefixes were just looked up."""
        order, now_ps = self.order, self.now_ps
        if order is None or not (self._resort or now_ps >= self._sorted_ps + self._resort_ps):
            return
        self._resort = False
        self._sorted_ps = now_ps
        if len(turns) < 2:
            return
        view, now_s = self.view, to_s(now_ps)
        view.looked = looked
        keys = {turn: (order.waiting_key(turn, view, now_s), turn.sequence) for turn in turns}
        view.looked = False
        turns.sort(key=keys.__getitem__)

    def quantum(self, turn: RadixTurn) -> int | None:
        """Return the most tokens of a turn's prompt in this step, in whole pages; None: no limit."""
        if self.order is None:
            return None
        quantum = self.order.prefill_quantum(turn, self.view, to_s(self.now_ps))
        if quantum is None:
            return None
        if quantum < 1:
            raise PolicyError(f"prefill_quantum must be at least 1 token, got {quantum}")
        page = self.view.block_size
        return max(quantum // page, 1) * page

    def scheduled(self, turn: RadixTurn, tokens: int, quantum: int | None) -> None:
        """Tell the policy of a chunk that was put into the step."""
        if self.order is not None:
            self.order.on_scheduled(turn, tokens, quantum, to_s(self.now_ps))

    def reclaim(self, turn: RadixTurn, lacking: int) -> bool:
        """Give up one pin so that a waiting turn fits, if all that yield are enough.

        Its own pin is its prefix hit: last, and only if nothing runs.
        """
        book, now_ps = self.book, self.now_ps
        if not book.active:
            return False
        if self._batch.admitted:
            now_s = to_s(now_ps)
            blocks = sum(
                pin.num_blocks
                for pin in book.pins()
                if pin.session != turn.session
                and self._retention.yields_to(pin, turn, self.view, now_s)
            )
            enough = blocks * self.view.block_size >= lacking
            reclaimed = enough and book.reclaim(now_ps, turn)
        else:
            reclaimed = book.reclaim(now_ps, turn) or book.reclaim(now_ps, None)
        return reclaimed and self._gave_up()

    def passed_over(self) -> bool:
        """Pass a waiting turn over that does not fit; returns whether later ones are asked."""
        self.refused += 1
        return self.order is not None and self.order.skip_blocked()

    def victims(self, running: list[RadixTurn]) -> list[RadixTurn] | None:
        """Return running turns, the last one to lose its memory first; None: as SGLang says."""
        order, now_s = self.order, to_s(self.now_ps)
        if order is None:
            return None
        return sorted(running, key=lambda turn: order.victim_key(turn, self.view, now_s))
