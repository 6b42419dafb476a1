"""One step of the simulated engine's scheduler: who waits, who runs, and with which blocks.

A step is scheduled as ``vllm.v1.core.sched.scheduler.Scheduler.schedule`` (0.32) does it: running
turns first, in order, then waiting ones while the token budget lasts; blocks at block granularity;
preemption by recomputation. A step whose demands all fit takes a short path; only one that runs out
of tokens or blocks goes through the turns one by one (``_contend``). No time passes here.
"""

from __future__ import annotations

from marsbench.engine.base import CoreListener, CoreStats, EngineConfig, Request
from marsbench.engine.retention import RetentionBook
from marsbench.engine.sim.decoding import Decoding
from marsbench.engine.sim.kv import Holding, KvCache
from marsbench.engine.sim.loader import Loader
from marsbench.engine.sim.offload import Offload
from marsbench.engine.sim.order import Order
from marsbench.engine.sim.pins import releaser
from marsbench.engine.sim.turn import SimClock, SimTurn
from marsbench.engine.sim.view import SimView
from marsbench.events import Unpin
from marsbench.system import Policies

Chunks = list[tuple[SimTurn, int]]
"""Prefill of a step: turns and how many tokens each computes."""


class SimBatch:
    """The queues and the memory of a core, of which it composes each step."""

    def __init__(
        self,
        config: EngineConfig,
        policies: Policies,
        listener: CoreListener,
        stats: CoreStats,
        clock: SimClock,
    ) -> None:
        self.config = config
        self.kv = KvCache(config.num_blocks, config.block_size, config.enable_prefix_caching)
        self.waiting: list[SimTurn] = []
        self.running: list[SimTurn] = []
        self.prefilling: list[SimTurn] = []
        """Running turns that do not decode yet, in the order of the batch."""
        self.requests: dict[SimTurn, Request] = {}
        """What each unfinished turn asks for, its length included: for nobody's eyes but the core's."""
        self.loading: list[SimTurn] = []
        """Waiting turns whose KV arrives, or has arrived, from host memory; they hold blocks."""
        self.offload: Offload | None = None
        self._loader: Loader | None = None
        self.decoding = Decoding(clock, config.block_size)
        self.stuck = False
        """No waiting turn can be admitted until blocks or a place become free."""
        self.view = SimView(self)
        self.pins: RetentionBook[Holding] = RetentionBook(
            policies.retention, self.view, listener, config.num_blocks, releaser(self.kv)
        )
        self.order = Order(policies.scheduling, self.view, config)
        self.policy = self.order.policy
        self._listener = listener
        self._stats = stats
        self._clock = clock
        self._sequence = 0
        self._run_order = 0

    def attach(self, offload: Offload) -> None:
        """Give the engine host memory."""
        self.offload = offload
        self._loader = Loader(self, offload)

    # --- what happens between steps --------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Put a turn into the waiting queue."""
        size = self.config.block_size
        shared = request.prefix_tokens // size if request.prefix_id >= 0 else 0
        holding = Holding(request.session, shared, size)
        turn = SimTurn(request, self._sequence, holding, self._clock)
        self.requests[turn] = request
        self._sequence += 1
        if self.offload is not None:
            self.offload.submitted(turn, request)
        self.order.enqueue(self.waiting, turn, preempted=False)
        self.pins.returned(request.session)
        self.changed()

    @property
    def settled(self) -> bool:
        """With host memory: whether no turn could enter the batch in the next step."""
        if self.prefilling:
            return False
        if self.stuck:
            return True
        loaded = any(turn.copies is not None and turn.copies.arrived for turn in self.loading)
        return not (self.waiting or loaded)

    def changed(self) -> None:
        """Note that a turn was submitted, preempted or finished."""
        self.freed()
        self.pins.dirty = True

    def freed(self) -> None:
        """Note that blocks became free or the queue changed, so that waiting turns are looked at
        again.
        """
        self.stuck = False
        self.order.dirty = True

    def sort(self, now_ps: int) -> None:
        """Ask the policy for the order of both queues."""
        self.order.sort(self.waiting, self.running, now_ps)
        if self.order.reorders_running:
            self.prefilling = [turn for turn in self.running if not turn.decoding]
        self.stuck = False

    def hit_blocks(self, turn: SimTurn) -> tuple[int, int]:
        """Return how many leading blocks of a waiting turn are cached, and how many of them are
        unreferenced.
        """
        size = self.config.block_size
        if turn.num_preemptions and turn.cached >= 0:
            limit = (turn.prompt_tokens + turn.generated - 1) // size
        else:
            limit = turn.here_tokens // size
        return self.kv.hit(turn.session, turn.prefix_id, turn.holding.shared_blocks, limit)

    # --- a step ----------------------------------------------------------------------------

    def schedule(self, now_ps: int) -> tuple[Chunks, list[SimTurn], list[SimTurn]]:
        """Compose the step that starts now.

        Returns its prefill chunks, the turns it preempted, and those that decode but got no token
        of it. All other decoding turns run in it.
        """
        config = self.config
        threshold = config.long_prefill_token_threshold
        if threshold:
            eligible = len(self.running) + len(self.waiting) + len(self.loading)
            if eligible <= 1:
                threshold = 0
            elif config.long_prefill_token_threshold_adaptive:
                share = config.max_num_batched_tokens // eligible
                threshold = share if share > threshold else threshold
        chunks: Chunks = []
        preempted: list[SimTurn] = []
        skipped: list[SimTurn] = []
        budget = self._schedule_running(now_ps, threshold, chunks)
        if budget < 0:
            chunks.clear()
            budget = self._contend(now_ps, threshold, chunks, preempted, skipped)
        if not preempted and budget > 0 and not self.stuck:
            if self._loader is not None:
                self._loader.admit(now_ps, threshold, budget, chunks)
            elif self.waiting:
                self._admit(now_ps, threshold, budget, chunks)
        return chunks, preempted, skipped

    def _schedule_running(self, now_ps: int, threshold: int, chunks: Chunks) -> int:
        """Short path: give every running turn what it asks for. Returns the token budget left,
        or -1 (nothing changed) if tokens or blocks do not suffice for all.
        """
        size = self.config.block_size
        budget = self.config.max_num_batched_tokens - self.decoding.count
        if budget < 0:
            return -1
        crossing = need = self.decoding.crossings[self._clock.step % size]
        policy = self.policy
        last = self.running[-1] if self.running else None
        for turn in self.prefilling:
            if budget == 0:
                return -1
            have = turn.computed
            count = turn.prompt_tokens + turn.generated - have
            if 0 < threshold < count:
                count = threshold
            if policy is not None:
                count = self.order.quantum(turn, have, count, now_ps)
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
            self.give(turn, count, now_ps)
        return budget

    def give(self, turn: SimTurn, count: int, now_ps: int) -> None:
        """Allocate a prefill chunk whose blocks are known to be free."""
        have = turn.computed
        self.kv.grow(turn.holding, turn.prefix_id, have, have + count)
        if have < turn.holding.shared_blocks * self.config.block_size:
            self.stuck = False  # what is cached of a shared prefix is a hit for those who wait
        turn.last_scheduled_ps = now_ps
        turn.prefilled += count

    # --- too little for all ----------------------------------------------------------------

    def _contend(
        self,
        now_ps: int,
        threshold: int,
        chunks: Chunks,
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
                    count = self.order.quantum(turn, have, count, now_ps)
            count = count if count < budget else budget
            blocks = -(-have // size) if decode else turn.holding.blocks
            need = -(-(have + count) // size) - blocks
            if need > self.kv.free and not decode and self.policy is not None:
                count, need = self._shrink(have, count, need, blocks)
            stopped = False
            while need > self.kv.free:
                if self.pins.active and self.pins.reclaim(now_ps, None):
                    self.freed()
                    continue
                victim = self.order.victim(self.running, now_ps)
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
                self.give(turn, count, now_ps)
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

    def _preempt(self, turn: SimTurn, now_ps: int, given: int) -> None:
        """Free a running turn's blocks and put it back into the queue. ``given`` = tokens this step
        had already scheduled for it: they have slots, and count as cached, as in vLLM.
        """
        if turn.decoding:
            self.decoding.stop(turn, self._clock.step)
            turn.holding.blocks = -(-(turn.computed + given) // self.config.block_size)
        else:
            turn.prefilled -= given
            self.prefilling.remove(turn)
        tokens = turn.computed + given
        self.running.remove(turn)
        blocks = turn.holding.blocks
        if self.offload is not None:
            self.offload.preempted(turn)
        self.kv.release(turn.holding, tokens)
        turn.lost = turn.computed
        turn.computed = 0
        turn.num_preemptions += 1
        self._stats.preemptions += 1
        self.order.enqueue(self.waiting, turn, preempted=True)
        self.changed()
        self._listener.on_preempted(self.requests[turn], now_ps, turn.lost, blocks)

    # --- from the queue into the batch -----------------------------------------------------

    def _admit(self, now_ps: int, threshold: int, budget: int, chunks: Chunks) -> None:
        """Move waiting turns into the batch while tokens, places and blocks last."""
        config = self.config
        size = config.block_size
        skip = self.policy is not None and self.policy.skip_blocked()
        index = 0
        while index < len(self.waiting) and budget > 0:
            if len(self.running) >= config.max_num_seqs:
                self.stuck = True
                return
            turn = self.waiting[index]
            hit, unreferenced = self.hit_blocks(turn)
            total = turn.prompt_tokens + turn.generated
            count = total - hit * size
            if 0 < threshold < count:
                count = threshold
            if self.policy is not None:
                count = self.order.quantum(turn, hit * size, count, now_ps)
            count = count if count < budget else budget
            until = total if config.scheduler_reserve_full_isl else hit * size + count
            need = -(-until // size) - hit + unreferenced
            while need > self.kv.free and self.pins.active:
                if not self.pins.reclaim(now_ps, turn) and (
                    self.running or not self.pins.reclaim(now_ps, None)
                ):
                    break
                self.freed()
                hit, unreferenced = self.hit_blocks(turn)
                need = -(-until // size) - hit + unreferenced
            if need > self.kv.free:
                if skip:
                    index += 1
                    continue
                self.stuck = True
                return
            self.waiting.pop(index)
            self.start(turn, hit, count, now_ps)
            chunks.append((turn, count))
            budget -= count
        self.stuck = bool(self.waiting) and budget > 0

    def start(self, turn: SimTurn, hit: int, count: int, now_ps: int) -> None:
        """Run the first chunk of a turn that enters the batch with ``hit`` cached blocks."""
        self.adopt(turn, hit, now_ps)
        self.enter(turn, count, now_ps)

    def adopt(self, turn: SimTurn, hit: int, now_ps: int) -> None:
        """Give a waiting turn its cached blocks."""
        self.pins.drop(turn.session, now_ps, Unpin.RETURN)
        self.kv.touch(turn.holding, turn.prefix_id, hit)
        turn.computed = hit * self.config.block_size

    def enter(self, turn: SimTurn, count: int, now_ps: int) -> None:
        """Run the first chunk of a turn that enters the batch with the tokens it has."""
        request = self.requests[turn]
        size = self.config.block_size
        cached = turn.computed
        uncached = turn.prompt_tokens + turn.generated - cached
        if turn.cached < 0:
            turn.cached = cached
            if turn.turn_index > 0:
                had = (request.reused_tokens - 1) // size * size
                turn.recomputed += had - cached if had > cached else 0
            self._listener.on_scheduled_first(request, now_ps, cached, uncached)
        else:
            turn.recomputed += turn.lost - cached if turn.lost > cached else 0
            self._listener.on_resumed(request, now_ps, cached, uncached)
        turn.run_order = self._run_order
        self._run_order += 1
        self.running.append(turn)
        self.prefilling.append(turn)
        self.give(turn, count, now_ps)

    # --- invariants ------------------------------------------------------------------------

    def check(self) -> None:
        """Assert that every block is accounted for exactly once, and every sum."""
        size = self.config.block_size
        holdings = [turn.holding for turn in self.loading]
        for turn in self.running:
            if turn.decoding:
                turn.holding.blocks = -(-turn.computed_tokens // size)
            holdings.append(turn.holding)
        self.kv.check(holdings + [pin.held for pin in self.pins.pins()])
        self.decoding.check(self.running)
        prefilling = [turn for turn in self.running if not turn.decoding]
        assert prefilling == self.prefilling or self.order.reorders_running
        if self.offload is not None:
            self.offload.check()
