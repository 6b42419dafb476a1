"""SGLang's Scheduler without the world around it: no model, no client, no threads that watch it."""

from __future__ import annotations

from typing import Any, NoReturn, Protocol

import torch
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.managers.scheduler_components.ipc_channels import SchedulerIpcChannels
from sglang.srt.managers.scheduler_components.output_sender import SenderWrapper
from sglang.srt.managers.scheduler_components.output_streamer import SchedulerOutputStreamer
from sglang.srt.managers.utils import GenerationBatchResult

from marsbench.errors import EngineError


class TurnHost(Protocol):
    """Whoever drives the scheduler: it knows the answers and hears what happens to requests."""

    def next_token(self, request: Req) -> int:
        """Return the token that the model would answer next."""
        ...

    def requeued(self, request: Req) -> None:
        """Hear that a request goes to the waiting queue: a new one, or one that was retracted."""
        ...

    def evicted(self, num_tokens: int) -> None:
        """Hear that so many tokens of the cache were dropped."""
        ...


class NoClient(SchedulerOutputStreamer):
    """Takes the place of the process that would send answers: nobody reads them."""

    def stream_output(self, *args: Any, **kwargs: Any) -> None:
        """Send nothing: there is no client."""


class EmbeddedScheduler(Scheduler):
    """The real one: what runs, when and with which memory is decided by the parent alone."""

    host: TurnHost

    def init_ipc_channels(self, port_args: Any) -> None:
        """Open no sockets: requests come by call, and answers go nowhere."""
        self.ipc_channels = SchedulerIpcChannels(
            recv_from_tokenizer=None,
            recv_from_rpc=None,
            send_to_tokenizer=SenderWrapper(None),
            send_to_detokenizer=SenderWrapper(None),
            send_metrics_from_scheduler=None,
        )
        self.load_snapshot_writer = None
        self.recv_from_tokenizer = None

    def drive_by(self, host: TurnHost) -> None:
        """Set the host that drives this scheduler; only before the first request."""
        self.host = host
        self.model_worker.forward_batch_generation = self._answer
        told = self.tree_cache.update_eviction_metrics

        def evicted(num_tokens: int, start_time: float) -> None:
            host.evicted(num_tokens)
            told(num_tokens, start_time)

        self.tree_cache.update_eviction_metrics = evicted

    def get_output_streamer_class(self) -> type[SchedulerOutputStreamer]:
        return NoClient

    def _answer(self, batch: Any, **_: Any) -> GenerationBatchResult:
        """In place of the model's forward pass."""
        tokens = [self.host.next_token(request) for request in batch.reqs]
        return GenerationBatchResult(next_token_ids=torch.tensor(tokens, dtype=torch.int64))

    def _add_request_to_queue(self, req: Req, is_retracted: bool = False) -> None:
        self.host.requeued(req)
        super()._add_request_to_queue(req, is_retracted)

    def send_abort_output(self, abort_req: Any, req: Req) -> NoReturn:
        reason = getattr(abort_req, "finished_reason", abort_req)
        raise EngineError(f"SGLang aborted a request that fits: {reason}")
