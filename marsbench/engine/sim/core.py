"""The simulated engine core: vLLM V1's scheduler (0.32) in virtual time, event by event.

``Batch`` composes single steps; here they take their time. Three things make that fast without
changing a decision:

- decoding turns advance together: their sum of contexts and how many need a new block at a given
  step are known without looking at each (``Decoding``);
- steps in which nothing can change (no prefill, the waiting queue empty or known not to fit) are
  jumped over, up to the next finish, external event or exhausted block;
- a step whose demands all fit is not gone through turn by turn.
"""

from __future__ import annotations

from marsbench.engine.base import CoreListener, CoreStats, EngineConfig, Request, StepTrace
from marsbench.engine.cost import StepCost
from marsbench.engine.sim.batch import Batch, Chunks
from marsbench.engine.sim.turn import FOREVER, SimClock, SimTurn
from marsbench.events import Unpin
from marsbench.system import Policies


class SimCore:
    """An ``engine.base.EngineCore`` in virtual time."""

    def __init__(
        self, config: EngineConfig, cost: StepCost, policies: Policies, listener: CoreListener
    ) -> None:
        self.config = config
        self.cost = cost
        self.listener = listener
        self.stats = CoreStats()
        self.trace: StepTrace | None = None
        self.clock = SimClock()
        self.batch = Batch(config, policies, listener, self.stats, self.clock)
        self.view = self.batch.view
        self.kv = self.batch.kv
        self.pins = self.batch.pins
        self.waiting = self.batch.waiting
        self.running = self.batch.running
        self._decoding = self.batch.decoding
        self._order = self.batch.order
        self._policed = self.batch.policy is not None
        self._now_ps = 0

    # --- EngineCore ------------------------------------------------------------------------

    def fits(self, prompt_tokens: int, output_tokens: int) -> bool:
        """Whether a turn of this size can ever run."""
        total = prompt_tokens + output_tokens
        blocks = -(-(total - 1) // self.config.block_size)
        return blocks <= self.config.num_blocks and total <= self.config.max_model_len

    def submit(self, request: Request) -> None:
        """Put a turn into the waiting queue."""
        self.batch.submit(request)

    def session_ended(self, session: int) -> None:
        """Drop the session's pin."""
        if self.pins.drop(session, self._now_ps, Unpin.END):
            self.batch.freed()

    def cached_blocks(self) -> int:
        """Unreferenced blocks with reusable content."""
        return self.kv.cached

    def idle(self) -> bool:
        """True if nothing waits and nothing runs."""
        return not self.running and not self.waiting

    def advance(self, now_ps: int, limit_ps: int) -> int:
        """See ``EngineCore.advance``."""
        batch = self.batch
        while now_ps < limit_ps:
            self._now_ps = now_ps
            if not self.running and not self.waiting:
                return limit_ps
            if self.pins.active and self.pins.review(now_ps):
                batch.freed()
            if self._policed and self._order.due(now_ps):
                batch.sort(now_ps)
            before = self.clock.step
            done = False
            if not batch.prefilling and (not self.waiting or batch.stuck):
                if not self._decoding.count:
                    return limit_ps
                now_ps, done = self._jump(now_ps, limit_ps)
            if self.clock.step == before:
                now_ps, done = self._step(now_ps)
            if done:
                break
        self._now_ps = now_ps
        self.stats.evicted_blocks = self.kv.evicted
        return now_ps

    def check_integrity(self) -> None:
        """Assert that every block is accounted for exactly once, and every sum."""
        self.batch.check()

    # --- jumping over quiet steps ----------------------------------------------------------

    def _jump(self, now_ps: int, limit_ps: int) -> tuple[int, bool]:
        """Run the longest stretch of pure decode steps in which no decision is made.

        Leaves the step counter alone if not even one step is free of contention.
        """
        step = self.clock.step
        decoding = self._decoding
        count = decoding.count
        finish = decoding.next_finish()
        last = 1 if self.trace is not None else finish - step + 1
        if count > self.config.max_num_batched_tokens:
            return now_ps, False
        kv = self.kv
        steps = decoding.steps_within(kv.plain + kv.cached, step, last)
        if steps == 0:
            return now_ps, False
        horizon = self._horizon(limit_ps)
        context = decoding.offset_sum + count * (step + 1)
        cost = self.cost
        duration = cost.decode_run_ps(count, context, steps)
        if steps > 1 and duration > horizon - now_ps:
            steps = max(cost.decode_steps_until(count, context, horizon - now_ps, steps), 1)
            duration = cost.decode_run_ps(count, context, steps)
        referenced = kv.num_blocks - kv.plain - kv.cached
        need = decoding.blocks_over(step, steps)
        if need:
            kv.take(need)
        after = referenced + need
        first = referenced + decoding.crossings[step % self.config.block_size]
        self.stats.referenced_block_ps += (first + after) * duration // 2
        self.stats.steps += steps
        self.stats.busy_ps += duration
        self.clock.step = step + steps
        if self._policed:
            self.clock.last_start_ps = now_ps + cost.decode_run_ps(count, context, steps - 1)
        now_ps += duration
        if self.trace is not None:
            self._trace(now_ps - duration, [], [], [])
        if finish == step + steps - 1:
            self._finish(decoding.stop_finished(), now_ps)
            return now_ps, True
        return now_ps, False

    def _horizon(self, limit_ps: int) -> int:
        """When something outside the batch may change what it does."""
        order = self._order
        expiry = self.pins.next_change_ps
        horizon = expiry if expiry < limit_ps else limit_ps
        if order.resort_ps < FOREVER and (self.waiting or order.reorders_running):
            again = order.sorted_at_ps + order.resort_ps
            horizon = again if again < horizon else horizon
        return horizon

    # --- one step --------------------------------------------------------------------------

    def _step(self, now_ps: int) -> tuple[int, bool]:
        """Schedule and execute one step; returns the time after it and whether a turn finished."""
        step = self.clock.step
        decoding = self._decoding
        chunks, preempted, skipped = self.batch.schedule(now_ps)
        if not chunks and decoding.count == len(skipped):
            return now_ps, False
        if self._policed:
            self._order.report(chunks, now_ps)
        duration = self._duration(step, chunks, skipped)
        kv, stats = self.kv, self.stats
        stats.referenced_block_ps += (kv.num_blocks - kv.plain - kv.cached) * duration
        stats.steps += 1
        stats.busy_ps += duration
        if self.trace is not None:
            self._trace(now_ps, chunks, preempted, skipped)
        self.clock.step = step + 1
        self.clock.last_start_ps = now_ps
        for turn in skipped:
            decoding.stop(turn, step)
            decoding.start(turn, turn.finish_step + 1)
        now_ps += duration
        finished = self._complete(chunks, step, now_ps)
        if decoding.count and decoding.finishes[0][0] <= step:
            finished += decoding.stop_finished()
        if finished:
            self._finish(finished, now_ps)
            return now_ps, True
        return now_ps, False

    def _duration(self, step: int, chunks: Chunks, skipped: list[SimTurn]) -> int:
        count = self._decoding.count
        decoding = count - len(skipped)
        context = self._decoding.offset_sum + count * (step + 1)
        for turn in skipped:
            context -= turn.offset + step + 1
        tokens = decoding
        pairs = context
        for turn, num_tokens in chunks:
            have = turn.computed
            tokens += num_tokens
            pairs += num_tokens * have + num_tokens * (num_tokens + 1) // 2
            context += have + num_tokens
        return self.cost.step_ps(tokens, pairs, context, decoding + len(chunks))

    def _complete(self, chunks: Chunks, step: int, now_ps: int) -> list[SimTurn]:
        """Credit computed chunks; turns whose prompt is complete make a token. Returns those done."""
        finished: list[SimTurn] = []
        for turn, count in chunks:
            turn.computed += count
            if turn.computed < turn.prompt_tokens + turn.generated:
                continue
            self.batch.prefilling.remove(turn)
            if turn.generated == 0:
                self.listener.on_first_token(turn.request, now_ps)
            turn.generated += 1
            left = turn.output_tokens - turn.generated
            if left == 0:
                finished.append(turn)
            else:
                self._decoding.start(turn, step + left)
        return finished

    def _finish(self, finished: list[SimTurn], now_ps: int) -> None:
        """Free or retain the blocks of finished turns, in the order of the batch."""
        if len(finished) > 1:
            if self._order.reorders_running:
                finished.sort(key=self.running.index)
            else:
                finished.sort(key=_run_order)
        self.batch.changed()
        for turn in finished:
            self.running.remove(turn)
            if not self.pins.retain(turn, now_ps):
                self.kv.release(turn.holding, turn.computed)
            self.listener.on_finished(
                turn.request,
                now_ps,
                prefilled=turn.prefilled,
                recomputed=turn.recomputed,
                cached=turn.cached,
            )

    def _trace(
        self,
        start_ps: int,
        chunks: Chunks,
        preempted: list[SimTurn],
        skipped: list[SimTurn],
    ) -> None:
        assert self.trace is not None
        counts = {turn.sequence: count for turn, count in chunks}
        left_out = {turn.sequence for turn in skipped}
        scheduled = [
            (turn.session, turn.turn_index, counts.get(turn.sequence, 1))
            for turn in self.running
            if turn.sequence not in left_out and (turn.decoding or turn.sequence in counts)
        ]
        self.trace.step(
            self.stats.steps - 1,
            start_ps,
            scheduled,
            [(turn.session, turn.turn_index) for turn in preempted],
            self.kv.free,
        )


def _run_order(turn: SimTurn) -> int:
    return turn.run_order
