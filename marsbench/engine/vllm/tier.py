"""Host memory of ``vllm-core``: vLLM's own offloading, with copies that take modelled time.

Which chunks are stored, looked up, loaded and evicted is decided by the installed vLLM's
``OffloadingConnector`` and ``CPUOffloadingManager``; its worker side runs too, as a model runner
would call it. Only the device that copies is replaced, by two channels in virtual time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.config import build_offloading_config
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.worker import (
    OffloadingConnectorWorker,
)
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult, make_offload_key
from vllm.v1.kv_offload.factory import OffloadingSpecFactory
from vllm.v1.outputs import KVConnectorOutput

from marsbench.engine.base import CoreListener, EngineConfig, Request, StoredChunks
from marsbench.engine.cost import LinkCost
from marsbench.engine.transfers import HostLink, TierView, tier_stats

GROUP = 0
"""The one group of KV caches."""


class Device(OffloadingWorker):  # type: ignore[misc]  # vLLM is not typed for us
    """Copies nothing, but takes the time it would."""

    def __init__(self, link: HostLink[int], now_ps: Callable[[], int]) -> None:
        self.link = link
        self.stalled_until_ps = 0
        self._now_ps = now_ps
        self._done_ps: dict[int, int] = {}

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        """Begin a copy to host memory."""
        blocks = len(src_spec.block_ids)
        self._done_ps[job_id] = self.link.d2h.submit(job_id, blocks, self._now_ps())
        return True

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        """Begin a copy to the GPU."""
        blocks = len(dst_spec.block_ids)
        self._done_ps[job_id] = self.link.h2d.submit(job_id, blocks, self._now_ps())
        return True

    def get_finished(self) -> list[TransferResult]:
        """Return the copies that are done, stores first."""
        now_ps = self._now_ps()
        done = self.link.d2h.take_done(now_ps) + self.link.h2d.take_done(now_ps)
        for job_id in done:
            del self._done_ps[job_id]
        return [TransferResult(job_id=job_id, success=True) for job_id in done]

    def wait(self, job_ids: set[int]) -> None:
        """Hold the next step back until these copies are done."""
        waits = [self._done_ps[job_id] for job_id in job_ids if job_id in self._done_ps]
        self.stalled_until_ps = max([self.stalled_until_ps, *waits])


class HostTier:
    """The worker side of vLLM's offloading, and what is watched on its scheduler side."""

    def __init__(
        self,
        scheduler: Any,
        config: EngineConfig,
        link: LinkCost,
        listener: CoreListener,
        now_ps: Callable[[], int],
    ) -> None:
        self.stats = tier_stats(config, link)
        self._listener = listener
        self._now_ps = now_ps
        self._blocks_per_chunk = config.blocks_per_chunk
        self._chunk_tokens = config.blocks_per_chunk * config.block_size
        self._requests: dict[str, Request] = {}
        self._loading: dict[str, int] = {}
        """When each load began."""
        self._homes: dict[bytes, tuple[int, int]] = {}
        """What each chunk in host memory is: (owner, index); owners of prefixes are negative."""
        self._link: HostLink[int] = HostLink(link, config.block_size)
        self._device = Device(self._link, now_ps)
        settings, blocks = scheduler.vllm_config, scheduler.kv_cache_config
        spec = OffloadingSpecFactory.create_spec(build_offloading_config(settings, blocks))
        self._worker = OffloadingConnectorWorker(spec, settings, blocks)
        self._worker.worker = self._device
        self._connector = scheduler.connector.connector_scheduler
        assert self._connector.manager._num_chunks == config.host_chunks  # noqa: SLF001
        self._prompt_keys: dict[int, list[bytes]] = {}
        """Keys of the whole chunks of the prompt that each session submitted last."""
        self.view = TierView(config, link, self._homes.__len__, self._leading_chunks)
        self._told: list[Callable[[], None]] = []
        """What to tell the listener of the step once the turns in it are known."""
        self._observe()

    def submitted(self, vllm_request: Any, request: Request) -> None:
        """Note that a turn was put into the engine."""
        self._requests[vllm_request.request_id] = request
        step, hashes = self._blocks_per_chunk, vllm_request.block_hashes
        count = request.prompt_tokens // self._chunk_tokens
        self._prompt_keys[request.session] = [
            make_offload_key(hashes[(index + 1) * step - 1], GROUP) for index in range(count)
        ]

    def session_ended(self, session: int) -> None:
        """Forget a session, since no further turn of it will come."""
        self._prompt_keys.pop(session, None)

    def _leading_chunks(self, session: int) -> int:
        keys = self._prompt_keys.get(session, ())
        return next((n for n, key in enumerate(keys) if key not in self._homes), len(keys))

    @property
    def pending(self) -> bool:
        """Whether copies are under way or have not begun yet."""
        return bool(self._connector.has_pending_push_work())

    def next_done_ps(self) -> int | None:
        """Return when the next copy is done."""
        return self._link.next_done_ps()

    # ---- a step, as vLLM's model runner calls its connector

    def before_forward(self, step: Any) -> int:
        """Begin the last step's stores; returns when the step can begin."""
        for tell in self._told:
            tell()
        self._told.clear()
        meta = step.kv_connector_metadata
        meta.jobs_to_flush = sorted(meta.jobs_to_flush)  # a set has no order
        self._worker.handle_preemptions(meta)
        now_ps = self._now_ps()
        until_ps = max(now_ps, self._device.stalled_until_ps)
        self.stats.stall_ps += until_ps - now_ps
        return until_ps

    def after_forward(self, step: Any) -> tuple[Any, bool]:
        """Begin loads, keep stores for the next step, collect what is done.

        Returns vLLM's report of it, and whether another step has anything to do with this.
        """
        meta = step.kv_connector_metadata
        self._worker.start_kv_transfers(meta)
        self._worker.prepare_store_kv(meta)
        _, loaded = self._worker.get_finished(step.finished_req_ids)
        report = self._worker.build_connector_worker_meta()
        output = KVConnectorOutput(finished_recving=loaded, kv_connector_worker_meta=report)
        self._count()
        return output, report is not None or bool(meta.store_jobs)

    def _count(self) -> None:
        stats, link = self.stats, self._link
        stats.stored_blocks, stats.loaded_blocks = link.d2h.blocks, link.h2d.blocks
        stats.d2h_busy_ps, stats.h2d_busy_ps = link.d2h.busy_ps, link.h2d.busy_ps
        stats.resident_blocks = len(self._homes) * self._blocks_per_chunk

    # ---- what is watched on vLLM's objects; nothing is changed

    def _observe(self) -> None:
        connector, manager = self._connector, self._connector.manager
        allocated, prepare = connector.update_state_after_alloc, manager.prepare_store
        stored, loaded = manager.complete_store, manager.complete_load

        def allocated_watched(request: Any, blocks: Any, num_external_tokens: int) -> None:
            allocated(request, blocks, num_external_tokens)
            if num_external_tokens:
                local = connector._req_status[request.request_id].num_locally_computed_tokens  # noqa: SLF001
                turn = self._requests[request.request_id]
                values = (turn, self._now_ps(), local, num_external_tokens)
                self._told.append(partial(self._listener.on_load, *values))
                self._loading[request.request_id] = self._now_ps()

        def prepare_watched(keys: Any, context: Any) -> Any:
            answer = prepare(keys, context)
            if answer is not None and answer.keys_to_store:
                self._stored(keys, answer, context)
            return answer

        def stored_watched(keys: Any, context: Any, *args: Any) -> None:
            stored(keys, context, *args)
            turn = self._requests[context.req_id]
            self._listener.on_stored(turn, self._now_ps(), len(keys))

        def loaded_watched(keys: Any, context: Any) -> None:
            loaded(keys, context)
            turn = self._requests[context.req_id]
            now_ps = self._now_ps()
            waited_ps = now_ps - self._loading.pop(context.req_id)
            self._listener.on_loaded(turn, now_ps, len(keys), waited_ps)

        connector.update_state_after_alloc = allocated_watched
        manager.prepare_store = prepare_watched
        manager.complete_store = stored_watched
        manager.complete_load = loaded_watched

    def _stored(self, keys: Any, answer: Any, context: Any) -> None:
        turn = self._requests[context.req_id]
        evicted_sum = 0
        for key in answer.evicted_keys:
            owner, index = self._homes.pop(key)
            evicted_sum += chunk_number(owner, index)
        for key in answer.keys_to_store:
            end_tokens = context.get_offload_key_position(key)
            shared = turn.prefix_id >= 0 and end_tokens <= turn.prefix_tokens
            owner = -1 - turn.prefix_id if shared else turn.session
            self._homes[key] = (owner, end_tokens // self._chunk_tokens - 1)
        evicted = len(answer.evicted_keys)
        self.stats.evicted_blocks += evicted * self._blocks_per_chunk
        chunks = len(answer.keys_to_store)
        told = StoredChunks(chunks, evicted, evicted_sum, len(self._homes))
        self._told.append(partial(self._listener.on_store, turn, self._now_ps(), told))


def chunk_number(owner: int, index: int) -> int:
    """Return a number for a chunk. Sums of such numbers tell sets of chunks apart well enough."""
    return (index + 1) * (2 * owner + 1)


def in_order(scheduler_class: type[Any]) -> type[Any]:
    """Return a scheduler class that handles finished requests in order of submission.

    vLLM keeps them in a set of strings, whose order differs between processes, and the order in
    which host memory is told of them decides what it evicts.
    """

    class Ordered(scheduler_class):
        def _build_kv_connector_meta(self, connector: Any, scheduler_output: Any) -> Any:
            finished = scheduler_output.finished_req_ids
            scheduler_output.finished_req_ids = sorted(finished)
            meta = super()._build_kv_connector_meta(connector, scheduler_output)
            scheduler_output.finished_req_ids = finished
            return meta

    return Ordered
