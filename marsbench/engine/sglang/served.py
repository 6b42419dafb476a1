"""SGLang's Scheduler in a live server, with the policies of the system the server was started with."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from sglang.srt.managers.schedule_batch import FINISH_ABORT
from sglang.srt.managers.scheduler import Scheduler

from marsbench.core import PolicyContext, to_s
from marsbench.engine.link.hosting import Hosted
from marsbench.engine.link.inside import Sizes
from marsbench.engine.sglang.counters import Counters
from marsbench.engine.sglang.flags import STARTED
from marsbench.engine.sglang.hooks import Hooks
from marsbench.engine.sglang.plugin import end, options
from marsbench.engine.sglang.runtime import require_sglang
from marsbench.engine.turns import TurnInfo
from marsbench.errors import EngineError, MarsbenchError
from marsbench.events import Unpin
from marsbench.system import Policies

log = logging.getLogger(__name__)

ALONE = ("tp_size", "pp_size", "dp_size")
"""Ranks that would have to decide alike, each by its own clock; or each would want the same address."""
UNTRIED = ("enable_hierarchical_cache", "enable_lmcache", "enable_mixed_chunk", "enable_lora")
"""What changes who holds memory, and when."""


class ServedSglangScheduler(Scheduler):
    """The parent schedules; what the policies have a say in goes through ``Hooks``."""

    hooks: Hooks | None = None

    def __init__(self, server_args: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(server_args, *args, **kwargs)
        try:
            check(server_args)
            self.counters = Counters(enabled=bool(server_args.enable_metrics))
            self.hosted = Hosted(options(), self)
        except MarsbenchError as error:
            end(str(error))
        print(STARTED.format(system=self.hosted.system, version=require_sglang()), flush=True)

    # ---- what the hosted policies ask (``engine.link.hosting.Host``)

    def install(self, policies: Policies) -> None:
        if self.hooks is not None:
            self.hooks.uninstall()
        self.hooks = Hooks(self, policies, self, self)
        self.hooks.install(always=True)

    def context(self, base: PolicyContext) -> PolicyContext:
        page = int(self.page_size)
        return dataclasses.replace(
            base,
            num_blocks=int(self.max_total_num_tokens) // page,
            block_size=page,
            max_num_batched_tokens=int(self.chunked_prefill_size or self.max_prefill_tokens),
            max_num_seqs=int(self.max_running_requests),
        )

    def idle(self) -> bool:
        return not len(self._hooks.turns)

    def sizes(self) -> Sizes:
        hooks = self._hooks
        view = hooks.view
        running, waiting = len(hooks.running), len(self.waiting_queue)
        return view.num_blocks, view.free_blocks, view.pinned_blocks, running, waiting

    def session_ended(self, session: int) -> None:
        self._hooks.session_ended(session)

    @property
    def _hooks(self) -> Hooks:
        assert self.hooks is not None
        return self.hooks

    # ---- what the hooks ask and tell (their ``HookHost`` and ``PinListener``)

    def now_ps(self) -> int:
        return self.hosted.now_ps()

    def describe(self, request: Any) -> TurnInfo:
        hints = request.sampling_params.custom_params or {}
        prompt_tokens = len(request.origin_input_ids)
        return self.hosted.describe(request.rid, request.session_id, hints, prompt_tokens)

    def on_pin(self, session: int, turn_index: int, at_ps: int, blocks: int, until_ps: int) -> None:
        self.counters.pinned()
        self.hosted.on_pin(session, turn_index, at_ps, blocks, until_ps)

    def on_unpin(
        self, session: int, turn_index: int, at_ps: int, blocks: int, reason: int, held_ps: int
    ) -> None:
        self.counters.unpinned(Unpin(reason))
        self.hosted.on_unpin(session, turn_index, at_ps, blocks, reason, held_ps)

    # ---- a turn's life

    def ingest_requests(self, *args: Any, **kwargs: Any) -> Any:
        """Take in messages before requests: the parent's loop calls this first in each round."""
        self.hosted.poll()
        return super().ingest_requests(*args, **kwargs)

    def _add_request_to_queue(self, req: Any, is_retracted: bool = False) -> None:
        hooks = self._hooks
        if req.rid in hooks.running:  # whether or not the parent says so
            turn, info = hooks.turns[req.rid], hooks.turns.info(req.rid)
            lost, blocks = turn.computed_tokens, turn.num_blocks
            hooks.retracted(req)
            self.counters.retracted()
            self.hosted.preempted(info, lost, blocks)
        elif req.rid not in hooks.turns:
            super()._add_request_to_queue(req, is_retracted)
            if self.waiting_queue and self.waiting_queue[-1] is req:
                hooks.submitted(req)
            return
        super()._add_request_to_queue(req, is_retracted)

    def get_next_batch_to_run(self, *args: Any, **kwargs: Any) -> Any:
        """The hooks go around this method of the object; see ``Hooks.install``."""
        hooks = self._hooks
        asked = hooks.ordered, hooks.adders
        plan = super().get_next_batch_to_run(*args, **kwargs)
        batch = plan.batch_to_run
        if batch is None:
            return plan
        if batch.forward_mode.is_extend():
            for request in batch.reqs:
                if request.rid not in hooks.running and request.rid in hooks.turns:
                    self._admitted(request, asked)
        hooks.turns.scheduled((r.rid for r in batch.reqs if r.rid in hooks.turns), self._now_s())
        return plan

    def _admitted(self, request: Any, asked: tuple[int, int]) -> None:
        hooks = self._hooks
        if hooks.ordered == asked[0] or hooks.adders == asked[1]:
            raise EngineError(
                f"SGLang {require_sglang()} put a request into a batch without asking the policies: "
                "run scripts/check_sglang.py, which says what has moved in this release"
            )
        cached = int(request.prefix_len)
        hooks.admitted(request)
        uncached = len(request.full_untruncated_fill_ids) - cached
        self.hosted.admitted(request.rid, hooks.turns.info(request.rid), cached, uncached)

    def process_batch_result(self, batch: Any, result: Any) -> None:
        super().process_batch_result(batch, result)
        hooks, hosted = self._hooks, self.hosted
        prefill = batch.forward_mode.is_extend()
        for request in batch.reqs:
            if request.rid not in hooks.running:
                continue  # retracted or over meanwhile
            if prefill:
                hooks.turns.raw(request.rid).computed_tokens = int(request.extend_end)
            else:
                context = len(request.origin_input_ids) + len(request.output_ids) - 1
                hooks.turns.raw(request.rid).computed_tokens = context
            if request.rid in hosted.tokenless and request.output_ids:
                hosted.first_token(request.rid)
            if request.finished():
                self._over(request, aborted=isinstance(request.finished_reason, FINISH_ABORT))
        hosted.flush(now=not len(hooks.turns))

    def send_abort_output(self, abort_req: Any, req: Any) -> None:
        """Note a request that ends outside of a batch: all of them pass here."""
        super().send_abort_output(abort_req, req)
        if req.rid in self._hooks.turns:
            self._over(req, aborted=True)

    def _over(self, request: Any, *, aborted: bool) -> None:
        hooks, hosted = self._hooks, self.hosted
        info = hooks.turns.info(request.rid)
        cached = hosted.over(request.rid)
        hooks.finished(request, aborted=aborted)
        self.counters.ended(aborted=aborted)
        hosted.ended(info, len(request.output_ids), len(request.origin_input_ids), cached)

    def _now_s(self) -> float:
        return to_s(self.hosted.now_ps())

    # ---- around the turns

    def on_idle(self) -> None:
        """Keep up with the link while nothing runs: the parent's loop comes here again and again
        then.
        """
        if len(self._hooks.turns) and self.is_fully_idle():
            self._forget_lost()
        self.counters.holds(self._hooks.view.pinned_blocks)
        self.hosted.flush(now=False)
        super().on_idle()

    def _forget_lost(self) -> None:
        """Turns that left by a way we do not know: they must not be waited for."""
        for turn, request in self._hooks.turns.entries():
            log.warning("marsbench: a turn of session %d left unseen", turn.session)
            self._over(request, aborted=True)

    def flush_cache(self, *args: Any, **kwargs: Any) -> Any:
        """Drop all pins before the cache is flushed: they lock parts of the tree, of which nothing
        is left.
        """
        if self.is_fully_idle(ignore_waiting=self._engine_paused):
            self._hooks.drop_pins(Unpin.PRESSURE)
        return super().flush_cache(*args, **kwargs)

    def run_event_loop(self) -> None:
        try:
            super().run_event_loop()
        finally:
            self.hosted.close()


def check(server_args: Any) -> None:
    """Raise EngineError for a server in which the policies would not do what they say."""
    for name in ALONE:
        if getattr(server_args, name) != 1:
            raise EngineError(
                f"--{name.replace('_', '-')} {getattr(server_args, name)}: policies inside SGLang run in "
                "servers of one rank; start one server a GPU and put marsbench serve before them"
            )
    for name in UNTRIED:
        if getattr(server_args, name):
            raise EngineError(f"--{name.replace('_', '-')}: not with policies inside; leave it out")
    if server_args.disaggregation_mode != "null":
        raise EngineError("--disaggregation-mode: not with policies inside; leave it out")
    if server_args.disable_radix_cache:
        raise EngineError("--disable-radix-cache: there is nothing to keep; leave it out")
