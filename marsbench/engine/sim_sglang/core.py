"""The simulated engine core with SGLang's scheduler (0.5.23) in virtual time, event by event.

``RadixBatch`` says what the next step does; here it takes its time. Decode steps in which nothing can
change are jumped over: no waiting turn would be asked, no running one ends and memory suffices.
"""

from __future__ import annotations

from marsbench.engine.base import CoreListener, CoreStats, EngineConfig, Request, StepTrace
from marsbench.engine.cost import StepCost
from marsbench.engine.ledger import Ledger
from marsbench.engine.sim.turn import SimClock, SimTurn
from marsbench.engine.sim_sglang.batch import RadixBatch
from marsbench.engine.sim_sglang.prefill import Chunk
from marsbench.engine.sim_sglang.refusals import check
from marsbench.engine.sim_sglang.turn import RadixTurn
from marsbench.engine.sim_sglang.view import RadixView
from marsbench.system import Policies


class RadixCore:
    """An ``engine.base.EngineCore`` in virtual time."""

    def __init__(
        self, config: EngineConfig, cost: StepCost, policies: Policies, listener: CoreListener
    ) -> None:
        check(config)
        self.config = config
        self.cost = cost
        self.listener = listener
        self.stats = CoreStats()
        self.trace: StepTrace | None = None
        self.clock = SimClock()
        self.batch = RadixBatch(config, self.clock, policies, listener, self._requeued)
        self.view: RadixView = self.batch.inside.view
        self._turns = Ledger(listener, self.stats, config.block_size)
        self._now_ps = 0
        self._started = 0
        self._worked = False
        """A step ran since the engine was last idle."""

    # --- EngineCore ------------------------------------------------------------------------

    def fits(self, prompt_tokens: int, output_tokens: int) -> bool:
        """Whether SGLang would grant the answer its length with nothing else there."""
        return output_tokens <= self.batch.grant(prompt_tokens)

    def submit(self, request: Request) -> None:
        """Put a turn into the waiting queue."""
        now_ps = max(self._now_ps, request.ready_ps)
        self._account(now_ps)
        if now_ps > self._now_ps:
            self._rest()
        turn = self.batch.submit(request, now_ps)
        self._turns.add(turn.key, request, turn, [])

    def advance(self, now_ps: int, limit_ps: int) -> int:
        """See ``EngineCore.advance``."""
        if now_ps >= limit_ps:
            return now_ps
        self._account(now_ps)
        if now_ps > self._now_ps:
            self._rest()
        self._now_ps = now_ps
        batch = self.batch
        while self._turns:
            if self.trace is None and batch.quiet(self._now_ps):
                done = self._jump(limit_ps)
            else:
                self._turns.preempted.clear()
                chunks = self._next_pass()
                if chunks is None:
                    return limit_ps
                done = self._prefill(chunks) if chunks else self._decode()
            if done or self._now_ps >= limit_ps:
                return self._now_ps
        return limit_ps

    def session_ended(self, session: int) -> None:
        """Drop what is kept for later turns."""
        self.batch.contents.forget(session)
        self.batch.inside.session_ended(session, self._now_ps)

    def cached_blocks(self) -> int:
        """Return how many pages hold reusable content and are referenced by nobody."""
        return self.batch.tree.evictable // self.config.block_size

    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._turns

    def check_integrity(self) -> None:
        """Assert that every token of memory is accounted for exactly once, and every sum."""
        self.batch.check()

    # --- steps -----------------------------------------------------------------------------

    def _next_pass(self) -> list[Chunk] | None:
        """Return what the next step does. A pass without one can still change what the next finds."""
        for _ in range(self.config.prefill_decode_interval + 2):
            chunks = self.batch.next_pass(self._now_ps)
            if chunks is not None:
                return chunks
        return None

    def _rest(self) -> None:
        """Estimate afresh how long answers are, as SGLang does when it finds nothing to run."""
        if not self._worked or self._turns:
            return
        self._worked = False
        assert self._next_pass() is None, "a step without a turn"
        self.batch.ratio.reset()

    def _prefill(self, chunks: list[Chunk]) -> bool:
        """Run a step of prompts; returns whether a turn finished in it."""
        batch, start_ps = self.batch, self._now_ps
        tokens = pairs = context = 0
        for turn, start, count, _ in chunks:
            record = self._turns[turn.key]
            if not record.admitted:
                batch.admitted[turn] = None
                batch.inside.admitted(turn, start_ps)
                self._turns.admitted(turn.key, start_ps, start, turn.num_tokens)
            record.prefilled += count
            tokens += count
            context += start + count
            pairs += count * start + count * (count + 1) // 2
        if self.trace is not None:
            self._report([(turn, count) for turn, _, count, _ in chunks])
        self._take(self.cost.step_ps(tokens, pairs, context, len(chunks)))
        finished: list[RadixTurn] = []
        for turn, start, count, completes in chunks:
            turn.last_scheduled_ps = start_ps
            turn.computed = start + count
            turn.holding.blocks = -(-turn.computed // self.config.block_size)
            if completes and not turn.generated:
                self.listener.on_first_token(self._turns[turn.key].request, self._now_ps)
        for turn, _, _, completes in chunks:
            if not completes:
                continue
            turn.generated += 1
            left = self._turns[turn.key].request.output_tokens - turn.generated
            if left == 0:
                batch.finish(turn)
                finished.append(turn)
            else:
                batch.publish(turn)
                turn.run_order = self._started
                self._started += 1
                batch.decoding.start(turn, self.clock.step, self.clock.step + left - 1)
        return self._tell(finished)

    def _decode(self) -> bool:
        """Run a step in which all running turns make a token; returns whether one finished."""
        batch, decoding = self.batch, self.batch.decoding
        count = len(batch.running)
        context = decoding.offset_sum + count * (self.clock.step + 1)
        if self.trace is not None:
            self._report([(turn, 1) for turn in batch.running])
        self.clock.last_start_ps = self._now_ps
        self._take(self.cost.step_ps(count, context, context, count))
        self.clock.step += 1
        batch.decoded(1)
        return self._stop_finished()

    def _jump(self, limit_ps: int) -> bool:
        """Run the longest stretch of decode steps in which nothing is decided, or one step if there is
        none; returns whether a turn finished.
        """
        batch, decoding, tree = self.batch, self.batch.decoding, self.batch.tree
        page = tree.page
        step, count = self.clock.step, decoding.count
        last = decoding.next_finish() - step + 1
        room = (tree.free + tree.evictable) // page
        steps = decoding.steps_within(room, step, last)
        if batch.inside.book.active:
            # a step takes pins back before it has less than a page for each turn
            limit_ps = min(limit_ps, batch.inside.book.next_change_ps)
            spare = room - count
            steps = min(steps, decoding.steps_within(spare, step, last) + 1) if spare >= 0 else 0
        if steps < 2:
            self._turns.preempted.clear()
            chunks = self._next_pass()
            assert chunks == [], "a prefill although nobody waits to be asked"
            return self._decode()
        cost, now_ps = self.cost, self._now_ps
        context = decoding.offset_sum + count * (step + 1)
        duration = cost.decode_run_ps(count, context, steps)
        if duration > limit_ps - now_ps:
            steps = max(cost.decode_steps_until(count, context, limit_ps - now_ps, steps), 1)
            duration = cost.decode_run_ps(count, context, steps)
        before = self.view.num_blocks - self.view.free_blocks
        tree.make_room((decoding.blocks_over(step, steps - 1) + count) * page)
        tree.free -= decoding.blocks_over(step, steps) * page
        batch.passed(steps)
        after = self.view.num_blocks - self.view.free_blocks
        first = before + decoding.crossings[step % page]
        self._turns.account(first, now_ps + duration // 2)
        self._turns.account(after, now_ps + duration)
        self.stats.steps += steps
        self.stats.busy_ps += duration
        self._worked = True
        self.clock.last_start_ps = now_ps + cost.decode_run_ps(count, context, steps - 1)
        self.clock.step = step + steps
        self._now_ps = now_ps + duration
        self.stats.evicted_blocks = tree.evicted // page
        return self._stop_finished()

    def _take(self, duration_ps: int) -> None:
        """Let a step take its time, with the memory that is held in it."""
        self._worked = True
        self._now_ps += duration_ps
        self._account(self._now_ps)
        self.stats.steps += 1
        self.stats.busy_ps += duration_ps
        self.stats.evicted_blocks = self.batch.tree.evicted // self.config.block_size

    def _stop_finished(self) -> bool:
        finished = self.batch.decoding.stop_finished()
        if len(finished) > 1:
            place: dict[SimTurn, int] = {
                turn: index for index, turn in enumerate(self.batch.running)
            }
            finished.sort(key=place.__getitem__)
        done = [turn for turn in finished if isinstance(turn, RadixTurn)]
        assert len(done) == len(finished)
        for turn in done:
            self.batch.finish(turn)
        return self._tell(done)

    def _tell(self, finished: list[RadixTurn]) -> bool:
        """Tell that turns are over and keep what the policy wants to keep; returns whether any is."""
        for turn in finished:
            request = self._turns[turn.key].request
            self._turns.finish(turn.key, self._now_ps)
            del self.batch.admitted[turn]
            self.batch.inside.finished(turn, request, self._now_ps)
        return bool(finished)

    def _requeued(self, turn: RadixTurn, computed: int) -> None:
        self._turns.lose(turn.key, self._now_ps, computed, turn.holding.blocks)

    def _report(self, parts: list[tuple[RadixTurn, int]]) -> None:
        assert self.trace is not None
        turns = [(self._turns[turn.key], count) for turn, count in parts]
        self._turns.report(self.trace, self._now_ps, turns, self.view.free_blocks)

    def _account(self, until_ps: int) -> None:
        """Integrate referenced pages up to a time."""
        self._turns.account(self.view.num_blocks - self.view.free_blocks, until_ps)
