"""One pass of the simulated SGLang scheduler: which turns prefill, or that all others decode.

The rules are those of SGLang 0.5.23 without overlap and without mixed chunks: what was prefilled
joins the running turns; then a prefill is tried, first for the turn whose prompt is unfinished,
then for waiting ones in order, each with memory for its answer as it is expected; if there is none
the running turns decode, and some of them are retracted if their next tokens do not fit. No time
passes here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from marsbench.engine.base import EngineConfig, Request
from marsbench.engine.retention import PinListener
from marsbench.engine.sim.decoding import Decoding
from marsbench.engine.sim.turn import SimClock
from marsbench.engine.sim_sglang.budget import (
    RETRACT_STEPS,
    Budget,
    NewTokenRatio,
    Verdict,
    rest_of_answer,
    whole_answer,
)
from marsbench.engine.sim_sglang.content import Contents
from marsbench.engine.sim_sglang.policies import Inside
from marsbench.engine.sim_sglang.queue import Queue, left_to_prefill
from marsbench.engine.sim_sglang.tree import Node, RadixTree
from marsbench.engine.sim_sglang.turn import RadixTurn
from marsbench.errors import EngineError
from marsbench.system import Policies

PREEMPT_BY = 10
"""Priority: a waiting turn takes seats of running ones whose priority is worse by more than this."""


class Chunk(NamedTuple):
    """A part of a prompt that is computed in one step."""

    turn: RadixTurn
    start: int
    """Tokens before it."""
    tokens: int
    completes: bool
    """Whether it is the last of its prompt, after which a token comes."""


class RadixBatch:
    """Queues and memory of a core."""

    def __init__(
        self,
        config: EngineConfig,
        clock: SimClock,
        policies: Policies,
        listener: PinListener,
        requeued: Callable[[RadixTurn, int], None],
    ) -> None:
        """``requeued(turn, computed)`` is told when a running turn lost its memory."""
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
        """Turns that hold memory, in order of admission."""
        self.decoding = Decoding(clock, config.block_size)
        self.full = False
        """No waiting turn is asked until somebody leaves."""
        self.prefilled = 0
        """Tokens prefilled in the engine so far, as SGLang counts them (see ``decoded``)."""
        self.ratio = NewTokenRatio()
        self.inside = Inside(self, policies, listener)
        self._requeued = requeued
        self._begun: RadixTurn | None = None
        """The turn whose prefill is begun in this pass and does not end in it."""
        self._fresh = False
        """In this pass the last prefill became the batch that decodes, nothing else being there."""
        self._arrived: list[RadixTurn] = []
        """Turns of the last prefill, which join the running ones in the next pass."""
        self._last_prefill = 0
        self._counted_again = 0
        self._off = 0
        """Passes for which no prefill is tried."""
        self._preempts = config.policy == "priority"
        self._longest = min(config.max_model_len, config.num_blocks * config.block_size) - 1
        self._sequence = 0

    # --- turns come and go ------------------------------------------------------------------

    def grant(self, prompt_tokens: int) -> int:
        """Tokens that SGLang would let an answer have, with nothing else in memory."""
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
        """A turn made its last token: what it has stays in the tree, and it leaves."""
        self._publish(turn, turn.computed)
        self._release(turn)
        self.full = False
        if turn in self._arrived:
            self._arrived.remove(turn)
        else:
            self.running.remove(turn)

    def publish(self, turn: RadixTurn) -> None:
        """What a turn has computed is found by others from now on."""
        self._publish(turn, turn.computed)
        turn.prefix = turn.computed

    def _publish(self, turn: RadixTurn, length: int) -> None:
        tree = self.tree
        if not tree.enabled:
            return
        page = tree.page
        whole = length - length % page
        priority = turn.priority if self._preempts else 0
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
        tree.free += self._paged(turn.computed) - turn.kept
        if turn.end is not None:
            tree.unlock(turn.end)
            turn.end = None
        turn.kept = turn.published = 0

    def _paged(self, tokens: int) -> int:
        page = self.tree.page
        return -(-tokens // page) * page

    # --- a pass -----------------------------------------------------------------------------

    def settle(self) -> None:
        """The last prefill joins the running turns."""
        unfinished = self.unfinished
        if unfinished is not None and unfinished.computed > unfinished.prefix:
            self.publish(unfinished)
        if not self._arrived:
            return
        arrived = [turn for turn in self._arrived if turn is not unfinished]
        if len(arrived) < len(self._arrived) or (arrived and not self.running):
            self.full = False
        if arrived and not self.running:
            self._counted_again = self._last_prefill
            self._fresh = True
        self.running += arrived
        self._arrived = []

    def next_pass(self, now_ps: int) -> list[Chunk] | None:
        """The prefill of the next step; an empty one: all running turns decode; None: nothing
        can run.
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
            chunks = self._prefill(now_ps)
        if chunks:
            self._off = self.config.prefill_decode_interval
            self._arrived = [chunk.turn for chunk in chunks]
            return chunks
        if self.running and self._make_room(now_ps):
            return chunks
        return None

    def ask_again(self) -> None:
        """Somebody left, or a pin was given up: waiting turns may fit.

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
        if self._preempts or self._off:
            return False
        return self.full or len(self.running) >= self.config.max_num_seqs

    def passed(self, steps: int) -> None:
        """So many decode steps were jumped over."""
        self._fresh = False
        self._off = max(self._off - steps, 0)
        self.ratio.decay(steps)
        self.decoded(steps)

    def decoded(self, steps: int) -> None:
        """So many decode steps were made.

        SGLang counts the prompt tokens of each batch it runs. A prefill that finds nothing running
        becomes the batch that decodes, and is counted again in each of its steps.
        """
        self.prefilled += self._counted_again * steps

    # --- prefill ----------------------------------------------------------------------------

    def _prefill(self, now_ps: int) -> list[Chunk]:
        config, queue, tree = self.config, self.queue, self.tree
        unfinished = self.unfinished
        if self._preempts or not self.running:
            self.full = False
        if unfinished is None:
            if self.full or not queue.turns:
                return []
            if len(self.running) >= config.max_num_seqs and not self._preempts:
                self.full = True
                return []
        looked = queue.sort(self.prefilled)
        self.inside.sort(queue.turns, looked=looked)
        ratio = self.ratio.value
        budget = Budget(tree, self.running, ratio, config.max_num_batched_tokens)
        chunks: list[Chunk] = []
        preempted: list[RadixTurn] = []
        self._begun = None
        if unfinished is not None:
            chunks.append(self._continue(unfinished, budget))
        for turn in queue.turns:
            if budget.verdict() is Verdict.STOP:
                break
            if len(chunks) >= config.max_num_seqs - len(self.running):
                self.full = True
            if self.full and not (
                self._preempts and self._take_seats(turn, budget, ratio, preempted)
            ):
                break
            verdict = self._ask(turn, budget, chunks)
            if verdict is Verdict.NO_MEMORY:
                self.full = bool(chunks or self.running)
            if verdict is not Verdict.NEXT:
                break
        if chunks:
            taken = {chunk.turn for chunk in chunks}
            queue.turns = [turn for turn in queue.turns if turn not in taken]
        for turn in preempted:
            self._requeue(turn, now_ps)
        if self._begun is not None:
            assert self.unfinished is None, "two unfinished prefills"
            self.unfinished = self._begun
        self._allocate(chunks)
        return chunks

    def _continue(self, turn: RadixTurn, budget: Budget) -> Chunk:
        """The next chunk of the unfinished prefill, which always goes on."""
        quantum = self.inside.quantum(turn)
        left = int(budget.left)
        limit = min(budget.chunk, left) if left > 0 else budget.chunk
        if self.queue.shortest_first:
            limit = min(limit, self._shortened(turn, budget.chunk))
        if quantum is not None:
            limit = min(limit, quantum)
        rest = turn.num_tokens - turn.computed
        count = min(rest, limit)
        budget.charge(count, whole_answer(turn) if count == rest else 0)
        if count == rest:
            self.unfinished = None
        else:
            self._keep_for(turn, rest - count, budget)
        self.inside.scheduled(turn, count, quantum)
        return Chunk(turn, turn.computed, count, count == rest)

    def _ask(self, turn: RadixTurn, budget: Budget, chunks: list[Chunk]) -> Verdict:
        """Put a waiting turn into the step if it fits; whether the next one is asked."""
        inside, before = self.inside, len(chunks)
        node = self.tree.match(turn.content, turn.num_tokens - 1)
        turn.wanted, turn.prefix = turn.num_tokens, node.high
        wanted = turn.wanted - node.high
        quantum = inside.quantum(turn)
        step = budget.chunk
        limit = step if quantum is None or quantum > step else quantum
        unfinished = self.unfinished is not None or self._begun is not None
        if inside.order is not None and unfinished and budget.paged(wanted) > limit:
            # NOTE: SGLang keeps one unfinished prefill. Without a quantum that one fills the step,
            # and nobody comes after it; with one a second would be begun, and lost.
            return Verdict.NEXT
        clipped = quantum is not None and quantum < min(step, wanted)
        if clipped:
            budget.chunk = limit
        verdict = self._add(turn, node, budget, chunks)
        while verdict is Verdict.NO_MEMORY and len(chunks) == before:
            lacking = int(wanted + self.tree.page + rest_of_answer(turn) - budget.left) + 1
            if not inside.reclaim(turn, lacking):
                break
            verdict = self._add(turn, node, budget, chunks)
        if clipped:
            budget.chunk += step - limit
            if verdict is not Verdict.NO_MEMORY:
                verdict = budget.verdict()
        if len(chunks) > before:
            if self._begun is turn:
                self._keep_for(turn, wanted - chunks[-1].tokens, budget)
            inside.scheduled(turn, chunks[-1].tokens, quantum)
        elif verdict is Verdict.NO_MEMORY and inside.passed_over():
            return Verdict.NEXT
        return verdict

    def _add(self, turn: RadixTurn, node: Node, budget: Budget, chunks: list[Chunk]) -> Verdict:
        """SGLang's own rule for a waiting turn of which the tree has the path to a node."""
        tree, page, hit = self.tree, self.tree.page, node.high
        wanted = turn.num_tokens - hit
        count = wanted
        tree.lock(node)
        verdict = Verdict.NEXT
        if wanted + rest_of_answer(turn) + page >= budget.left:
            verdict = Verdict.NO_MEMORY
        elif budget.paged(wanted) > budget.chunk:
            count = (hit + budget.chunk // page * page) // page * page - hit
            if count <= 0 or (self.unfinished is not None and self.queue.shortest_first):
                verdict = Verdict.STOP
        if verdict is not Verdict.NEXT:
            tree.unlock(node)
            return verdict
        turn.end, turn.kept = node, hit
        completes = count == wanted
        chunks.append(Chunk(turn, hit, count, completes))
        budget.charge(count, whole_answer(turn) if completes else 0)
        if not completes:
            self._begun = turn
        return budget.verdict()

    def _keep_for(self, turn: RadixTurn, rest: int, budget: Budget) -> None:
        """Keep memory for the rest of an unfinished prefill from those who come after it.

        Where it fills the step nobody does, so SGLang counts the chunk alone.
        """
        if self.inside.order is not None:
            budget.promise(rest + rest_of_answer(turn))

    def _shortened(self, turn: RadixTurn, chunk: int) -> int:
        """Shortest prefill first: what is left of the step beside waiting turns that have less to
        prefill than the unfinished one.
        """
        page = self.tree.page
        if chunk < 2 * page:
            return chunk
        rest = turn.num_tokens - turn.computed
        reserved = 0
        for waiting in self.queue.turns:
            work = left_to_prefill(waiting)
            paged = self._paged(work)
            if work >= rest or reserved + paged > chunk - page:
                break
            reserved += paged
        return (chunk - reserved) // page * page if reserved else chunk

    def _allocate(self, chunks: list[Chunk]) -> None:
        """Take the memory of a prefill."""
        if not chunks:
            return
        tree, page = self.tree, self.tree.page
        tokens = sum(chunk.tokens for chunk in chunks)
        tree.make_room(tokens + (page * len(chunks) if page > 1 else 0))
        for _, start, count, _ in chunks:
            tree.free -= self._paged(start + count) - self._paged(start)
        if tree.free < 0:
            raise EngineError(
                f"SGLang would run out of memory: a prefill of {tokens} tokens lacks {-tree.free}, "
                "which were promised to an unfinished one"
            )
        self.prefilled += tokens
        self._last_prefill = tokens

    def _take_seats(
        self, turn: RadixTurn, budget: Budget, ratio: float, preempted: list[RadixTurn]
    ) -> bool:
        """Priority: free the memory of running turns that are worse enough for a waiting one.

        SGLang does not know yet how long a turn is that was never asked: it counts its answer only.
        """
        lacking = turn.wanted - turn.prefix + whole_answer(turn) - budget.left
        worst = sorted(self.running, key=lambda other: (-other.priority, -other.entered_ps))
        taken: set[RadixTurn] = set()
        for other in worst:
            if other.priority - turn.priority <= PREEMPT_BY:
                break
            taken.add(other)
            lacking -= rest_of_answer(other) * ratio
            if lacking <= 0:
                break
        if not taken or lacking > 0:
            return False
        given_up = [other for other in self.running if other in taken]
        for number, other in enumerate(given_up, 1):
            budget.release(other, ratio)
            self._give_up(other, len(self.running) - number)
        self.running = [other for other in self.running if other not in taken]
        preempted += given_up
        return True

    # --- decode -----------------------------------------------------------------------------

    def _make_room(self, now_ps: int) -> bool:
        """Take the memory of the next decode step; False if all running turns lost theirs."""
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
        """Tokens of the pages that the next token of each of these turns takes."""
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
            self._give_up(turn, len(staying))
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
            self._requeue(turn, now_ps)

    def _worth(self, turn: RadixTurn) -> tuple[int, int, int]:
        """The turn of least worth is retracted first."""
        by_priority = self._preempts and self.config.retraction_policy == "priority"
        priority = -turn.priority if by_priority else 0
        return (priority, turn.generated_tokens, -turn.prompt_tokens)

    def _give_up(self, turn: RadixTurn, staying: int) -> None:
        """Free a running turn's memory, and a bit of the tree for those that stay."""
        self.decoding.stop(turn, self.clock.step)
        turn.holding.blocks = -(-turn.computed // self.tree.page)
        self._release(turn)
        self.tree.make_room(staying * RETRACT_STEPS)

    def _requeue(self, turn: RadixTurn, now_ps: int) -> None:
        """A turn whose memory was freed waits again, behind all others."""
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
        own = sum(self._paged(turn.computed_tokens) - turn.kept for turn in self.admitted)
        held = self.tree.free + self.tree.evictable + self.tree.protected + own
        assert held == self.config.num_blocks * self.config.block_size, (held, own)
        if not self.admitted:
            pinned = self.inside.pinned_blocks * self.config.block_size
            assert self.tree.protected == pinned, "locked, and neither running nor pinned"

    def running_turns(self) -> list[RadixTurn]:
        """Turns that hold memory, in order of admission."""
        return list(self.admitted)
