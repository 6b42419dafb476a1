"""Engine ``sglang-core``: the installed SGLang's scheduler, with steps that take modelled time.

The real ``Scheduler`` (radix cache, schedule policy, prefill adder, retraction) is driven as its own
loop without overlap drives it; only the forward pass is replaced, and the clock. Prefill and
decode are batches of their own, as SGLang makes them.
"""

from __future__ import annotations

from typing import Any

from marsbench.core import to_s
from marsbench.engine.base import CoreListener, CoreStats, EngineConfig, Request, StepTrace
from marsbench.engine.cost import StepCost
from marsbench.engine.ledger import Ledger, TurnRecord
from marsbench.engine.sglang.clock import CLOCK
from marsbench.engine.sglang.flags import check
from marsbench.engine.sglang.runtime import build, require_sglang
from marsbench.engine.turns import TurnInfo
from marsbench.errors import EngineError
from marsbench.scheduler.base import EngineView
from marsbench.system import Policies


class SglangCore:
    """SGLang's Scheduler with an executor that only returns tokens."""

    def __init__(
        self,
        config: EngineConfig,
        cost: StepCost,
        policies: Policies,
        listener: CoreListener,
        *,
        adapt_always: bool = False,
    ) -> None:
        """``adapt_always`` puts the policy hooks in even where the null policies need none."""
        require_sglang()
        check(config, "sglang-core")
        self.config = config
        self.cost = cost
        self.listener = listener
        self.stats = CoreStats()
        self.trace: StepTrace | None = None
        CLOCK.now_ps = 0
        self._runtime = build(config)
        self._scheduler: Any = self._runtime.scheduler
        from marsbench.engine.sglang.hooks import Hooks
        from marsbench.engine.sglang.requests import SglangRequestFactory

        self._factory = SglangRequestFactory(
            config.block_size,
            priorities=config.policy == "priority",
            sessions=config.enable_session_radix_cache,
        )
        self._allocator = self._scheduler.token_to_kv_pool_allocator
        self._turns = Ledger(listener, self.stats, config.block_size)
        self._hooks = Hooks(self._scheduler, policies, self, listener)
        self._hooks.install(always=adapt_always)
        self.view: EngineView = self._hooks.view
        self._now_ps = 0
        self._evicted_tokens = 0
        self._worked = False
        """A step ran since SGLang was last idle."""
        self._scheduler.drive_by(self)

    # ---- EngineCore

    def fits(self, prompt_tokens: int, output_tokens: int) -> bool:
        """Whether SGLang would grant the answer its whole length if nothing else were there."""
        page = self.config.block_size
        pool = self._scheduler.max_total_num_tokens - -(-prompt_tokens // page) * page - page - 1
        return bool(output_tokens <= min(pool, self._scheduler.max_req_len - prompt_tokens - 1))

    def submit(self, request: Request) -> None:
        """Make SGLang's request and put it into SGLang's waiting queue."""
        now_ps = max(self._now_ps, request.ready_ps)
        self._account(now_ps)
        with self._runtime.active():
            if now_ps > self._now_ps:
                self._rest()
            CLOCK.now_ps = now_ps
            made, output = self._factory.make(request)
            turn = self._turns.add(made.rid, request, None, output)
            self._scheduler.handle_generate_request(made)
            waiting = self._scheduler.waiting_queue[-1]
            assert waiting.rid == made.rid, "SGLang did not queue the request"
            turn.native = waiting
            self._hooks.submitted(waiting)

    def advance(self, now_ps: int, limit_ps: int) -> int:
        """Schedule, wait the step's modelled duration, hand back its tokens; repeat."""
        if now_ps >= limit_ps:
            return now_ps
        self._account(now_ps)
        with self._runtime.active():
            if now_ps > self._now_ps:
                self._rest()
            self._now_ps = CLOCK.now_ps = now_ps
            while self._turns:
                batch = self._next_batch()
                if batch is None:
                    return limit_ps
                if self._run(batch) or self._now_ps >= limit_ps:
                    return self._now_ps
        return limit_ps

    def session_ended(self, session: int) -> None:
        """Drop what is kept for later turns."""
        self._factory.forget(session)
        self._hooks.session_ended(session)
        if self.config.enable_session_radix_cache:
            with self._runtime.active():
                self._scheduler.tree_cache.release_radix_session(str(session))

    def cached_blocks(self) -> int:
        """Return how many blocks hold reusable content and are referenced by nobody."""
        return int(self._scheduler.tree_cache.evictable_size()) // self.config.block_size

    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._turns

    def check_integrity(self) -> None:
        """Assert that the books balance, SGLang's tree is sound, and nothing is locked for nobody."""
        self.check_books()
        tree = self._scheduler.tree_cache
        with self._runtime.active():
            tree.sanity_check()
            if not self._turns:
                pinned = self.view.pinned_blocks * self.config.block_size
                assert tree.protected_size() == pinned, "locked, and neither running nor pinned"
        assert self._hooks.running.keys() <= self._turns.records.keys(), (
            "a turn ended and still runs"
        )

    def check_books(self) -> None:
        """Assert that every token of the pool is free, evictable, protected, or one running turn's
        own.
        """
        scheduler, tree = self._scheduler, self._scheduler.tree_cache
        with self._runtime.active():
            own, _ = scheduler.invariant_checker._get_total_uncached_sizes()  # noqa: SLF001
            free = self._allocator.available_size()
            held = tree.evictable_size() + tree.protected_size()
        assert free + held + own == scheduler.max_total_num_tokens, (free, held, own)
        assert self._turns or not own, f"{own} tokens belong to turns that have ended"

    # ---- a step

    def _next_batch(self) -> Any:
        """SGLang's next batch; None if all that waits is blocked.

        A pass without one can still change something (a prefill put off in favour of decodes, a
        flag cleared): as many follow, in no time, as can differ.
        """
        scheduler = self._scheduler
        self._turns.preempted.clear()
        for _ in range(self.config.prefill_decode_interval + 2):
            plan = scheduler.get_next_batch_to_run(
                running_batch=scheduler.running_batch, last_batch=scheduler.last_batch
            )
            scheduler.running_batch = plan.running_batch
            scheduler.last_batch = plan.batch_to_run
            if plan.batch_to_run is not None:
                return plan.batch_to_run
        return None

    def _rest(self) -> None:
        """What SGLang's loop does when it finds nothing to run: checks, and a fresh estimate of
        how many tokens answers have.
        """
        if not self._worked or self._turns:
            return
        self._worked = False
        assert self._next_batch() is None, "a batch without a turn"
        self._scheduler.on_idle()

    def _run(self, batch: Any) -> bool:
        """One step; whether a turn finished in it."""
        self._worked = True
        start_ps = self._now_ps
        prefill = batch.forward_mode.is_extend()
        parts = self._prefills(batch) if prefill else self._decodes(batch)
        if self.trace is not None:
            self._report(parts)
        tokens = pairs = context = 0
        for _, start, num_new in parts:
            tokens += num_new
            context += start + num_new
            pairs += num_new * start + num_new * (num_new + 1) // 2
        duration_ps = self.cost.step_ps(tokens, pairs, context, len(parts))
        result = self._scheduler.run_batch(batch)
        self._account(start_ps + duration_ps)
        self._now_ps = CLOCK.now_ps = start_ps + duration_ps
        self.stats.steps += 1
        self.stats.busy_ps += duration_ps
        self._hooks.turns.scheduled([turn.native.rid for turn, _, _ in parts], to_s(start_ps))
        for turn, start, num_new in parts:
            native = turn.native
            self._hooks.turns[native.rid].computed_tokens = start + num_new
            if prefill and _samples(native) and not native.output_ids:
                self.listener.on_first_token(turn.request, self._now_ps)
        self._scheduler.process_batch_result(batch, result)
        finished = [turn for turn, _, _ in parts if turn.native.finished()]
        for turn in finished:
            self._finished(turn)
        return bool(finished)

    def _prefills(self, batch: Any) -> list[tuple[TurnRecord, int, int]]:
        """(turn, tokens before, new tokens) of a prefill batch; turns that are new are announced."""
        parts = []
        for request in batch.reqs:
            turn = self._turns[request.rid]
            if not turn.admitted:
                self._admit(turn)
            num_new = request.extend_end - request.prefix_len
            turn.prefilled += num_new
            parts.append((turn, request.prefix_len, num_new))
        return parts

    def _decodes(self, batch: Any) -> list[tuple[TurnRecord, int, int]]:
        """(turn, tokens before, 1) of a decode batch: the last output's KV is computed."""
        return [
            (self._turns[r.rid], len(r.origin_input_ids) + len(r.output_ids) - 1, 1)
            for r in batch.reqs
        ]

    def _admit(self, turn: TurnRecord) -> None:
        native = turn.native
        self._hooks.admitted(native)
        num_tokens = len(native.full_untruncated_fill_ids)
        self._turns.admitted(native.rid, self._now_ps, int(native.prefix_len), num_tokens)

    def _finished(self, turn: TurnRecord) -> None:
        native = turn.native
        generated = len(native.output_ids)
        if generated != turn.request.output_tokens:
            raise EngineError(
                f"SGLang ended session {turn.request.session} turn {turn.request.turn_index} after "
                f"{generated} of {turn.request.output_tokens} tokens: {native.finished_reason}"
            )
        self._turns.finish(native.rid, self._now_ps)
        self._hooks.finished(native)

    def _report(self, parts: list[tuple[TurnRecord, int, int]]) -> None:
        assert self.trace is not None
        turns = [(turn, num_new) for turn, _, num_new in parts]
        self._turns.report(self.trace, self._now_ps, turns, self.view.free_blocks)

    def _account(self, until_ps: int) -> None:
        """Integrate referenced blocks up to a time."""
        self._turns.account(self.view.num_blocks - self.view.free_blocks, until_ps)

    # ---- what the hooks ask and tell (their ``HookHost``)

    def now_ps(self) -> int:
        return self._now_ps

    def describe(self, request: Any) -> TurnInfo:
        return TurnInfo.of(self._turns[request.rid].request)

    # ---- what the scheduler tells (its ``TurnHost``)

    def next_token(self, request: Any) -> int:
        """Return the token with which the turn was recorded."""
        return self._turns[request.rid].output[len(request.output_ids)]

    def requeued(self, request: Any) -> None:
        """Note that a request goes to the waiting queue; one that ran has been preempted."""
        turn = self._turns.records.get(request.rid)
        if turn is not None and turn.admitted:
            held = self._hooks.turns[request.rid]
            computed, blocks = held.computed_tokens, held.num_blocks
            self._hooks.retracted(request)
            self._turns.lose(request.rid, self._now_ps, computed, blocks)

    def evicted(self, num_tokens: int) -> None:
        """Count in whole blocks what the cache drops."""
        self._evicted_tokens += num_tokens
        self.stats.evicted_blocks = self._evicted_tokens // self.config.block_size


def _samples(request: Any) -> bool:
    """Whether a prefill chunk is its request's last one, after which a token comes."""
    return bool(request.extend_end == len(request.full_untruncated_fill_ids))
