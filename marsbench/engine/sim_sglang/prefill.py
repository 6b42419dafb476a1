"""The prefill of one step, as SGLang's prefill adder puts it together.

First comes the turn whose prompt is unfinished, then waiting ones in order, each with memory for its
answer as it is expected, until the step is full or one does not fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from marsbench.engine.sim_sglang.budget import Budget, Next, rest_of_answer, whole_answer
from marsbench.engine.sim_sglang.queue import left_to_prefill
from marsbench.engine.sim_sglang.tree import Node
from marsbench.engine.sim_sglang.turn import RadixTurn
from marsbench.errors import EngineError

if TYPE_CHECKING:
    from marsbench.engine.sim_sglang.batch import RadixBatch

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


class Prefill:
    """Asks a batch's waiting turns, and puts those that fit into the step."""

    def __init__(self, batch: RadixBatch) -> None:
        self._batch = batch
        self._config = batch.config
        self._queue = batch.queue
        self._tree = batch.tree
        self._inside = batch.inside
        self._begun: RadixTurn | None = None
        """The turn whose prefill is begun in this pass and does not end in it."""

    def compose(self, now_ps: int) -> list[Chunk]:
        """Choose the chunks of a step that starts now; none if nobody is asked or nobody fits."""
        config, queue, tree = self._config, self._queue, self._tree
        unfinished = self._batch.unfinished
        if self._batch.preempts or not self._batch.running:
            self._batch.full = False
        if unfinished is None:
            if self._batch.full or not queue.turns:
                return []
            if len(self._batch.running) >= config.max_num_seqs and not self._batch.preempts:
                self._batch.full = True
                return []
        looked = queue.sort(self._batch.prefilled)
        self._inside.sort(queue.turns, looked=looked)
        ratio = self._batch.ratio.value
        budget = Budget(tree, self._batch.running, ratio, config.max_num_batched_tokens)
        chunks: list[Chunk] = []
        preempted: list[RadixTurn] = []
        if unfinished is not None:
            chunks.append(self._continue(unfinished, budget))
        for turn in queue.turns:
            if budget.verdict() is Next.STOP:
                break
            if len(chunks) >= config.max_num_seqs - len(self._batch.running):
                self._batch.full = True
            if self._batch.full and not (
                self._batch.preempts and self._take_seats(turn, budget, ratio, preempted)
            ):
                break
            verdict = self._ask(turn, budget, chunks)
            if verdict is Next.NO_MEMORY:
                self._batch.full = bool(chunks or self._batch.running)
            if verdict is not Next.ASK:
                break
        if chunks:
            taken = {chunk.turn for chunk in chunks}
            queue.turns = [turn for turn in queue.turns if turn not in taken]
        for turn in preempted:
            self._batch.requeue(turn, now_ps)
        begun, self._begun = self._begun, None
        if begun is not None:
            assert self._batch.unfinished is None, "two unfinished prefills"
            self._batch.unfinished = begun
        self._allocate(chunks)
        return chunks

    def _continue(self, turn: RadixTurn, budget: Budget) -> Chunk:
        """Return the next chunk of the unfinished prefill, which always goes on."""
        quantum = self._inside.quantum(turn)
        left = int(budget.left)
        limit = min(budget.chunk, left) if left > 0 else budget.chunk
        if self._queue.shortest_first:
            limit = min(limit, self._shortened(turn, budget.chunk))
        if quantum is not None:
            limit = min(limit, quantum)
        rest = turn.num_tokens - turn.computed
        count = min(rest, limit)
        budget.charge(count, whole_answer(turn) if count == rest else 0)
        if count == rest:
            self._batch.unfinished = None
        else:
            self._keep_for(turn, rest - count, budget)
        self._inside.scheduled(turn, count, quantum)
        return Chunk(turn, turn.computed, count, count == rest)

    def _ask(self, turn: RadixTurn, budget: Budget, chunks: list[Chunk]) -> Next:
        """Put a waiting turn into the step if it fits; returns whether the next one is asked."""
        inside, before = self._inside, len(chunks)
        node = self._tree.match(turn.content, turn.num_tokens - 1)
        turn.wanted, turn.prefix = turn.num_tokens, node.high
        wanted = turn.wanted - node.high
        quantum = inside.quantum(turn)
        step = budget.chunk
        limit = step if quantum is None or quantum > step else quantum
        unfinished = self._batch.unfinished is not None or self._begun is not None
        if inside.order is not None and unfinished and self._tree.paged(wanted) > limit:
            # NOTE: SGLang keeps one unfinished prefill. Without a quantum that one fills the step,
            # and nobody comes after it; with one a second would be begun, and lost.
            return Next.ASK
        clipped = quantum is not None and quantum < min(step, wanted)
        if clipped:
            budget.chunk = limit
        verdict = self._add(turn, node, budget, chunks)
        while verdict is Next.NO_MEMORY and len(chunks) == before:
            lacking = int(wanted + self._tree.page + rest_of_answer(turn) - budget.left) + 1
            if not inside.reclaim(turn, lacking):
                break
            verdict = self._add(turn, node, budget, chunks)
        if clipped:
            budget.chunk += step - limit
            if verdict is not Next.NO_MEMORY:
                verdict = budget.verdict()
        if len(chunks) > before:
            if self._begun is turn:
                self._keep_for(turn, wanted - chunks[-1].tokens, budget)
            inside.scheduled(turn, chunks[-1].tokens, quantum)
        elif verdict is Next.NO_MEMORY and inside.passed_over():
            return Next.ASK
        return verdict

    def _add(self, turn: RadixTurn, node: Node, budget: Budget, chunks: list[Chunk]) -> Next:
        """Apply SGLang's own rule to a waiting turn of which the tree has the path to a node."""
        tree, page, hit = self._tree, self._tree.page, node.high
        wanted = turn.num_tokens - hit
        count = wanted
        tree.lock(node)
        verdict = Next.ASK
        if wanted + rest_of_answer(turn) + page >= budget.left:
            verdict = Next.NO_MEMORY
        elif self._tree.paged(wanted) > budget.chunk:
            count = (hit + budget.chunk // page * page) // page * page - hit
            if count <= 0 or (self._batch.unfinished is not None and self._queue.shortest_first):
                verdict = Next.STOP
        if verdict is not Next.ASK:
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
        if self._inside.order is not None:
            budget.promise(rest + rest_of_answer(turn))

    def _shortened(self, turn: RadixTurn, chunk: int) -> int:
        """Return what shortest prefill first leaves of the step to the unfinished turn, beside waiting
        ones that have less to prefill.
        """
        page = self._tree.page
        if chunk < 2 * page:
            return chunk
        rest = turn.num_tokens - turn.computed
        reserved = 0
        for waiting in self._queue.turns:
            work = left_to_prefill(waiting)
            paged = self._tree.paged(work)
            if work >= rest or reserved + paged > chunk - page:
                break
            reserved += paged
        return (chunk - reserved) // page * page if reserved else chunk

    def _allocate(self, chunks: list[Chunk]) -> None:
        """Take the memory of a prefill."""
        if not chunks:
            return
        tree, page = self._tree, self._tree.page
        tokens = sum(chunk.tokens for chunk in chunks)
        tree.make_room(tokens + (page * len(chunks) if page > 1 else 0))
        for _, start, count, _ in chunks:
            tree.free -= self._tree.paged(start + count) - self._tree.paged(start)
        if tree.free < 0:
            raise EngineError(
                f"SGLang would run out of memory: a prefill of {tokens} tokens lacks {-tree.free}, "
                "which were promised to an unfinished one"
            )
        self._batch.prefilled += tokens
        self._batch.last_prefill = tokens

    def _take_seats(
        self, turn: RadixTurn, budget: Budget, ratio: float, preempted: list[RadixTurn]
    ) -> bool:
        """Free the memory of running turns that are worse enough for a waiting one, by priority.

        SGLang does not know yet how long a turn is that was never asked: it counts its answer only.
        """
        lacking = turn.wanted - turn.prefix + whole_answer(turn) - budget.left
        worst = sorted(self._batch.running, key=lambda other: (-other.priority, -other.entered_ps))
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
        given_up = [other for other in self._batch.running if other in taken]
        for number, other in enumerate(given_up, 1):
            budget.release(other, ratio)
            self._batch.give_up(other, len(self._batch.running) - number)
        self._batch.running = [other for other in self._batch.running if other not in taken]
        preempted += given_up
        return True
