"""SGLang's scheduler with the order, quantum, victim and retention of any marsbench policy.

Nothing of SGLang is replaced: each hook lets its rule run and acts before or after it, on one
scheduler object. The queue is sorted after SGLang has ordered it; a subclass of its prefill adder
clips chunks, gives up pins for a turn that does not fit and lets later ones pass; eviction takes
pins back when the tree has nothing else; retraction asks for the victim. With the null policies
none of these differ from SGLang. All running turns decode in every decode step, so the order of
running turns means nothing here, and neither do halved chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from sglang.srt.managers import schedule_policy
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.schedule_policy import AddReqResult, PrefillAdder

from marsbench.core import to_s
from marsbench.engine.retention import PinListener, RetentionBook, picoseconds
from marsbench.engine.sglang.retention import Path, only_pinned, releaser, retain, yielding
from marsbench.engine.sglang.views import SglangView, turn_book
from marsbench.engine.turns import EngineTurn, TurnInfo
from marsbench.errors import EngineError, PolicyError
from marsbench.events import Unpin
from marsbench.scheduler.base import EngineOrder, NoRetention
from marsbench.system import Policies


class HookHost(Protocol):
    """Who runs the scheduler: knows the time and what a request belongs to."""

    def now_ps(self) -> int: ...
    def describe(self, request: Any) -> TurnInfo: ...


class Hooks:
    """The policies of one scheduler, and the turns in it."""

    def __init__(
        self, scheduler: Any, policies: Policies, host: HookHost, listener: PinListener
    ) -> None:
        """``listener`` is told about pins."""
        self.scheduler = scheduler
        self.host = host
        self.order = policies.scheduling
        self.stock_order = type(policies.scheduling) is EngineOrder
        self.stock_retention = type(policies.retention) is NoRetention
        self.turns = turn_book(int(scheduler.page_size))
        """Turns in the engine, by request id."""
        self.running: dict[str, Any] = {}
        """Requests that hold KV, in order of admission."""
        self.view = SglangView(scheduler, self.turns, self.running.values, self._pinned_blocks)
        self._retention = policies.retention
        self.book: RetentionBook[Path] = RetentionBook(
            policies.retention, self.view, listener, self.view.num_blocks, releaser(scheduler)
        )
        self._resort_ps = picoseconds(policies.scheduling.resort_s, "resort_s")
        self._sorted_ps = -1
        self._resort = True
        self._pinned = -1
        """Blocks only pins hold; -1: not known any more."""
        self._undo: list[Callable[[], None]] = []
        self.now_ps = 0
        self.ordered = 0
        """Times SGLang asked for its queue to be ordered, and ..."""
        self.adders = 0
        """... for a prefill adder: a release that asks neither is none that hooks work on."""
        self.refused = 0
        """Waiting turns passed over in this pass because they do not fit."""

    def install(self, *, always: bool = False) -> None:
        """Put the hooks into the scheduler, unless ``always`` only those a policy needs.

        EngineError, in one line, if this SGLang has none of what one of them goes around.
        """
        scheduler = self.scheduler
        around: list[tuple[Any, str, Callable[..., Any]]] = []
        if always or not (self.stock_order and self.stock_retention):
            around += [
                (scheduler, "get_next_batch_to_run", self._pass),
                (scheduler, "get_prefill_adder_class", lambda _: self._adder),
            ]
        if always or not self.stock_order:
            around.append((scheduler.policy, "calc_priority", self._ordered))
            _choose_victims()
        if always or not self.stock_retention:
            around.append((scheduler.tree_cache, "evict_for_alloc", self._evicted))
        self._undo = [wrap(*place) for place in around]

    def uninstall(self) -> None:
        """Take them out again, the last one first."""
        for undo in reversed(self._undo):
            undo()
        self._undo = []

    def drop_pins(self, reason: Unpin) -> None:
        """Give up all pins, for example before the cache is emptied."""
        for pin in self.book.pins():
            self.book.drop(pin.session, self.host.now_ps(), reason)
        self._gave_up()

    # ---- a turn's life, told by whoever runs the scheduler

    def submitted(self, request: Any) -> EngineTurn:
        """Take in a request that is in the waiting queue now."""
        info = self.host.describe(request)
        turn = self.turns.add(request.rid, request, info, len(request.origin_input_ids))
        self.book.returned(info.session)
        self._changed()
        return turn

    def admitted(self, request: Any) -> None:
        """Note that a request is in a prefill batch, for the first time or again."""
        self.running[request.rid] = request
        self._pinned = -1
        self.book.drop(self.turns[request.rid].session, self.host.now_ps(), Unpin.RETURN)

    def retracted(self, request: Any) -> None:
        """Note that a running request lost its memory."""
        del self.running[request.rid]
        self.turns[request.rid].computed_tokens = 0
        self._pinned = -1
        self._changed()

    def finished(self, request: Any, *, aborted: bool = False) -> None:
        """Note that a request is over and its KV is in the tree."""
        turn, info = self.turns.pop(request.rid)
        self.running.pop(request.rid, None)
        self._pinned = -1
        self._changed()
        if not (self.stock_retention or aborted):
            retain(
                self.book,
                self.scheduler,
                turn,
                request,
                tool_names=info.tool_names,
                is_last=info.is_last,
                now_ps=self.host.now_ps(),
            )
            self._pinned = -1

    def session_ended(self, session: int) -> None:
        """Drop a session's pin, since no further turn will come."""
        if self.book.drop(session, self.host.now_ps(), Unpin.END):
            self._gave_up()

    def _changed(self) -> None:
        """A turn was submitted, retracted or finished: ask keys and review again."""
        self._resort = True
        self.book.dirty = True
        if not self.stock_order and self.order.skip_blocked():
            self.scheduler.running_batch.batch_is_full = False

    def _gave_up(self) -> bool:
        """A pin is gone: who waits may be ordered differently, and fit."""
        self._resort = True
        self._pinned = -1
        return True

    def _pinned_blocks(self) -> int:
        if self._pinned < 0:
            self._pinned = only_pinned(self.book.pins(), self.scheduler, self.running.values())
        return self._pinned

    # ---- a step

    def _pass(self, schedule: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around ``get_next_batch_to_run``: review pins before it."""
        self.now_ps = self.host.now_ps()
        self.refused = 0
        if self.book.review(self.now_ps):
            self._gave_up()
        ACTIVE.append(self)
        try:
            plan = schedule(*args, **kwargs)
        finally:
            ACTIVE.remove(self)
        running = plan.running_batch
        if self.refused and self.refused == len(self.scheduler.waiting_queue) and running.reqs:
            running.batch_is_full = True  # until somebody leaves or comes, or a pin is given up
        return plan

    def _ordered(self, order: Callable[..., None], queue: list[Any], *rest: Any, **kw: Any) -> None:
        """Around ``calc_priority``: SGLang looks up prefixes and orders, then the policy does."""
        order(queue, *rest, **kw)
        self.ordered += 1
        due = self._resort or self.now_ps >= self._sorted_ps + self._resort_ps
        if self.stock_order or not due:
            return
        self._resort = False
        self._sorted_ps = self.now_ps
        if len(queue) < 2:
            return
        now_s, view = to_s(self.now_ps), self.view
        view.matched = bool(self.scheduler.policy.waiting_queue_prefix_matched(queue))
        keyed = []
        for request in queue:
            turn = self.turns[request.rid]
            keyed.append((self.order.waiting_key(turn, view, now_s), turn.sequence, request))
        view.matched = False
        keyed.sort(key=lambda entry: entry[:2])
        queue[:] = [request for _, _, request in keyed]

    def _adder(self, *args: Any, **kwargs: Any) -> PolicyAdder:
        self.adders += 1
        return PolicyAdder(self, *args, **kwargs)

    def _evicted(self, evict: Callable[..., Any], params: Any, **kwargs: Any) -> Any:
        """Around ``evict_for_alloc``: when the tree has nothing more to drop, pins are given up."""
        result = evict(params, **kwargs)
        while (lacking := params.num_tokens - result.num_tokens_evicted) > 0:
            if not self.book.reclaim(self.now_ps, None):
                break
            self._gave_up()
            more = evict(replace(params, num_tokens=lacking), **kwargs)
            result.num_tokens_evicted += more.num_tokens_evicted
        return result

    def reclaim(self, request: Any, lacking: int) -> bool:
        """Give up one pin so that a waiting turn fits, if all that yield are enough.

        Its own pin is its prefix hit: last, and only if nothing runs.
        """
        turn, book = self.turns[request.rid], self.book
        if self.running:
            blocks = yielding(book.pins(), self._retention, turn, self.view, self.now_ps)
            enough = blocks * self.view.block_size >= lacking
            reclaimed = enough and book.reclaim(self.now_ps, turn)
        else:
            reclaimed = book.reclaim(self.now_ps, turn) or book.reclaim(self.now_ps, None)
        return reclaimed and self._gave_up()

    def victims(self, requests: list[Any]) -> list[int]:
        """Return the indices of running requests, the last one to lose its memory first."""
        now_s = to_s(self.now_ps)
        turns = [self.turns[request.rid] for request in requests]
        keys = [self.order.victim_key(turn, self.view, now_s) for turn in turns]
        return sorted(range(len(requests)), key=lambda i: (keys[i], i))


class PolicyAdder(PrefillAdder):
    """SGLang's prefill adder, asked on behalf of a policy."""

    chunked_req_limit: int | None
    page_size: int
    rem_chunk_tokens: int
    """Chunked prefill is always on here."""

    def __init__(self, hooks: Hooks, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._hooks = hooks

    def add_chunked_req(self, req: Any) -> Any:
        quantum = self._quantum(req)
        if quantum is not None:
            limit = self.chunked_req_limit
            self.chunked_req_limit = quantum if limit is None else min(limit, quantum)
        before = len(self.can_run_list)
        rest = super().add_chunked_req(req)
        if rest is not None:
            self._promise(req)
        self._told(req, quantum, before)
        return rest

    def add_one_req(
        self, req: Any, has_chunked_req: bool, truncation_align_size: int | None
    ) -> AddReqResult:
        quantum = self._quantum(req)
        wanted = len(req.full_untruncated_fill_ids) - req.prefix_len
        budget = self.rem_chunk_tokens
        clip = quantum is not None and quantum < min(budget, wanted)
        unfinished = has_chunked_req or self.new_chunked_req is not None
        if unfinished and not self._hooks.stock_order:
            limit = budget if quantum is None else min(budget, quantum)
            if self.ceil_paged_tokens(wanted) > limit:
                # NOTE: SGLang keeps one unfinished prefill. Without a quantum that one fills the
                # step, and nobody comes after it; with one a second would be begun, and lost.
                return AddReqResult.CONTINUE
        before = len(self.can_run_list)
        if clip and quantum is not None:
            self.rem_chunk_tokens = quantum
        result = super().add_one_req(req, has_chunked_req, truncation_align_size)
        while (
            result is AddReqResult.NO_TOKEN
            and len(self.can_run_list) == before
            and self._hooks.reclaim(req, self._lacking(req))
        ):
            result = super().add_one_req(req, has_chunked_req, truncation_align_size)
        if clip and quantum is not None:
            self.rem_chunk_tokens = budget - (quantum - self.rem_chunk_tokens)
            result = self.budget_state() if result is not AddReqResult.NO_TOKEN else result
        if self.new_chunked_req is req:
            self._promise(req)
        self._told(req, quantum, before)
        if result is AddReqResult.NO_TOKEN and len(self.can_run_list) == before:
            self._hooks.refused += 1
            if not self._hooks.stock_order and self._hooks.order.skip_blocked():
                return AddReqResult.CONTINUE
        return result

    def _quantum(self, req: Any) -> int | None:
        hooks = self._hooks
        if hooks.stock_order:
            return None
        turn = hooks.turns[req.rid]
        quantum = hooks.order.prefill_quantum(turn, hooks.view, to_s(hooks.now_ps))
        if quantum is None:
            return None
        if quantum < 1:
            raise PolicyError(f"prefill_quantum must be at least 1 token, got {quantum}")
        return max(quantum // self.page_size, 1) * self.page_size

    def _promise(self, req: Any) -> None:
        """Keep memory for the rest of an unfinished prefill from those who come after it.

        Where it fills the step nobody does, so SGLang counts the chunk alone.
        """
        if self._hooks.stock_order:
            return
        rest = len(req.full_untruncated_fill_ids) - req.extend_end
        self.memory_budget.total_offset += rest + self._answer(req)

    def _answer(self, req: Any) -> int:
        """Tokens that SGLang expects a request to answer at most."""
        left = max(req.sampling_params.max_new_tokens - len(req.output_ids), 0)
        return int(min(left, schedule_policy.CLIP_MAX_NEW_TOKENS))

    def _told(self, req: Any, quantum: int | None, before: int) -> None:
        """Tell the policy of a chunk that was put into the step."""
        hooks = self._hooks
        if len(self.can_run_list) > before and not hooks.stock_order:
            num_new = req.extend_end - req.prefix_len
            turn = hooks.turns[req.rid]
            hooks.order.on_scheduled(turn, num_new, quantum, to_s(hooks.now_ps))

    def _lacking(self, req: Any) -> int:
        """Tokens that a refused request lacks, by the parent's sum."""
        wanted = len(req.full_untruncated_fill_ids) - req.prefix_len + self.per_req_token_overhead
        return int(wanted + self._answer(req) - self.rem_total_tokens) + 1


ACTIVE: list[Hooks] = []
"""The hooks of the scheduler that is making a batch; retraction has no object to hook."""

_STOCK_VICTIMS = ScheduleBatch._get_decode_retraction_order  # noqa: SLF001


def _victims(reqs: list[Any]) -> list[int]:
    if ACTIVE and not ACTIVE[-1].stock_order:
        return ACTIVE[-1].victims(reqs)
    order: list[int] = _STOCK_VICTIMS(reqs)
    return order


def _choose_victims() -> None:
    ScheduleBatch._get_decode_retraction_order = staticmethod(_victims)  # noqa: SLF001


def wrap(owner: Any, name: str, around: Callable[..., Any]) -> Callable[[], None]:
    """Make one object's method go through ``around(method, *args)``; returns what undoes it."""
    method = getattr(owner, name, None)
    if method is None:
        raise EngineError(
            f"SGLang's {type(owner).__name__} has no {name} for policies to go around: run "
            "scripts/check_sglang.py, which says what has moved in this release"
        )
    own = name in vars(owner)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return around(method, *args, **kwargs)

    def undo() -> None:
        if own:
            setattr(owner, name, method)
        else:
            delattr(owner, name)

    setattr(owner, name, wrapped)
    return undo
