"""One pass of the simulated SGLang scheduler: which turns prefill, or that all others decode.

The rules are those of SGLang 0.5.23 without overlap and without mixed chunks: what was prefilled
joins the running turns; then a prefill is tried (``Prefill``); if there is none the running turns
decode, and some of them are retracted if their next tokens do not fit. No time
passes here.
"""

from __future__ import annotations

from collections.abc import Callable

from marsbench.engine.base import EngineConfig, Request
from marsbench.engine.retention import PinListener
from marsbench.engine.sim.decoding import Decoding
from marsbench.engine.sim.turn import SimClock
from marsbench.engine.sim_sglang.budget import RETRACT_STEPS, NewTokenRatio
from marsbench.engine.sim_sglang.content import Contents
from marsbench.engine.sim_sglang.policies import Inside
from marsbench.engine.sim_sglang.prefill import Chunk, Prefill
from marsbench.engine.sim_sglang.queue import Queue
from marsbench.engine.sim_sglang.tree import RadixTree
from marsbench.engine.sim_sglang.turn import RadixTurn
from marsbench.errors import EngineError
from marsbench.system import Policies


class RadixBatch:
    """The queues and the memory of a core, of which it composes each pass."""

    def __init__(
        self,
        config: EngineConfig,
        clock: SimClock,
        policies: Policies,
        listener: PinListener,
        requeued: Callable[[RadixTurn, int], None],
    ) -> None:
        """Make an empty batch; ``requeued(turn, computed)`` is told when a running turn lost its memory."""
        self.config = config
        self.clock = clock
        self.tree = RadixTree(config)
        self.queue = Queue(config, self.tree)
        self.contents = Contents()
        self.running: list[RadixTurn] = []
        """Turns that decode, in the order of the batch."""
        self.unfinished: RadixTurn | None = None
        """The one turn of which a part of the prompt is computed."""
        self.admitted: dict[RadixTurn, None] = {}
        """Return the turns that hold memory, in order of admission."""
        self.decoding = Decoding(clock, config.block_size)
        self.full = False
        """No waiting turn is asked until somebody leaves."""
        self.prefilled = 0
        """Tokens prefilled in the engine so far, as SGLang counts them (see ``decoded``)."""
        self.ratio = NewTokenRatio()
        self.inside = Inside(self, policies, listener)
        self._requeued = requeued
        self._prefill = Prefill(self)
        self._fresh = False
        """In this pass the last prefill became the batch that decodes, nothing else being there."""
        self._arrived: list[RadixTurn] = []
        """Turns of the last prefill, which join the running ones in the next pass."""
        self.last_prefill = 0
        """Tokens of the last prefill."""
        self._counted_again = 0
        self._off = 0
        """Passes for which no prefill is tried."""
        self.preempts = config.policy == "priority"
        self._longest = min(config.max_model_len, config.num_blocks * config.block_size) - 1
        self._sequence = 0

    # --- turns come and go ------------------------------------------------------------------

    def grant(self, prompt_tokens: int) -> int:
        """Return how many tokens SGLang would let an answer have, with nothing else in memory."""
        page = self.config.block_size
        pool = (self.config.num_blocks - -(-prompt_tokens // page) - 1) * page - 1
        return max(0, min(self._longest - prompt_tokens - 1, pool))

    def submit(self, request: Request, now_ps: int) -> RadixTurn:
        """Put a turn into the waiting queue."""
        content = self.contents.of(request)
        turn = RadixTurn(request, self._sequence, self.config.block_size, self.clock, content)
        self._sequence += 1
        turn.grant = self.grant(turn.prompt_tokens)
        self._enqueue(turn, now_ps)
        self.inside.submitted(turn)
        return turn

    def _enqueue(self, turn: RadixTurn, now_ps: int) -> None:
        turn.entered_ps = now_ps
        turn.mark = self.prefilled
        self.queue.turns.append(turn)

    def finish(self, turn: RadixTurn) -> None:
        """Let a turn leave that made its last token; what it has stays in the tree."""
        self._publish(turn, turn.computed)
        self._release(turn)
        self.full = False
        if turn in self._arrived:
            self._arrived.remove(turn)
        else:
            self.running.remove(turn)

    def publish(self, turn: RadixTurn) -> None:
        """Put what a turn has computed into the tree, where others find it from now on."""
        self._publish(turn, turn.computed)
        turn.prefix = turn.computed

    def _publish(self, turn: RadixTurn, length: int) -> None:
        tree = self.tree
        if not tree.enabled:
            return
        page = tree.page
        whole = length - length % page
        priority = turn.priority if self.preempts else 0
        node, had = tree.insert(turn.content, whole, counted=turn.published, priority=priority)
        if had > turn.kept:
            tree.free += had - turn.kept  # somebody else put the same in before
        turn.published = max(turn.published, whole)
        prompt = turn.prompt_tokens - turn.prompt_tokens % page
        if 0 < prompt < whole:  # an answer can be dropped without its prompt
            tree.insert(turn.content, prompt, counted=prompt, priority=priority + 1)
        if turn.end is not None:
            tree.unlock(turn.end)
        tree.lock(node)
        turn.end = node
        turn.kept = whole

    def _release(self, turn: RadixTurn) -> None:
        """Free what is a turn's own, and let go of its path."""
        tree = self.tree
        tree.free += self.tree.paged(turn.computed) - turn.kept
        if turn.end is not None:
            tree.unlock(turn.end)
            turn.end = None
        turn.kept = turn.published = 0

    # --- a pass -----------------------------------------------------------------------------

    def settle(self) -> None:
        """Let the turns of the last prefill join the running ones."""
        unfinished = self.unfinished
        if unfinished is not None and unfinished.computed > unfinished.prefix:
            self.publish(unfinished)
        if not self._arrived:
            return
        arrived = [turn for turn in self._arrived if turn is not unfinished]
        if len(arrived) < len(self._arrived) or (arrived and not self.running):
            self.full = False
        if arrived and not self.running:
            self._counted_again = self.last_prefill
            self._fresh = True
        self.running += arrived
        self._arrived = []

    def next_pass(self, now_ps: int) -> list[Chunk] | None:
        """Return the prefill of the next step. If it is empty, all running turns decode; None means
        that nothing can run.
        """
        self.inside.begin(now_ps)
        self.settle()
        chunks = self._try(now_ps)
        if self.inside.refused == len(self.queue.turns) and self.inside.refused and self.running:
            self.full = True  # until somebody leaves or comes, or a pin is given up
        self._fresh = False
        return chunks

    def _try(self, now_ps: int) -> list[Chunk] | None:
        chunks: list[Chunk] = []
        if self._off and self.config.prefill_decode_interval:
            self._off -= 1
        else:
            chunks = self._prefill.compose(now_ps)
        if chunks:
            self._off = self.config.prefill_decode_interval
            self._arrived = [chunk.turn for chunk in chunks]
            return chunks
        if self.running and self._make_room(now_ps):
            return chunks
        return None

    def ask_again(self) -> None:
        """Ask waiting turns again: somebody left, or a pin was given up.

        In a pass that makes a new batch, SGLang says so to the old one.
        """
        if not self._fresh:
            self.full = False

    def quiet(self, now_ps: int) -> bool:
        """Whether the next passes decode, as far as waiting turns and policies are concerned."""
        if self.unfinished is not None or not self.inside.waits_for_nothing(now_ps):
            return False
        self.settle()
        if not self.running:
            return False
        if not self.queue.turns:
            return True
        if self.preempts or self._off:
            return False
        return self.full or len(self.running) >= self.config.max_num_seqs

    def passed(self, steps: int) -> None:
        """Note that so many decode steps were jumped over."""
        self._fresh = False
        self._off = max(self._off - steps, 0)
        self.ratio.decay(steps)
        self.decoded(steps)

    def decoded(self, steps: int) -> None:
        """Note that so many decode steps were made.

        SGLang counts the prompt tokens of each batch it runs. A prefill that finds nothing running
        becomes the batch that decodes, and is counted again in each of its steps.
        """
        self.prefilled += self._counted_again * steps

    # --- decode -----------------------------------------------------------------------------

    def _make_room(self, now_ps: int) -> bool:
        """Take the memory of the next decode step; returns False if all running turns lost theirs."""
        before = len(self.running)
        if self._fits(self.running):
            self.ratio.decay(1)
        else:
            self._retract(now_ps)
        if len(self.running) < before:
            self.full = False
        if not self.running:
            return False
        tree = self.tree
        tree.make_room(len(self.running) * tree.page)
        tree.free -= self._next_tokens(self.running)
        assert tree.free >= 0
        return True

    def _next_tokens(self, turns: list[RadixTurn]) -> int:
        """Return how many tokens the pages have that these turns need for their next tokens."""
        page = self.tree.page
        if page == 1:
            return len(turns)
        return page * sum(turn.computed_tokens % page == 0 for turn in turns)

    def _fits(self, turns: list[RadixTurn]) -> bool:
        need = self._next_tokens(turns)
        self.tree.make_room(need)
        return self.tree.free >= need

    def _retract(self, now_ps: int) -> None:
        """Take memory from running turns, those with the shortest answers first, until the next
        step of the others fits.
        """
        chosen = self.inside.victims(self.running)
        staying = sorted(self.running, key=self._worth, reverse=True) if chosen is None else chosen
        retracted: list[RadixTurn] = []
        while len(staying) > 1 and (not retracted or not self._fits(staying)):
            turn = staying.pop()
            self.give_up(turn, len(staying))
            retracted.append(turn)
        if len(staying) == 1 and not self._fits(staying):
            turn = staying[0]
            raise EngineError(
                f"SGLang would abort session {turn.session} turn {turn.turn_index}: its next token "
                "does not fit although all other turns were retracted"
            )
        if retracted:
            self.running = staying
        self.ratio.retracted(self.running)
        for turn in retracted:
            self.requeue(turn, now_ps)

    def _worth(self, turn: RadixTurn) -> tuple[int, int, int]:
        """Return what a turn is sorted by: the one of least worth is retracted first."""
        by_priority = self.preempts and self.config.retraction_policy == "priority"
        priority = -turn.priority if by_priority else 0
        return (priority, turn.generated_tokens, -turn.prompt_tokens)

    def give_up(self, turn: RadixTurn, staying: int) -> None:
        """Free a running turn's memory, and a bit of the tree for those that stay."""
        self.decoding.stop(turn, self.clock.step)
        turn.holding.blocks = -(-turn.computed // self.tree.page)
        self._release(turn)
        self.tree.make_room(staying * RETRACT_STEPS)

    def requeue(self, turn: RadixTurn, now_ps: int) -> None:
        """Let a turn whose memory was freed wait again, behind all others."""
        computed = turn.computed
        turn.lost = computed
        turn.computed = turn.prefix = 0
        turn.num_preemptions += 1
        del self.admitted[turn]
        self.inside.changed()
        self._requeued(turn, computed)
        self._enqueue(turn, now_ps)

    # --- invariants -------------------------------------------------------------------------

    def check(self) -> None:
        """Assert that every token of memory is accounted for exactly once, and every sum."""
        self.tree.check()
        self.decoding.check(self.running_turns())
        own = sum(self.tree.paged(turn.computed_tokens) - turn.kept for turn in self.admitted)
        held = self.tree.free + self.tree.evictable + self.tree.protected + own
        assert held == self.config.num_blocks * self.config.block_size, (held, own)
        if not self.admitted:
            pinned = self.inside.pinned_blocks * self.config.block_size
            assert self.tree.protected == pinned, "locked, and neither running nor pinned"

    def running_turns(self) -> list[RadixTurn]:
        """Turns that hold memory, in order of admission."""
        return list(self.admitted)
