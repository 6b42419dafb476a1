"""A marsbench system inside a live vLLM server.

``vllm serve ... --scheduler-cls marsbench.engine.vllm.plugin.ServedScheduler
--additional-config '{"marsbench": {"system": "mars", "profile": "h100-nvl/qwen3-coder-30b-a3b"}}'``

``profile`` tells the policies how fast the machine is. ``params`` overrides policy parameters.
Without additional-config, MARSBENCH_SYSTEM and MARSBENCH_PROFILE say the same. A request names
its session by ``session_id``, or by the ``marsbench_*`` fields of ``vllm_xargs``; one that names
none is a session of one turn. ``listen`` is the ZeroMQ address of a control plane's event stream
(``marsbench serve --publish``; ``marsbench run`` sets it), ``publish`` the one at which the scheduler
tells what the engine does. With ``--no-async-scheduling`` use SyncServedScheduler.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from marsbench.core import PolicyContext
from marsbench.engine.link.hosting import Hosted
from marsbench.engine.link.inside import Sizes
from marsbench.engine.served import ServedOptions
from marsbench.engine.turns import TurnInfo
from marsbench.engine.vllm.scheduler import AsyncPolicyScheduler, PolicyScheduler
from marsbench.engine.vllm.views import held_blocks
from marsbench.system import Policies


class SyncServedScheduler(PolicyScheduler):
    """The policies of the system that the server was started with; time is the server's own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hosted = Hosted(ServedOptions.of(self.vllm_config.additional_config), self)

    # ---- what the hosted policies ask (``engine.link.hosting.Host``)

    def install(self, policies: Policies) -> None:
        self.use(policies.scheduling, policies.retention, self, self)

    def context(self, base: PolicyContext) -> PolicyContext:
        return dataclasses.replace(
            base,
            num_blocks=self.view.num_blocks,
            block_size=self.view.block_size,
            max_num_batched_tokens=self.max_num_scheduled_tokens,
            max_num_seqs=self.max_num_running_reqs,
        )

    def idle(self) -> bool:
        return not self.requests

    def sizes(self) -> Sizes:
        running, waiting = self.get_request_counts()
        view = self.view
        return view.num_blocks, view.free_blocks, view.pinned_blocks, running, waiting

    # ---- the link

    def add_request(self, request: Any) -> None:
        self.hosted.poll()
        super().add_request(request)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        self.hosted.poll()
        step = super().schedule(*args, **kwargs)
        self.hosted.flush(now=False)
        return step

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        done = super().update_from_output(*args, **kwargs)
        waiting = self.hosted.tokenless
        for request_id in list(waiting) if waiting else ():
            self._maybe_first_token(self.requests[request_id])
        self.hosted.flush(now=not self.requests)
        return done

    def shutdown(self) -> None:
        self.hosted.close()
        super().shutdown()

    # ---- what the scheduler asks and tells (its ``PolicyHost`` and ``PinListener``)

    def now_ps(self) -> int:
        return self.hosted.now_ps()

    def describe(self, request: Any) -> TurnInfo:
        hints = (request.sampling_params and request.sampling_params.extra_args) or {}
        return self.hosted.describe(
            request.request_id, request.session_id, hints, request.num_prompt_tokens
        )

    def admitted(self, request: Any, cached_tokens: int) -> None:
        info = self._turns.info(request.request_id)
        uncached = request.num_tokens - cached_tokens
        self.hosted.admitted(request.request_id, info, cached_tokens, uncached)

    def on_pin(self, session: int, turn_index: int, at_ps: int, blocks: int, until_ps: int) -> None:
        self.hosted.on_pin(session, turn_index, at_ps, blocks, until_ps)

    def on_unpin(
        self, session: int, turn_index: int, at_ps: int, blocks: int, reason: int, held_ps: int
    ) -> None:
        self.hosted.on_unpin(session, turn_index, at_ps, blocks, reason, held_ps)

    # ---- what the scheduler sees of a turn's life, told to the policies

    def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> None:
        info = self._turns.info(request.request_id)
        held = len(held_blocks(self.kv_cache_manager, request.request_id))
        lost = request.num_computed_tokens
        super()._preempt_request(request, *args, **kwargs)
        self.hosted.preempted(info, lost, held)

    def _maybe_first_token(self, request: Any) -> None:
        if request.num_output_tokens:
            self.hosted.first_token(request.request_id)

    def _free_blocks(self, request: Any) -> None:
        hosted, key = self.hosted, request.request_id
        info = self._turns.info(key)
        if key in hosted.tokenless:
            self._maybe_first_token(request)
        cached = hosted.over(key)
        super()._free_blocks(request)
        hosted.ended(info, request.num_output_tokens, request.num_prompt_tokens, cached)


class ServedScheduler(SyncServedScheduler, AsyncPolicyScheduler):
    """The same on vLLM's asynchronous scheduler, its default in a live server."""
