"""The simulated engine core: vLLM V1's scheduler (0.32) in virtual time, event by event.

A step is scheduled as ``vllm.v1.core.sched.scheduler.Scheduler.schedule`` does it: running turns
first, in order, then waiting ones while the token budget lasts; blocks at block granularity;
preemption by recomputation. Three things make it fast without changing a decision:

- decoding turns advance together: their sum of contexts and how many need a new block at a given
  step are known without looking at each;
- steps in which nothing can change (no prefill, the waiting queue empty or known not to fit) are
  jumped over, up to the next finish, external event or exhausted block;
- a step whose demands all fit takes a short path; only one that runs out of tokens or blocks
  goes through the turns one by one (``_contend``).
"""

from __future__ import annotations

import heapq
from bisect import insort

from marsbench.core import PS_PER_S, to_ps
from marsbench.engine.base import CoreListener, CoreStats, EngineConfig, Request, StepTrace
from marsbench.engine.cost import StepCost
from marsbench.engine.sim.kv import Holding, KvCache
from marsbench.engine.sim.pins import Pins
from marsbench.engine.sim.turn import SimClock, SimTurn
from marsbench.errors import PolicyError
from marsbench.events import Unpin
from marsbench.scheduler.base import EngineOrder, SchedulingPolicy, TurnView
from marsbench.system import Policies

FOREVER = 1 << 62


class SimView:
    """The core as policies may read it (``scheduler.base.EngineView``)."""

    def __init__(self, core: SimCore) -> None:
        self._core = core
        self.block_size = core.config.block_size
        self.num_blocks = core.config.num_blocks

    @property
    def free_blocks(self) -> int:
        """Unreferenced blocks."""
        return self._core.kv.free

    @property
    def pinned_blocks(self) -> int:
        """Blocks that nothing but pins hold."""
        return self._core.pins.only_pinned() if self._core.pins.active else 0

    @property
    def waiting(self) -> list[SimTurn]:
        """Waiting turns in queue order."""
        return self._core.waiting

    @property
    def running(self) -> list[SimTurn]:
        """Running turns in engine order."""
        return self._core.running

    def cached_tokens(self, turn: TurnView) -> int:
        """Prefix hit of a waiting turn if it were scheduled now."""
        assert isinstance(turn, SimTurn)
        return self._core.hit_blocks(turn)[0] * self.block_size


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
        self.kv = KvCache(config.num_blocks, config.block_size, config.enable_prefix_caching)
        self.clock = SimClock()
        self.waiting: list[SimTurn] = []
        self.running: list[SimTurn] = []
        self.view = SimView(self)
        self.pins = Pins(self.kv, policies.retention, self.view, listener, config.num_blocks)
        self.policy: SchedulingPolicy | None = (
            None if type(policies.scheduling) is EngineOrder else policies.scheduling
        )
        self._reorders = self.policy is not None and self.policy.reorders_running
        self._resort_ps = FOREVER
        if self.policy is not None and self.policy.resort_s < FOREVER / PS_PER_S:
            self._resort_ps = to_ps(self.policy.resort_s)
        self._sorted_at_ps = -1
        self._dirty = True
        """Something happened since the policy's keys were last asked."""
        self._stuck = False
        """No waiting turn can be admitted until blocks or a place become free."""
        self._prefilling: list[SimTurn] = []
        self._num_decoding = 0
        self._offset_sum = 0
        self._crossings = [0] * config.block_size
        """How many decoding turns need a new block at steps congruent to the index."""
        self._quanta: dict[int, int | None] = {}
        """The policy's quantum of each turn it was asked for in this step."""
        self._finishes: list[tuple[int, int, SimTurn]] = []
        self._sequence = 0
        self._run_order = 0
        self._now_ps = 0

    # --- EngineCore ------------------------------------------------------------------------

    def fits(self, prompt_tokens: int, output_tokens: int) -> bool:
        """Whether a turn of this size can ever run."""
        total = prompt_tokens + output_tokens
        blocks = -(-(total - 1) // self.config.block_size)
        return blocks <= self.config.num_blocks and total <= self.config.max_model_len

    def submit(self, request: Request) -> None:
        """Put a turn into the waiting queue."""
        size = self.config.block_size
        shared = request.prefix_tokens // size if request.prefix_id >= 0 else 0
        turn = SimTurn(request, self._sequence, Holding(request.session, shared, size), self.clock)
        self._sequence += 1
        self._enqueue(turn, preempted=False)
        self.pins.returned(request.session)
        self._changed()

    def session_ended(self, session: int) -> None:
        """Drop the session's pin."""
        if self.pins.drop(session, self._now_ps, Unpin.END):
            self._freed()

    def cached_blocks(self) -> int:
        """Unreferenced blocks with reusable content."""
        return self.kv.cached

    def idle(self) -> bool:
        """True if nothing waits and nothing runs."""
        return not self.running and not self.waiting

    def advance(self, now_ps: int, limit_ps: int) -> int:
        """See ``EngineCore.advance``."""
        while now_ps < limit_ps:
            self._now_ps = now_ps
            if not self.running and not self.waiting:
                return limit_ps
            if self.pins.active and self.pins.review(now_ps):
                self._freed()
            if self.policy is not None and (
                self._dirty or now_ps >= self._sorted_at_ps + self._resort_ps
            ):
                self._resort(now_ps)
            before = self.clock.step
            done = False
            if not self._prefilling and (not self.waiting or self._stuck):
                if not self._num_decoding:
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
        size = self.config.block_size
        holdings = []
        for turn in self.running:
            if turn.decoding:
                turn.holding.blocks = -(-turn.computed_tokens // size)
            holdings.append(turn.holding)
        self.kv.check(holdings + self.pins.holdings())
        decoding = [turn for turn in self.running if turn.decoding]
        assert len(decoding) == self._num_decoding
        assert sum(turn.offset for turn in decoding) == self._offset_sum
        assert sum(self._crossings) == self._num_decoding
        assert [t for t in self.running if not t.decoding] == self._prefilling or self._reorders

    # --- jumping over quiet steps ----------------------------------------------------------

    def _jump(self, now_ps: int, limit_ps: int) -> tuple[int, bool]:
        """Run the longest stretch of pure decode steps in which no decision is made.

        Leaves the step counter alone if not even one step is free of contention.
        """
        step = self.clock.step
        count = self._num_decoding
        finish = self._next_finish()
        last = 1 if self.trace is not None else finish - step + 1
        if count > self.config.max_num_batched_tokens:
            return now_ps, False
        steps = self._steps_with_blocks(step, last)
        if steps == 0:
            return now_ps, False
        horizon = limit_ps
        expiry = self.pins.next_change_ps
        horizon = min(horizon, expiry)
        if self._resort_ps < FOREVER and (self.waiting or self._reorders):
            again = self._sorted_at_ps + self._resort_ps
            horizon = again if again < horizon else horizon
        context = self._offset_sum + count * (step + 1)
        cost = self.cost
        duration = cost.decode_run_ps(count, context, steps)
        if steps > 1 and duration > horizon - now_ps:
            steps = max(cost.decode_steps_until(count, context, horizon - now_ps, steps), 1)
            duration = cost.decode_run_ps(count, context, steps)
        kv = self.kv
        referenced = kv.num_blocks - kv.free
        need = self._crossing_blocks(step, steps)
        if need:
            kv.take(need)
        after = referenced + need
        first = referenced + self._crossings[step % self.config.block_size]
        self.stats.referenced_block_ps += (first + after) * duration // 2
        self.stats.steps += steps
        self.stats.busy_ps += duration
        self.clock.step = step + steps
        if self.policy is not None:
            self.clock.last_start_ps = now_ps + cost.decode_run_ps(count, context, steps - 1)
        now_ps += duration
        if self.trace is not None:
            self._trace(now_ps - duration, [], [])
        if finish == step + steps - 1:
            self._finish(self._finishers(), now_ps)
            return now_ps, True
        return now_ps, False

    def _next_finish(self) -> int:
        heap = self._finishes
        while True:
            step, _, turn = heap[0]
            if turn.decoding and turn.finish_step == step:
                return step
            heapq.heappop(heap)

    def _crossing_blocks(self, step: int, steps: int) -> int:
        """New blocks decoding turns need over ``steps`` steps from ``step``."""
        size = self.config.block_size
        cycles, rest = divmod(steps, size)
        need = cycles * self._num_decoding
        if rest:
            start = step % size
            end = start + rest
            if end <= size:
                need += sum(self._crossings[start:end])
            else:
                need += sum(self._crossings[start:]) + sum(self._crossings[: end - size])
        return need

    def _steps_with_blocks(self, step: int, steps: int) -> int:
        """Most steps (at most ``steps``) for which the free blocks suffice."""
        free = self.kv.free
        if self._num_decoding * (steps // self.config.block_size + 1) <= free:
            return steps
        if self._crossing_blocks(step, steps) <= free:
            return steps
        low, high = 0, steps
        while high - low > 1:
            middle = (low + high) // 2
            if self._crossing_blocks(step, middle) <= free:
                low = middle
            else:
                high = middle
        return low

    # --- one step --------------------------------------------------------------------------

    def _step(self, now_ps: int) -> tuple[int, bool]:
        """Schedule and execute one step; returns the time after it and whether a turn finished."""
        config = self.config
        step = self.clock.step
        threshold = config.long_prefill_token_threshold
        if threshold:
            eligible = len(self.running) + len(self.waiting)
            if eligible <= 1:
                threshold = 0
            elif config.long_prefill_token_threshold_adaptive:
                share = config.max_num_batched_tokens // eligible
                threshold = share if share > threshold else threshold
        chunks: list[tuple[SimTurn, int]] = []
        preempted: list[SimTurn] = []
        skipped: list[SimTurn] = []
        budget = self._schedule_running(now_ps, threshold, chunks)
        if budget < 0:
            chunks.clear()
            budget = self._contend(now_ps, threshold, chunks, preempted, skipped)
        if not preempted and self.waiting and budget > 0 and not self._stuck:
            self._admit(now_ps, threshold, budget, chunks)
        if not chunks and self._num_decoding == len(skipped):
            return now_ps, False
        if self.policy is not None:
            self._report_quanta(chunks, now_ps)
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
            self._stop_decoding(turn, step)
            self._start_decoding(turn, turn.finish_step + 1)
        now_ps += duration
        finished = self._complete(chunks, step, now_ps)
        if self._num_decoding and self._finishes[0][0] <= step:
            finished += self._finishers()
        if finished:
            self._finish(finished, now_ps)
            return now_ps, True
        return now_ps, False

    def _report_quanta(self, chunks: list[tuple[SimTurn, int]], now_ps: int) -> None:
        assert self.policy is not None
        for turn, count in chunks:
            if turn.sequence in self._quanta:
                quantum = self._quanta[turn.sequence]
                self.policy.on_scheduled(turn, count, quantum, now_ps / PS_PER_S)
        self._quanta.clear()

    def _duration(
        self, step: int, chunks: list[tuple[SimTurn, int]], skipped: list[SimTurn]
    ) -> int:
        decoding = self._num_decoding - len(skipped)
        context = self._offset_sum + self._num_decoding * (step + 1)
        for turn in skipped:
            context -= turn.offset + step + 1
        tokens = decoding
        pairs = context
        for turn, count in chunks:
            have = turn.computed
            tokens += count
            pairs += count * have + count * (count + 1) // 2
            context += have + count
        return self.cost.step_ps(tokens, pairs, context, decoding + len(chunks))

    def _schedule_running(
        self, now_ps: int, threshold: int, chunks: list[tuple[SimTurn, int]]
    ) -> int:
        """Short path: give every running turn what it asks for. Returns the token budget left,
        or -1 (nothing changed) if tokens or blocks do not suffice for all.
        """
        size = self.config.block_size
        budget = self.config.max_num_batched_tokens - self._num_decoding
        if budget < 0:
            return -1
        crossing = need = self._crossings[self.clock.step % size]
        policy = self.policy
        last = self.running[-1] if self.running else None
        for turn in self._prefilling:
            if budget == 0:
                return -1
            have = turn.computed
            count = turn.prompt_tokens + turn.generated - have
            if 0 < threshold < count:
                count = threshold
            if policy is not None:
                count = self._quantum(turn, have, count, now_ps)
            if count > budget:
                if turn is not last:
                    return -1
                count = budget
            budget -= count
            need += -(-(have + count) // size) - turn.holding.blocks
            chunks.append((turn, count))
        kv = self.kv
        if need > kv.plain + kv.cached:
            return -1
        if crossing:
            kv.take(crossing)
        for turn, count in chunks:
            self._give(turn, count, now_ps)
        return budget

    def _quantum(self, turn: SimTurn, have: int, count: int, now_ps: int) -> int:
        """Clip a chunk on top of ``have`` computed tokens to the policy's quantum."""
        assert self.policy is not None
        if have >= max(turn.prompt_tokens, turn.prompt_tokens + turn.generated - 1):
            return count
        quantum = self.policy.prefill_quantum(turn, self.view, now_ps / PS_PER_S)
        self._quanta[turn.sequence] = quantum
        if quantum is None:
            return count
        if quantum < 1:
            raise PolicyError(f"prefill_quantum must be at least 1 token, got {quantum}")
        return min(quantum, count)

    def _give(self, turn: SimTurn, count: int, now_ps: int) -> None:
        """Allocate a prefill chunk whose blocks are known to be free."""
        have = turn.computed
        self.kv.grow(turn.holding, turn.request.prefix_id, have, have + count)
        if have < turn.holding.shared_blocks * self.config.block_size:
            self._stuck = False  # what is cached of a shared prefix is a hit for those who wait
        turn.last_scheduled_ps = now_ps
        turn.prefilled += count

    def _contend(
        self,
        now_ps: int,
        threshold: int,
        chunks: list[tuple[SimTurn, int]],
        preempted: list[SimTurn],
        skipped: list[SimTurn],
    ) -> int:
        """Exact path: running turns one by one, in order, with preemption. Returns the budget."""
        config = self.config
        size = config.block_size
        budget = config.max_num_batched_tokens
        given: dict[int, int] = {}
        index = 0
        while index < len(self.running) and budget > 0:
            turn = self.running[index]
            have = turn.computed_tokens
            decode = turn.decoding
            count = 1 if decode else turn.prompt_tokens + turn.generated - have
            if not decode:
                if 0 < threshold < count:
                    count = threshold
                if self.policy is not None:
                    count = self._quantum(turn, have, count, now_ps)
            count = count if count < budget else budget
            blocks = -(-have // size) if decode else turn.holding.blocks
            need = -(-(have + count) // size) - blocks
            if need > self.kv.free and not decode and self.policy is not None:
                count, need = self._shrink(have, count, need, blocks)
            stopped = False
            while need > self.kv.free:
                if self.pins.active and self.pins.reclaim(now_ps, None):
                    self._freed()
                    continue
                victim = self._victim(now_ps)
                position = self.running.index(victim)
                if victim.sequence in given:
                    budget += given[victim.sequence]
                    chunks[:] = [pair for pair in chunks if pair[0] is not victim]
                self._preempt(victim, now_ps, given.pop(victim.sequence, 0))
                if position < index:
                    index -= 1
                preempted.append(victim)
                if victim is turn:
                    stopped = True
                    break
            if stopped:
                break
            if decode:
                if need:
                    self.kv.take(need)
            else:
                self._give(turn, count, now_ps)
                chunks.append((turn, count))
            given[turn.sequence] = count
            budget -= count
            index += 1
        skipped += [t for t in self.running if t.decoding and t.sequence not in given]
        return budget

    def _shrink(self, have: int, count: int, need: int, blocks: int) -> tuple[int, int]:
        """Halve a prefill chunk until its blocks are free, if the policy wants that."""
        assert self.policy is not None
        size = self.config.block_size
        if not self.policy.shrink_chunks():
            return count, need
        smaller = count
        while smaller > size:
            smaller = max(smaller // 2, size)
            fewer = -(-(have + smaller) // size) - blocks
            if fewer <= self.kv.free:
                return smaller, fewer
        return count, need

    def _victim(self, now_ps: int) -> SimTurn:
        """The running turn to preempt."""
        running = self.running
        if self.policy is not None:
            policy, now_s = self.policy, now_ps / PS_PER_S
            best = running[0]
            best_key = policy.victim_key(best, self.view, now_s)
            for turn in running[1:]:
                key = policy.victim_key(turn, self.view, now_s)
                if key >= best_key:
                    best, best_key = turn, key
            return best
        if self.config.policy == "priority":
            return max(running, key=_victim_priority)
        return running[-1]

    def _preempt(self, turn: SimTurn, now_ps: int, given: int) -> None:
        """Free a running turn's blocks and put it back into the queue. ``given`` = tokens this step
        had already scheduled for it: they have slots, and count as cached, as in vLLM.
        """
        size = self.config.block_size
        step = self.clock.step
        if turn.decoding:
            self._stop_decoding(turn, step)
            turn.holding.blocks = -(-(turn.computed + given) // size)
        else:
            turn.prefilled -= given
            self._prefilling.remove(turn)
        tokens = turn.computed + given
        self.running.remove(turn)
        blocks = turn.holding.blocks
        self.kv.release(turn.holding, tokens)
        turn.lost = turn.computed
        turn.computed = 0
        turn.num_preemptions += 1
        self.stats.preemptions += 1
        self._enqueue(turn, preempted=True)
        self._changed()
        self.listener.on_preempted(turn.request, now_ps, turn.lost, blocks)

    # --- the waiting queue -----------------------------------------------------------------

    def _enqueue(self, turn: SimTurn, *, preempted: bool) -> None:
        if self.policy is not None:
            self.waiting.append(turn)
        elif self.config.policy == "priority":
            insort(self.waiting, turn, key=_queue_priority)
        elif preempted:
            self.waiting.insert(0, turn)
        else:
            self.waiting.append(turn)

    def _resort(self, now_ps: int) -> None:
        """Ask the policy for the order of both queues."""
        policy, view, now_s = self.policy, self.view, now_ps / PS_PER_S
        assert policy is not None
        if len(self.waiting) > 1:
            self.waiting.sort(key=lambda t: (policy.waiting_key(t, view, now_s), t.sequence))
        if self._reorders and len(self.running) > 1:
            self.running.sort(key=lambda t: (policy.running_key(t, view, now_s), t.sequence))
            self._prefilling = [turn for turn in self.running if not turn.decoding]
        self._sorted_at_ps = now_ps
        self._dirty = False
        self._stuck = False

    def hit_blocks(self, turn: SimTurn) -> tuple[int, int]:
        """Cached leading blocks of a waiting turn, and how many of them are unreferenced."""
        size = self.config.block_size
        if turn.num_preemptions and turn.cached >= 0:
            limit = (turn.prompt_tokens + turn.generated - 1) // size
        else:
            limit = turn.request.reused_tokens // size
        request = turn.request
        return self.kv.hit(turn.session, request.prefix_id, turn.holding.shared_blocks, limit)

    def _admit(
        self, now_ps: int, threshold: int, budget: int, chunks: list[tuple[SimTurn, int]]
    ) -> None:
        """Move waiting turns into the batch while tokens, places and blocks last."""
        config = self.config
        size = config.block_size
        skip = self.policy is not None and self.policy.skip_blocked()
        index = 0
        while index < len(self.waiting) and budget > 0:
            if len(self.running) >= config.max_num_seqs:
                self._stuck = True
                return
            turn = self.waiting[index]
            hit, unreferenced = self.hit_blocks(turn)
            total = turn.prompt_tokens + turn.generated
            count = total - hit * size
            if 0 < threshold < count:
                count = threshold
            if self.policy is not None:
                count = self._quantum(turn, hit * size, count, now_ps)
            count = count if count < budget else budget
            until = total if config.scheduler_reserve_full_isl else hit * size + count
            need = -(-until // size) - hit + unreferenced
            while need > self.kv.free and self.pins.active:
                if not self.pins.reclaim(now_ps, turn) and (
                    self.running or not self.pins.reclaim(now_ps, None)
                ):
                    break
                self._freed()
                hit, unreferenced = self.hit_blocks(turn)
                need = -(-until // size) - hit + unreferenced
            if need > self.kv.free:
                if skip:
                    index += 1
                    continue
                self._stuck = True
                return
            self.waiting.pop(index)
            self._start(turn, hit, count, now_ps)
            chunks.append((turn, count))
            budget -= count
        self._stuck = bool(self.waiting) and budget > 0

    def _start(self, turn: SimTurn, hit: int, count: int, now_ps: int) -> None:
        """First chunk of a turn that enters the batch with ``hit`` cached blocks."""
        request = turn.request
        size = self.config.block_size
        self.pins.drop(turn.session, now_ps, Unpin.RETURN)
        self.kv.touch(turn.holding, request.prefix_id, hit)
        cached = hit * size
        turn.computed = cached
        uncached = turn.prompt_tokens + turn.generated - cached
        if turn.cached < 0:
            turn.cached = cached
            if turn.turn_index > 0:
                had = (request.reused_tokens - 1) // size * size
                turn.recomputed += had - cached if had > cached else 0
            self.listener.on_scheduled_first(request, now_ps, cached, uncached)
        else:
            turn.recomputed += turn.lost - cached if turn.lost > cached else 0
            self.listener.on_resumed(request, now_ps, cached, uncached)
        turn.run_order = self._run_order
        self._run_order += 1
        self.running.append(turn)
        self._prefilling.append(turn)
        self._give(turn, count, now_ps)

    # --- after a step ----------------------------------------------------------------------

    def _complete(self, chunks: list[tuple[SimTurn, int]], step: int, now_ps: int) -> list[SimTurn]:
        """Credit computed chunks; turns whose prompt is complete make a token. Returns those done."""
        finished: list[SimTurn] = []
        for turn, count in chunks:
            turn.computed += count
            if turn.computed < turn.prompt_tokens + turn.generated:
                continue
            self._prefilling.remove(turn)
            if turn.generated == 0:
                self.listener.on_first_token(turn.request, now_ps)
            turn.generated += 1
            left = turn.output_tokens - turn.generated
            if left == 0:
                finished.append(turn)
            else:
                self._start_decoding(turn, step + left)
        return finished

    def _start_decoding(self, turn: SimTurn, finish_step: int) -> None:
        turn.finish_step = finish_step
        turn.decoding = True
        offset = turn.offset
        self._num_decoding += 1
        self._offset_sum += offset
        self._crossings[-offset % self.config.block_size] += 1
        heapq.heappush(self._finishes, (finish_step, turn.run_order, turn))

    def _stop_decoding(self, turn: SimTurn, step: int) -> None:
        """Take a turn out of the sums; ``step`` = the next step it would have run in."""
        offset = turn.offset
        self._num_decoding -= 1
        self._offset_sum -= offset
        self._crossings[-offset % self.config.block_size] -= 1
        turn.computed = offset + step
        turn.generated = turn.output_tokens - 1 - turn.finish_step + step
        turn.decoding = False

    def _finishers(self) -> list[SimTurn]:
        """Decoding turns whose last token the step just executed has made."""
        done: list[SimTurn] = []
        step = self.clock.step
        while self._num_decoding and self._finishes and self._next_finish() == step - 1:
            turn = heapq.heappop(self._finishes)[2]
            self._stop_decoding(turn, step)
            turn.holding.blocks = -(-turn.computed // self.config.block_size)
            done.append(turn)
        return done

    def _finish(self, finished: list[SimTurn], now_ps: int) -> None:
        """Free or retain the blocks of finished turns, in the order of the batch."""
        if len(finished) > 1:
            if self._reorders:
                finished.sort(key=self.running.index)
            else:
                finished.sort(key=_run_order)
        self._changed()
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

    def _changed(self) -> None:
        """A turn was submitted, preempted or finished."""
        self._freed()
        self.pins.dirty = True

    def _freed(self) -> None:
        """Blocks became free, or the queue changed."""
        self._stuck = False
        self._dirty = True

    def _trace(
        self,
        start_ps: int,
        chunks: list[tuple[SimTurn, int]],
        preempted: list[SimTurn],
        skipped: list[SimTurn] | None = None,
    ) -> None:
        assert self.trace is not None
        counts = {turn.sequence: count for turn, count in chunks}
        left_out = {turn.sequence for turn in skipped or ()}
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


def _queue_priority(turn: SimTurn) -> tuple[int, int, int]:
    return (turn.request.priority, turn.request.ready_ps, turn.sequence)


def _victim_priority(turn: SimTurn) -> tuple[int, int]:
    return (turn.request.priority, turn.request.ready_ps)


def _run_order(turn: SimTurn) -> int:
    return turn.run_order
