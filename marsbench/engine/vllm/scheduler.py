"""vLLM's Scheduler with the order, quantum, victim and retention of any marsbench policy.

``schedule()`` of the parent runs unchanged. The policy acts through what the parent asks on its
way: the order of its two queues, the hook that clips a prefill chunk, the allocation of KV blocks,
and the (priority, arrival_time) key by which it picks a victim. With the null policies none of
these differ from the parent.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import FCFSRequestQueue
from vllm.v1.core.sched.request_queue import SchedulingPolicy as VllmPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from marsbench.core import PS_PER_S, to_s
from marsbench.engine.retention import PinListener, RetentionBook, picoseconds
from marsbench.engine.turns import EngineTurn, TurnInfo
from marsbench.engine.vllm.retention import Blocks, only_pinned, releaser, retain
from marsbench.engine.vllm.views import VllmView, held_blocks, turn_book
from marsbench.errors import PolicyError
from marsbench.events import Unpin
from marsbench.scheduler.base import (
    EngineOrder,
    EngineView,
    Key,
    NoRetention,
    RetentionPolicy,
    SchedulingPolicy,
    TurnView,
)


class PolicyHost(Protocol):
    """Who runs the scheduler: knows the time and what a request belongs to."""

    def now_ps(self) -> int: ...
    def describe(self, request: Any) -> TurnInfo: ...
    def admitted(self, request: Any, cached_tokens: int) -> None:
        """Hear that a waiting request got its blocks."""
        ...


class WaitingQueue(FCFSRequestQueue):
    """vLLM's queue, but while ``closed`` the parent's ``schedule()`` finds nothing in it."""

    closed = False

    def __bool__(self) -> bool:
        return not self.closed and len(self) > 0


class PolicyScheduler(Scheduler):
    """Scheduler that asks a scheduling and a retention policy."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stock_allocate = self.kv_cache_manager.allocate_slots
        self._hybrid_split: bool = self.need_mamba_block_aligned_split
        self._turns = turn_book(self.kv_cache_manager)
        self.view = VllmView(self, self._turns, self._pinned_blocks)
        host = MonotonicHost()
        self.use(EngineOrder(), NoRetention(), host, host)

    def use(
        self,
        scheduling: SchedulingPolicy,
        retention: RetentionPolicy,
        host: PolicyHost,
        listener: PinListener,
    ) -> None:
        """Install policies, and whom to tell about pins; only before the first request."""
        assert not self.requests
        self.host = host
        self.order = scheduling
        self.stock_order = type(scheduling) is EngineOrder
        pool = self.kv_cache_manager.block_pool
        self.pins: RetentionBook[Blocks] = RetentionBook(
            retention, self.view, listener, pool.num_gpu_blocks - 1, releaser(pool)
        )
        self._resort_ps = picoseconds(scheduling.resort_s, "resort_s")
        self._now_ps = 0
        self._hooked = False
        self._resort = True
        self._sorted_ps = -1
        self._quanta: dict[str, int | None] = {}
        self._step_tokens = 0
        self._num_requests = 0
        self._refused = 0
        """Waiting turns passed over in this step because they do not fit."""
        self._refused_free = -1
        """No waiting turn fits into so many free blocks; -1: not known."""
        if not self.stock_order:
            # The priority branch of the parent is the one that can preempt any running request;
            # its waiting queue is replaced by a list that is sorted here.
            self.policy = VllmPolicy.PRIORITY
            self.waiting = WaitingQueue()
            self.kv_holding_waiting = FCFSRequestQueue()

    def _pinned_blocks(self) -> int:
        return only_pinned(self.pins.pins(), self.kv_cache_manager.block_pool)

    def turn(self, request: Request) -> EngineTurn:
        """Return the request as policies see it, in its present state."""
        return self._turns[request.request_id]

    # ---- a request's life

    def add_request(self, request: Request) -> None:
        known = request.request_id in self.requests
        super().add_request(request)
        if known:
            return
        info = self.host.describe(request)
        self._turns.add(request.request_id, request, info, request.num_prompt_tokens)
        self.pins.returned(info.session)
        self._changed()

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super()._preempt_request(request, *args, **kwargs)
        self._changed()

    def _free_blocks(self, request: Request) -> None:
        turn, info = self._turns.pop(request.request_id)
        self.view.hits.forget(turn)
        self._changed()
        if self.pins.enabled and request.status != RequestStatus.FINISHED_ABORTED:
            retain(
                self.pins,
                self.kv_cache_manager.block_pool,
                turn,
                tool_names=info.tool_names,
                is_last=info.is_last,
                blocks=held_blocks(self.kv_cache_manager, request.request_id),
                now_ps=self.host.now_ps(),
            )
        super()._free_blocks(request)

    def session_ended(self, session: int) -> None:
        """Drop a session's pin, since no further turn of it will come."""
        if self.pins.drop(session, self.host.now_ps(), Unpin.END):
            self._resort = True

    def _changed(self) -> None:
        """A turn was submitted, preempted or finished: ask keys and review again."""
        self._resort = True
        self.pins.dirty = True

    # ---- a step

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        self._now_ps = self.host.now_ps()
        self._step_tokens = 0
        self._quanta.clear()
        if self.pins.review(self._now_ps):
            self._resort = True
        self._hook_running()
        if self.stock_order:
            return super().schedule(*args, **kwargs)
        self._sort()
        self.waiting.closed = self.view.free_blocks <= self._refused_free
        self._refused = 0
        step = super().schedule(*args, **kwargs)
        if self.waiting.closed:
            self.waiting.closed = False
        else:
            self._refused_free = self.view.free_blocks if self._all_refused() else -1
        return step

    def _all_refused(self) -> bool:
        """Whether the waiting turns need asking again only after a change, or with more memory.

        So it is where each was passed over for want of memory, needs its whole prompt's blocks
        whatever the step's token budget, and no prefill goes on that could become another's hit.
        """
        return (
            0 < self._refused == len(self.waiting)
            and not self._quanta
            and self.scheduler_reserve_full_isl
            and self.connector is None
        )

    def _hook_running(self) -> None:
        """Spare the parent calls of ours that would change nothing: one or two a running turn.

        Until waiting turns are looked at, a policy has a say only in prefill chunks and where
        blocks are short.
        """
        running, waiting = self.get_request_counts()
        self._num_requests = running + waiting
        self._hook(allocate=self._may_run_short(running), split=bool(self._inflight_prefills))

    def _may_run_short(self, running: int) -> bool:
        """Whether the running turns could want more blocks in this step than are free."""
        if len(self.kv_cache_config.kv_cache_groups) > 1 or not self.scheduler_reserve_full_isl:
            return True
        size = self.block_size
        decoded = 1 + self.num_spec_tokens + self.num_lookahead_tokens
        most = running * (decoded // size + 2)
        if self._inflight_prefills:
            most += self.max_num_scheduled_tokens // size
        return bool(self.view.free_blocks < most)

    def _hook(self, *, allocate: bool, split: bool) -> None:
        """Have the parent call ours from here on, or its own."""
        self._hooked = allocate and split
        manager = self.kv_cache_manager
        manager.allocate_slots = self._allocate_slots if allocate else self._stock_allocate
        ours = split and not self.stock_order
        self.need_mamba_block_aligned_split: bool = ours or self._hybrid_split

    def _sort(self) -> None:
        if not self._resort and self._now_ps < self._sorted_ps + self._resort_ps:
            return
        self._resort = False
        self._refused_free = -1
        self._sorted_ps = self._now_ps
        if len(self.waiting) > 1:
            ordered = self._ordered(self.waiting, self.order.waiting_key)
            self.waiting.clear()
            self.waiting.extend(ordered)
        if self.order.reorders_running and len(self.running) > 1:
            self.running[:] = self._ordered(self.running, self.order.running_key)

    def _ordered(
        self, requests: Iterable[Request], key: Callable[[TurnView, EngineView, float], Key]
    ) -> list[Request]:
        now_s, view, turns = to_s(self._now_ps), self.view, self._turns
        keyed = []
        for request in requests:
            turn = turns[request.request_id]
            keyed.append((key(turn, view, now_s), turn.sequence, request))
        keyed.sort()  # no two sequences are equal
        return [request for _, _, request in keyed]

    def _mamba_block_aligned_split(
        self, request: Request, num_new_tokens: int, local: int = 0, external: int = 0
    ) -> int:
        """Clip a prefill chunk to the policy's quantum (and to free blocks, if it may shrink)."""
        if self._hybrid_split:
            num_new_tokens = super()._mamba_block_aligned_split(
                request, num_new_tokens, local, external
            )
            if self.stock_order:
                return num_new_tokens
        if request.status is RequestStatus.RUNNING and not request.is_prefill_chunk:
            return num_new_tokens
        start = request.num_computed_tokens + local + external
        if start >= max(request.num_prompt_tokens, request.num_tokens - 1):
            return num_new_tokens
        turn = self.turn(request)
        quantum = self.order.prefill_quantum(turn, self.view, to_s(self._now_ps))
        self._quanta[request.request_id] = quantum
        if quantum is not None:
            if quantum < 1:
                raise PolicyError(f"prefill_quantum must be at least 1 token, got {quantum}")
            num_new_tokens = min(num_new_tokens, quantum)
        if request.status == RequestStatus.RUNNING and self.order.shrink_chunks():
            num_new_tokens = self._shrink(turn, num_new_tokens)
        return num_new_tokens

    def _shrink(self, turn: EngineTurn, num_new_tokens: int) -> int:
        room = turn.num_blocks + self.view.free_blocks
        fixed = turn.computed_tokens + self.num_lookahead_tokens
        chunk = num_new_tokens
        while math.ceil((fixed + chunk) / self.block_size) > room:
            if chunk <= self.block_size:
                return num_new_tokens
            chunk = max(chunk // 2, self.block_size)
        return chunk

    def _allocate_slots(self, request: Request, num_new_tokens: int, **kwargs: Any) -> Any:
        """Allocate; while that fails give up pins; if it still fails name the victim."""
        admitting = request.status is not RequestStatus.RUNNING
        blocks = self._stock_allocate(request, num_new_tokens, **kwargs)
        while blocks is None and self._reclaim(request, admitting=admitting):
            blocks = self._stock_allocate(request, num_new_tokens, **kwargs)
        if blocks is None:
            if not (admitting or self.stock_order):
                self._name_victim()
            return None
        self._step_tokens += num_new_tokens
        if admitting:
            turn = self.turn(request)
            self.pins.drop(turn.session, self._now_ps, Unpin.RETURN)
            if not kwargs.get("delay_cache_blocks"):  # else: blocks to load into, no admission yet
                cached = request.num_computed_tokens + kwargs.get("num_new_computed_tokens", 0)
                self.host.admitted(request, cached)
        return blocks

    def _reclaim(self, request: Request, *, admitting: bool) -> bool:
        """Give up one pin. A waiting turn's own pin is its prefix hit: last, if nothing runs."""
        own = self.turn(request) if admitting else None
        reclaimed = self.pins.reclaim(self._now_ps, own) or (
            not self.running and self.pins.reclaim(self._now_ps, None)
        )
        self._resort = self._resort or reclaimed
        return reclaimed

    def _name_victim(self) -> None:
        """Give the parent's victim rule, max (priority, arrival_time), the policy's choice."""
        now_s = to_s(self._now_ps)
        keys = [self.order.victim_key(self.turn(r), self.view, now_s) for r in self.running]
        worst = max(range(len(keys)), key=lambda i: (keys[i], i))
        for i, request in enumerate(self.running):
            request.priority = int(i == worst)

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        """False lets the parent pass over a waiting request: one that does not fit, if allowed."""
        if not self._hooked:
            self._hook(allocate=True, split=True)
        ready = bool(super()._handle_blocked_waiting_request(request))
        if not ready or self.stock_order or not self.order.skip_blocked():
            return ready
        while not self._admissible(request):
            if not self._reclaim(request, admitting=True):
                self._refused += 1
                return False
        return True

    def _admissible(self, request: Request) -> bool:
        """Whether ``allocate_slots`` would succeed for a waiting request."""
        if request.num_computed_tokens:
            return True
        turn = self.turn(request)
        cached = self.view.cached_tokens(turn)
        wanted = request.num_tokens
        if not self.scheduler_reserve_full_isl:
            wanted = cached + self._first_chunk(request, cached)
        hit_blocks = cached // self.block_size
        spare = self.view.free_blocks - (math.ceil(wanted / self.block_size) - hit_blocks)
        if self.running:
            spare -= self.kv_cache_manager.watermark_blocks
        # Of the hit only blocks that nobody references have to come out of the free ones.
        if spare < 0 or spare >= hit_blocks:
            return bool(spare >= 0)
        return self.view.hits.evictable_at_most(turn, spare)

    def _first_chunk(self, request: Request, cached: int) -> int:
        threshold = self.scheduler_config.long_prefill_token_threshold
        if threshold > 0 and self.adaptive_long_prefill_threshold:
            budget = self.scheduler_config.max_num_batched_tokens
            threshold = max(threshold, budget // self._num_requests)
        quantum = self.order.prefill_quantum(self.turn(request), self.view, to_s(self._now_ps))
        limits = [request.num_tokens - cached, self.max_num_scheduled_tokens - self._step_tokens]
        if threshold > 0 and self._num_requests > 1:
            limits.append(threshold)
        if quantum is not None:
            limits.append(quantum)
        return int(min(limits))

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        now_s, turns = to_s(self._now_ps), self._turns
        scheduled = scheduler_output.num_scheduled_tokens
        turns.scheduled(scheduled, now_s)
        for request_id, quantum in self._quanta.items():
            if num_tokens := scheduled.get(request_id, 0):
                self.order.on_scheduled(turns[request_id], num_tokens, quantum, now_s)
        super()._update_after_schedule(scheduler_output)


class AsyncPolicyScheduler(PolicyScheduler, AsyncScheduler):
    """The same on vLLM's asynchronous scheduler (its default in a live server)."""


class MonotonicHost:
    """A host of its own: real time, every request a session."""

    def now_ps(self) -> int:
        return int(time.monotonic() * PS_PER_S)

    def describe(self, request: Any) -> TurnInfo:
        """Return a session of one turn for a request that names no session."""
        return TurnInfo(hash(request.request_id), 0, request.arrival_time, request.arrival_time)

    def admitted(self, request: Any, cached_tokens: int) -> None:
        """Do nothing: nobody listens."""

    def on_pin(self, session: int, turn_index: int, at_ps: int, blocks: int, until_ps: int) -> None:
        """Do nothing: nobody listens."""

    def on_unpin(
        self, session: int, turn_index: int, at_ps: int, blocks: int, reason: int, held_ps: int
    ) -> None:
        """Do nothing: nobody listens."""
