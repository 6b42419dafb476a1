"""Engine ``vllm-core``: the installed vLLM's scheduler, with steps that take modelled time."""

from __future__ import annotations

from collections import Counter
from typing import Any

from marsbench.core import to_s
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
from marsbench.engine.ledger import Ledger, TurnRecord
from marsbench.engine.transfers import link_of
from marsbench.engine.turns import TurnBook, TurnInfo
from marsbench.engine.vllm.retention import holders
from marsbench.engine.vllm.runtime import build_scheduler, quietly, require_vllm
from marsbench.engine.vllm.views import VllmView, held_blocks, turn_book
from marsbench.scheduler.base import EngineOrder, EngineView, NoRetention
from marsbench.system import Policies


class VllmCore:
    """vLLM's Scheduler, KVCacheManager and BlockPool with an executor that only returns tokens."""

    def __init__(
        self,
        config: EngineConfig,
        cost: StepCost,
        policies: Policies,
        listener: CoreListener,
        *,
        adapt_always: bool = False,
    ) -> None:
        """``adapt_always`` puts the policy adapter in even where the null policies need none."""
        require_vllm()
        stock = type(policies.scheduling) is EngineOrder and type(policies.retention) is NoRetention
        self._adapted = adapt_always or not stock
        with quietly():
            from vllm.v1.core.sched.scheduler import Scheduler
            from vllm.v1.outputs import ModelRunnerOutput

            from marsbench.engine.vllm.requests import VllmRequestFactory
            from marsbench.engine.vllm.scheduler import PolicyScheduler
            from marsbench.engine.vllm.tier import HostTier, in_order

            link = link_of(config, cost)
            scheduler_class = PolicyScheduler if self._adapted else Scheduler
            self._scheduler: Any = build_scheduler(
                config, scheduler_class if link is None else in_order(scheduler_class)
            )
            self._tier = None
            if link is not None:
                self._tier = HostTier(self._scheduler, config, link, listener, self.now_ps)
        view: VllmView
        self._views: TurnBook[Any] | None = None
        """Only where no adapter keeps one."""
        if self._adapted:
            self._scheduler.use(policies.scheduling, policies.retention, self, listener)
            view = self._scheduler.view
        else:
            self._views = turn_book(self._scheduler.kv_cache_manager)
            view = VllmView(self._scheduler, self._views)
        view.host = None if self._tier is None else self._tier.view
        self.view: EngineView = view
        self.stats = CoreStats(tier=self._tier.stats if self._tier is not None else None)
        self.trace: StepTrace | None = None
        self.config = config
        self.cost = cost
        self.listener = listener
        self._output_class: Any = ModelRunnerOutput
        self._factory = VllmRequestFactory(config.block_size, hashing=config.enable_prefix_caching)
        self._pool = self._scheduler.kv_cache_manager.block_pool
        self._turns = Ledger(listener, self.stats, config.block_size)
        self._now_ps = 0
        self._num_finished = 0
        self._observe()

    # ---- EngineCore

    def fits(self, prompt_tokens: int, output_tokens: int) -> bool:
        """Whether a turn of this size can ever run."""
        return self.config.fits(prompt_tokens, output_tokens)

    def submit(self, request: Request) -> None:
        """Make vLLM's request and put it into vLLM's waiting queue."""
        self._account(max(self._now_ps, request.ready_ps))
        vllm_request, output = self._factory.make(request)
        key = vllm_request.request_id
        self._turns.add(key, request, vllm_request, output)
        if self._views is not None:
            self._views.add(key, vllm_request, TurnInfo.of(request), request.prompt_tokens)
        if self._tier is not None:
            self._tier.submitted(vllm_request, request)
        self._scheduler.add_request(vllm_request)

    def advance(self, now_ps: int, limit_ps: int) -> int:
        """Schedule, wait the step's modelled duration, hand back its tokens; repeat."""
        if now_ps >= limit_ps:
            return now_ps
        if self.idle():
            return limit_ps
        self._account(now_ps)
        self._now_ps = now_ps
        while not self.idle():
            self._turns.preempted.clear()
            step = self._scheduler.schedule()
            start_ps = self._now_ps
            if self._views is not None:
                self._admit_stock(self._views, step.num_scheduled_tokens)
            if self._tier is not None:
                self._now_ps = max(self._now_ps, self._tier.before_forward(step))
                self._account(self._now_ps)
            if step.num_scheduled_tokens:
                self._run(step, start_ps)
                if self._num_finished or self._now_ps >= limit_ps:
                    return self._now_ps
            elif self._tier is not None:
                if not self._run_empty(step, limit_ps):
                    return max(self._now_ps, limit_ps)
            elif not self._turns.preempted:
                return limit_ps
            # else: vLLM gave the step up to preempt; it schedules again at once
        return limit_ps if self._tier is None else self._now_ps

    def session_ended(self, session: int) -> None:
        """Drop what is kept for later turns."""
        self._factory.forget(session)
        if self._adapted:
            self._scheduler.session_ended(session)
        if self._tier is not None:
            self._tier.session_ended(session)

    def cached_blocks(self) -> int:
        """Return how many blocks hold reusable content and are referenced by nobody."""
        return sum(b.ref_cnt == 0 and b.block_hash is not None for b in self._pool.blocks)

    def idle(self) -> bool:
        """Whether nothing waits, nothing runs and nothing is copied."""
        if self._tier is not None:
            return not self._scheduler.has_requests()
        return not self._scheduler.get_num_unfinished_requests()

    def check_integrity(self) -> None:
        """Assert that every reference belongs to a running turn or a pin, and that the free list
        holds the rest.
        """
        manager = self._scheduler.kv_cache_manager
        held = holders(self._scheduler.pins.pins()) if self._adapted else Counter[int]()
        loading = self._scheduler.kv_holding_waiting
        for request in (*self._scheduler.running, *loading):
            held.update(b.block_id for b in held_blocks(manager, request.request_id))
        free = [block.block_id for block in self._pool.free_block_queue.get_all_free_blocks()]
        assert len(free) == len(set(free)) == self.view.free_blocks, "free list"
        for block in self._pool.blocks:
            if not block.is_null:
                assert block.ref_cnt == held[block.block_id], f"references of {block!r}"
        assert len(free) + len(held) == self.config.num_blocks, "blocks lost"

    # ---- one of several replicas

    def joins(self, other: ReplicaCore) -> None:
        """Let both cores take tokens and hashes from one source."""
        assert isinstance(other, VllmCore)
        self._factory.shares(other._factory)  # noqa: SLF001 - of its own class

    def quiet_until_ps(self, now_ps: int) -> int:
        """Return ``now_ps``: vLLM does not say beforehand whether a step will tell something."""
        return now_ps

    def cached_tokens(self, request: Request) -> int:
        """Return the leading tokens whose hashes are known and cached here; see
        ``ReplicaCore.cached_tokens``.
        """
        size = self.config.block_size
        from vllm.v1.core.kv_cache_utils import make_block_hash_with_group_id

        found = self._pool.cached_block_hash_to_block.get_one_block
        hit = 0
        for block_hash in self._factory.known_hashes(request)[: request.here_tokens // size]:
            if found(make_block_hash_with_group_id(block_hash, 0)) is None:
                break
            hit += 1
        return hit * size

    def session_moved(self, session: int) -> None:
        """Drop what is pinned; its tokens are still needed elsewhere."""
        if self._adapted:
            self._scheduler.session_ended(session)

    def lost_turns(self) -> list[LostTurn]:
        """See ``ReplicaCore.lost_turns``."""
        running = {request.request_id for request in self._scheduler.running}
        manager = self._scheduler.kv_cache_manager
        return [
            LostTurn(
                turn.request,
                turn.cached,
                request_id in running,
                turn.native.num_computed_tokens,
                len(held_blocks(manager, request_id)) if request_id in running else 0,
                turn.prefilled,
                turn.recomputed,
            )
            for request_id, turn in self._turns.records.items()
        ]

    def lost_blocks(self) -> int:
        """Return how many blocks are referenced or cached."""
        empty = [
            block
            for block in self._pool.blocks
            if block.ref_cnt == 0 and block.block_hash is None and not block.is_null
        ]
        return self.config.num_blocks - len(empty)

    # ---- a step

    def _run_empty(self, step: Any, limit_ps: int) -> bool:
        """A step without tokens: only copies may go on. False if nothing can before ``limit_ps``."""
        assert self._tier is not None
        output, progress = self._tier.after_forward(step)
        self._num_finished = 0
        self._scheduler.update_from_output(
            step,
            self._output_class(
                req_ids=[], req_id_to_index={}, sampled_token_ids=[], kv_connector_output=output
            ),
        )
        if not progress and not self._turns.preempted:
            done_ps = self._tier.next_done_ps()
            if done_ps is None or done_ps >= limit_ps:
                return self.idle()
            self._account(done_ps)
            self._now_ps = max(self._now_ps, done_ps)
        return self._now_ps < limit_ps

    def _run(self, step: Any, start_ps: int) -> None:
        scheduled: dict[str, int] = step.num_scheduled_tokens
        if self.trace is not None:
            self._report(scheduled, start_ps)
        sampled: list[list[int]] = []
        first_tokens: list[Request] = []
        tokens = pairs = context = 0
        for request_id, num_new in scheduled.items():
            turn = self._turns[request_id]
            request = turn.native
            end = request.num_computed_tokens
            start = end - num_new
            tokens += num_new
            context += end
            pairs += num_new * start + num_new * (num_new + 1) // 2
            if start < turn.prefill_end:
                turn.prefilled += num_new
            if end < request.num_tokens:
                sampled.append([])
                continue
            generated = request.num_output_tokens
            if not generated:
                first_tokens.append(turn.request)
            sampled.append([turn.output[generated]])
        duration_ps = self.cost.step_ps(tokens, pairs, context, len(scheduled))
        self._account(self._now_ps + duration_ps)
        self._now_ps += duration_ps
        self.stats.steps += 1
        self.stats.busy_ps += duration_ps
        for first in first_tokens:
            self.listener.on_first_token(first, self._now_ps)
        self._num_finished = 0
        request_ids = list(scheduled)
        index = {request_id: i for i, request_id in enumerate(request_ids)}
        copied = None if self._tier is None else self._tier.after_forward(step)[0]
        output = self._output_class(
            req_ids=request_ids,
            req_id_to_index=index,
            sampled_token_ids=sampled,
            kv_connector_output=copied,
        )
        self._scheduler.update_from_output(step, output)

    def _admit_stock(self, views: TurnBook[Any], scheduled: dict[str, int]) -> None:
        """What the adapter reports from inside ``schedule()``, read off its result."""
        views.scheduled(scheduled, to_s(self._now_ps))
        for key, num_new in scheduled.items():
            turn = self._turns[key]
            if not turn.admitted:
                self.admitted(turn.native, turn.native.num_computed_tokens - num_new)

    def _report(self, scheduled: dict[str, int], start_ps: int) -> None:
        assert self.trace is not None
        turns: list[tuple[TurnRecord, int]] = [(self._turns[i], n) for i, n in scheduled.items()]
        self._turns.report(self.trace, start_ps, turns, self.view.free_blocks)

    def _account(self, until_ps: int) -> None:
        """Integrate referenced blocks up to a time."""
        held = self.config.num_blocks - self._pool.get_num_free_blocks()
        self._turns.account(held, until_ps)

    # ---- what the scheduler tells (its ``PolicyHost``)

    def now_ps(self) -> int:
        return self._now_ps

    def describe(self, request: Any) -> TurnInfo:
        return TurnInfo.of(self._turns[request.request_id].request)

    def admitted(self, request: Any, cached_tokens: int) -> None:
        self._turns.admitted(request.request_id, self._now_ps, cached_tokens, request.num_tokens)

    # ---- what is watched on vLLM's objects

    def _observe(self) -> None:
        """Watch preemptions, ends and evictions; nothing is changed."""
        scheduler, pool = self._scheduler, self._pool
        preempt, free, evict = (
            scheduler._preempt_request,  # noqa: SLF001
            scheduler._free_blocks,  # noqa: SLF001
            pool._maybe_evict_cached_block,  # noqa: SLF001
        )

        def preempt_watched(request: Any, *args: Any, **kwargs: Any) -> None:
            self._preempting(request)
            preempt(request, *args, **kwargs)

        def free_watched(request: Any) -> None:
            free(request)
            self._finished(request)

        def evict_watched(block: Any) -> bool:
            evicted: bool = evict(block)
            self.stats.evicted_blocks += evicted
            return evicted

        scheduler._preempt_request = preempt_watched  # noqa: SLF001
        scheduler._free_blocks = free_watched  # noqa: SLF001
        pool._maybe_evict_cached_block = evict_watched  # noqa: SLF001

    def _preempting(self, request: Any) -> None:
        key = request.request_id
        blocks = len(held_blocks(self._scheduler.kv_cache_manager, key))
        self._turns.lose(key, self._now_ps, request.num_computed_tokens, blocks)

    def _finished(self, request: Any) -> None:
        self._num_finished += 1
        if self._views is not None:
            self._views.pop(request.request_id)
        self._turns.finish(request.request_id, self._now_ps)
