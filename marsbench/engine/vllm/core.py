"""Engine ``vllm-core``: the installed vLLM's scheduler, with steps that take modelled time."""

from __future__ import annotations

from collections import Counter
from typing import Any

from marsbench.core import to_s
from marsbench.engine.base import CoreListener, CoreStats, EngineConfig, Request, StepTrace
from marsbench.engine.cost import StepCost
from marsbench.engine.vllm.runtime import build_scheduler, quietly, require_vllm
from marsbench.engine.vllm.views import EngineTurn, TurnInfo, VllmView, held_blocks
from marsbench.scheduler.base import EngineOrder, EngineView, NoRetention
from marsbench.system import Policies


class _Turn:
    """A turn inside the engine: the driver's request, vLLM's, and what was counted."""

    __slots__ = (
        "admitted",
        "cached",
        "lost",
        "output",
        "prefill_end",
        "prefilled",
        "recomputed",
        "request",
        "view",
        "vllm",
    )

    view: EngineTurn
    """Only where no adapter makes one."""

    def __init__(self, request: Request, vllm: Any, output: list[int]) -> None:
        self.request = request
        self.vllm = vllm
        self.output = output
        self.admitted = False
        self.cached = -1
        """Prefix hit when first admitted, tokens; -1 before."""
        self.lost = 0
        """Computed tokens at the last preemption."""
        self.prefill_end = 0
        self.prefilled = 0
        self.recomputed = 0


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

            from marsbench.engine.vllm.requests import RequestFactory
            from marsbench.engine.vllm.scheduler import PolicyScheduler

            self._scheduler: Any = build_scheduler(
                config, PolicyScheduler if self._adapted else Scheduler
            )
        self.view: EngineView
        if self._adapted:
            self._scheduler.use(policies.scheduling, policies.retention, self)
            self.view = self._scheduler.view
        else:
            self.view = VllmView(self._scheduler, lambda r: self._turns[r.request_id].view)
        self.stats = CoreStats()
        self.trace: StepTrace | None = None
        self.config = config
        self.cost = cost
        self.listener = listener
        self._output_class: Any = ModelRunnerOutput
        self._factory = RequestFactory(config.block_size, hashing=config.enable_prefix_caching)
        self._pool = self._scheduler.kv_cache_manager.block_pool
        self._turns: dict[str, _Turn] = {}
        self._now_ps = 0
        self._accounted_ps = 0
        self._preempted: list[tuple[int, int]] = []
        self._num_finished = 0
        self._observe()

    # ---- EngineCore

    def fits(self, prompt_tokens: int, output_tokens: int) -> bool:
        """The last output token is never computed, so it needs no slot."""
        blocks = -(-(prompt_tokens + output_tokens - 1) // self.config.block_size)
        fits_model = prompt_tokens + output_tokens <= self.config.max_model_len
        return fits_model and blocks <= self.config.num_blocks

    def submit(self, request: Request) -> None:
        """Make vLLM's request and put it into vLLM's waiting queue."""
        self._account(max(self._now_ps, request.ready_ps))
        vllm_request, output = self._factory.make(request)
        turn = _Turn(request, vllm_request, output)
        self._turns[vllm_request.request_id] = turn
        if not self._adapted:
            manager = self._scheduler.kv_cache_manager
            info = self.describe(vllm_request)
            turn.view = EngineTurn(vllm_request, info, int(vllm_request.request_id), manager)
        self._scheduler.add_request(vllm_request)

    def advance(self, now_ps: int, limit_ps: int) -> int:
        """Schedule, wait the step's modelled duration, hand back its tokens; repeat."""
        if now_ps >= limit_ps:
            return now_ps
        self._account(now_ps)
        self._now_ps = now_ps
        while not self.idle():
            self._preempted.clear()
            step = self._scheduler.schedule()
            if step.num_scheduled_tokens:
                self._run(step)
                if self._num_finished or self._now_ps >= limit_ps:
                    return self._now_ps
            elif not self._preempted:
                break
            # else: vLLM gave the step up to preempt; it schedules again at once
        return limit_ps

    def session_ended(self, session: int) -> None:
        """Drop what is kept for later turns."""
        self._factory.forget(session)
        if self._adapted:
            self._scheduler.session_ended(session)

    def cached_blocks(self) -> int:
        """Unreferenced blocks with reusable content."""
        return sum(b.ref_cnt == 0 and b.block_hash is not None for b in self._pool.blocks)

    def idle(self) -> bool:
        """Nothing waits, nothing runs."""
        return not self._scheduler.get_num_unfinished_requests()

    def check_integrity(self) -> None:
        """Every reference belongs to a running turn or a pin; the free list holds the rest."""
        manager = self._scheduler.kv_cache_manager
        held = self._scheduler.pins.holders() if self._adapted else Counter[int]()
        for request in self._scheduler.running:
            held.update(b.block_id for b in held_blocks(manager, request.request_id))
        free = [block.block_id for block in self._pool.free_block_queue.get_all_free_blocks()]
        assert len(free) == len(set(free)) == self.view.free_blocks, "free list"
        for block in self._pool.blocks:
            if not block.is_null:
                assert block.ref_cnt == held[block.block_id], f"references of {block!r}"
        assert len(free) + len(held) == self.config.num_blocks, "blocks lost"

    # ---- a step

    def _run(self, step: Any) -> None:
        start_ps = self._now_ps
        scheduled: dict[str, int] = step.num_scheduled_tokens
        if not self._adapted:
            self._admit_stock(scheduled)
        if self.trace is not None:
            self._report(scheduled)
        sampled: list[list[int]] = []
        first_tokens: list[Request] = []
        tokens = pairs = context = 0
        for request_id, num_new in scheduled.items():
            turn = self._turns[request_id]
            request = turn.vllm
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
        self._account(start_ps + duration_ps)
        self._now_ps = start_ps + duration_ps
        self.stats.steps += 1
        self.stats.busy_ps += duration_ps
        for first in first_tokens:
            self.listener.on_first_token(first, self._now_ps)
        self._num_finished = 0
        request_ids = list(scheduled)
        index = {request_id: i for i, request_id in enumerate(request_ids)}
        output = self._output_class(
            req_ids=request_ids, req_id_to_index=index, sampled_token_ids=sampled
        )
        self._scheduler.update_from_output(step, output)

    def _admit_stock(self, scheduled: dict[str, int]) -> None:
        """What the adapter reports from inside ``schedule()``, read off its result."""
        now_s = to_s(self._now_ps)
        for request_id, num_new in scheduled.items():
            turn = self._turns[request_id]
            turn.view.last_scheduled_s = now_s
            if not turn.admitted:
                self.admitted(turn.vllm, turn.vllm.num_computed_tokens - num_new)

    def _report(self, scheduled: dict[str, int]) -> None:
        assert self.trace is not None
        turns = [(self._turns[i].request, n) for i, n in scheduled.items()]
        self.trace.step(
            self.stats.steps,
            self._now_ps,
            [(request.session, request.turn_index, n) for request, n in turns],
            list(self._preempted),
            self.view.free_blocks,
        )

    def _account(self, until_ps: int) -> None:
        """Integrate referenced blocks up to a time."""
        held = self.config.num_blocks - self._pool.get_num_free_blocks()
        if until_ps > self._accounted_ps:
            self.stats.referenced_block_ps += held * (until_ps - self._accounted_ps)
            self._accounted_ps = until_ps

    # ---- what the scheduler tells (``Host`` of the adapter)

    def now_ps(self) -> int:
        return self._now_ps

    def describe(self, request: Any) -> TurnInfo:
        turn = self._turns[request.request_id].request
        return TurnInfo(
            turn.session,
            turn.turn_index,
            to_s(turn.session_arrival_ps),
            to_s(turn.ready_ps),
            turn.tool_names,
            turn.is_last,
        )

    def admitted(self, request: Any, cached_tokens: int) -> None:
        turn = self._turns[request.request_id]
        turn.admitted = True
        turn.prefill_end = request.num_tokens
        uncached = request.num_tokens - cached_tokens
        if turn.cached < 0:
            turn.cached = cached_tokens
            size = self.config.block_size
            had = (turn.request.reused_tokens - 1) // size * size if turn.request.turn_index else 0
            tell = self.listener.on_scheduled_first
        else:
            had = turn.lost
            tell = self.listener.on_resumed
        turn.recomputed += max(0, had - cached_tokens)
        tell(turn.request, self._now_ps, cached_tokens, uncached)

    def on_pin(self, session: int, turn_index: int, at_ps: int, blocks: int, until_ps: int) -> None:
        self.listener.on_pin(session, turn_index, at_ps, blocks, until_ps)

    def on_unpin(
        self, session: int, turn_index: int, at_ps: int, blocks: int, reason: int, held_ps: int
    ) -> None:
        self.listener.on_unpin(session, turn_index, at_ps, blocks, reason, held_ps)

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
        turn = self._turns[request.request_id]
        turn.admitted = False
        self.stats.preemptions += 1
        self._preempted.append((turn.request.session, turn.request.turn_index))
        blocks = len(held_blocks(self._scheduler.kv_cache_manager, request.request_id))
        turn.lost = request.num_computed_tokens
        self.listener.on_preempted(turn.request, self._now_ps, turn.lost, blocks)

    def _finished(self, request: Any) -> None:
        turn = self._turns.pop(request.request_id)
        self._num_finished += 1
        self.listener.on_finished(
            turn.request,
            self._now_ps,
            prefilled=turn.prefilled,
            recomputed=turn.recomputed,
            cached=turn.cached,
        )
