"""The simulated engine core: vLLM V1's scheduler (0.32) in virtual time, event by event.

``SimBatch`` composes single steps; here they take their time. Three things make that fast without
changing a decision:

- decoding turns advance together: their sum of contexts and how many need a new block at a given
  step are known without looking at each (``Decoding``);
- steps in which nothing can change (no prefill, the waiting queue empty or known not to fit) are
  jumped over, up to the next finish, external event or exhausted block;
- a step whose demands all fit is not gone through turn by turn.
"""

from __future__ import annotations

from marsbench.engine.base import (
    CoreListener,
    CoreStats,
    EngineConfig,
    LostTurn,
    ReplicaCore,
    Request,
    StepTrace,
)
from marsbench.engine.cost import StepCost
from marsbench.engine.retention import FOREVER
from marsbench.engine.sim.batch import Chunks, SimBatch
from marsbench.engine.sim.offload import Offload
from marsbench.engine.sim.pins import retain
from marsbench.engine.sim.turn import SimClock, SimTurn
from marsbench.engine.transfers import link_of
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
        self.batch = SimBatch(config, policies, listener, self.stats, self.clock)
        self.view = self.batch.view
        self.kv = self.batch.kv
        self.pins = self.batch.pins
        self.waiting = self.batch.waiting
        self.running = self.batch.running
        self._decoding = self.batch.decoding
        self._order = self.batch.order
        self._policed = self.batch.policy is not None
        self._now_ps = 0
        self._accounted_ps = 0
        link = link_of(config, cost)
        self._offload: Offload | None = None
        if link is not None:
            self._offload = Offload(config, link, self.kv, listener)
            self.batch.attach(self._offload)
            self.stats.tier = self._offload.stats

    # --- EngineCore ------------------------------------------------------------------------

    def fits(self, prompt_tokens: int, output_tokens: int) -> bool:
        """Whether a turn of this size can ever run."""
        return self.config.fits(prompt_tokens, output_tokens)

    def submit(self, request: Request) -> None:
        """Put a turn into the waiting queue."""
        self.batch.submit(request)

    def session_ended(self, session: int) -> None:
        """Drop the session's pin."""
        if self.pins.drop(session, self._now_ps, Unpin.END):
            self.batch.freed()
        if self._offload is not None:
            self._offload.session_ended(session)

    def cached_blocks(self) -> int:
        """Return how many blocks hold reusable content and are referenced by nobody."""
        return self.kv.cached

    def idle(self) -> bool:
        """Whether nothing waits, nothing runs and nothing is copied."""
        if self._offload is not None and (self._offload.busy or self.batch.loading):
            return False
        return not self.running and not self.waiting

    def advance(self, now_ps: int, limit_ps: int) -> int:
        """See ``EngineCore.advance``."""
        batch = self.batch
        if self._offload is not None:
            return self._advance_copying(self._offload, now_ps, limit_ps)
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

    def _advance_copying(self, offload: Offload, now_ps: int, limit_ps: int) -> int:
        """The same with host memory: a step without tokens can have copies to do."""
        batch = self.batch
        if self.idle():
            return limit_ps
        self._account(now_ps)
        while now_ps < limit_ps and not self.idle():
            self._now_ps = now_ps
            if self.pins.active and self.pins.review(now_ps):
                batch.freed()
            if self._policed and self._order.due(now_ps):
                batch.sort(now_ps)
            before = self.clock.step
            done = False
            if self._decoding.count and offload.quiet and batch.settled:
                now_ps, done = self._jump(now_ps, limit_ps)
                if self.clock.step != before and offload.notice(now_ps):
                    batch.stuck = False
            if self.clock.step == before:
                now_ps, done = self._step_copying(offload, now_ps, limit_ps)
            if done:
                break
        self._now_ps = self._accounted_ps = now_ps
        self.stats.evicted_blocks = self.kv.evicted
        return now_ps

    def _account(self, now_ps: int) -> None:
        """Count the blocks that were held while no step ran."""
        held = self.kv.num_blocks - self.kv.free
        if now_ps > self._accounted_ps:
            self.stats.referenced_block_ps += held * (now_ps - self._accounted_ps)
        self._accounted_ps = now_ps

    def check_integrity(self) -> None:
        """Assert that every block is accounted for exactly once, and every sum."""
        self.batch.check()

    # --- one of several replicas -----------------------------------------------------------

    def joins(self, other: ReplicaCore) -> None:
        """Do nothing: content is known by session, prefix and position everywhere."""
        assert self._offload is None, "replicas with host memory are not modelled"

    def quiet_until_ps(self, now_ps: int) -> int:
        """See ``ReplicaCore.quiet_until_ps``: the end of the next jump."""
        batch, pins, decoding = self.batch, self.pins, self._decoding
        if batch.prefilling or (self.waiting and not batch.stuck):
            return now_ps
        if pins.active and (pins.dirty or pins.next_change_ps <= now_ps):
            return now_ps
        if self._policed and self._order.due(now_ps) and (self.waiting or self.running):
            return now_ps
        horizon = self._horizon(FOREVER)
        count = decoding.count
        if not count or horizon <= now_ps:
            return max(horizon, now_ps)
        if count > self.config.max_num_batched_tokens:
            return now_ps
        step = self.clock.step
        last = decoding.next_finish() - step + 1
        steps = decoding.steps_within(self.kv.plain + self.kv.cached, step, last)
        if steps == 0:
            return now_ps
        context = decoding.offset_sum + count * (step + 1)
        return min(now_ps + self.cost.decode_run_ps(count, context, steps), horizon)

    def cached_tokens(self, request: Request) -> int:
        """See ``ReplicaCore.cached_tokens``."""
        size = self.config.block_size
        shared = request.prefix_tokens // size if request.prefix_id >= 0 else 0
        hit, _ = self.kv.hit(
            request.session, request.prefix_id, shared, request.here_tokens // size
        )
        return hit * size

    def session_moved(self, session: int) -> None:
        """Drop its pin."""
        self.session_ended(session)

    def lost_turns(self) -> list[LostTurn]:
        """See ``ReplicaCore.lost_turns``."""
        running = set(self.running)
        return [
            LostTurn(
                request,
                turn.cached,
                turn in running,
                turn.computed_tokens,
                turn.num_blocks,
                turn.prefilled,
                turn.recomputed,
            )
            for turn, request in self.batch.requests.items()
        ]

    def lost_blocks(self) -> int:
        """Return how many blocks have content: all but the empty ones."""
        return self.kv.num_blocks - self.kv.plain

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
        if self._offload is not None:
            arrival = self._offload.next_done_ps()
            horizon = arrival if arrival is not None and arrival < horizon else horizon
        if order.resort_ps < FOREVER and (self.waiting or order.reorders_running):
            again = order.sorted_at_ps + order.resort_ps
            horizon = again if again < horizon else horizon
        return horizon

    # --- one step --------------------------------------------------------------------------

    def _step(self, now_ps: int) -> tuple[int, bool]:
        """Schedule and execute one step; returns the time after it and whether a turn finished."""
        decoding = self._decoding
        chunks, preempted, skipped = self.batch.schedule(now_ps)
        if not chunks and decoding.count == len(skipped):
            return now_ps, False
        return self._execute(now_ps, now_ps, chunks, preempted, skipped)

    def _step_copying(self, offload: Offload, now_ps: int, limit_ps: int) -> tuple[int, bool]:
        """The same with host memory; a step can begin later than it was scheduled."""
        batch = self.batch
        chunks, preempted, skipped = batch.schedule(now_ps)
        offload.plan(chunks, self.running, skipped, now_ps)
        begin_ps = offload.begin(now_ps)
        self._account(begin_ps)
        if chunks or self._decoding.count > len(skipped):
            after_ps, done = self._execute(now_ps, begin_ps, chunks, preempted, skipped)
            self._accounted_ps = after_ps
            if offload.end(after_ps):
                batch.stuck = False
            return after_ps, done
        if offload.end(begin_ps) or preempted:
            batch.stuck = False
            return begin_ps, False
        arrival = offload.next_done_ps()
        if arrival is None or arrival >= limit_ps:
            return (begin_ps if self.idle() else max(begin_ps, limit_ps)), False
        self._account(arrival)
        return arrival, False

    def _execute(
        self,
        start_ps: int,
        now_ps: int,
        chunks: Chunks,
        preempted: list[SimTurn],
        skipped: list[SimTurn],
    ) -> tuple[int, bool]:
        """Execute a step scheduled at ``start_ps`` from ``now_ps`` on."""
        step = self.clock.step
        decoding = self._decoding
        if self._policed:
            self._order.report(chunks, start_ps)
        duration = self._duration(step, chunks, skipped)
        kv, stats = self.kv, self.stats
        stats.referenced_block_ps += (kv.num_blocks - kv.plain - kv.cached) * duration
        stats.steps += 1
        stats.busy_ps += duration
        if self.trace is not None:
            self._trace(start_ps, chunks, preempted, skipped)
        self.clock.step = step + 1
        self.clock.last_start_ps = start_ps
        for turn in skipped:
            decoding.start(turn, step + 1, decoding.stop(turn, step) + 1)
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
        requests = self.batch.requests
        for turn, count in chunks:
            turn.computed += count
            if turn.computed < turn.prompt_tokens + turn.generated:
                continue
            self.batch.prefilling.remove(turn)
            if turn.generated == 0:
                self.listener.on_first_token(requests[turn], now_ps)
            turn.generated += 1
            left = requests[turn].output_tokens - turn.generated
            if left == 0:
                finished.append(turn)
            else:
                self._decoding.start(turn, step + 1, step + left)
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
            request = self.batch.requests.pop(turn)
            prefix_runs = turn.holding.prefix_runs
            if not (self.pins.enabled and retain(self.pins, self.kv, turn, request, now_ps)):
                self.kv.release(turn.holding, turn.computed)
            if self._offload is not None:
                self._offload.ended(turn, prefix_runs)
            self.listener.on_finished(
                request,
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
