"""An engine core whose steps happen elsewhere: turns go out over HTTP, events come back.

What a client can know, and what it cannot:

====================  ============================================================================
GPU_SUBMIT            measured: when the request was handed over for sending
GPU_FIRST_TOKEN       measured: when the first bytes of the first token's event arrived
GPU_END               measured: when the last token arrived. ``cached_tokens`` is the server's count;
                      ``prefilled`` = prompt - cached; ``recomputed`` = what the session had computed
                      before (whole blocks of its reusable prefix) and the server had not kept.
                      Work done again after preemptions inside a turn is not visible
GPU_SCHED_FIRST       first token minus the server's own schedule-to-first-token time, where the
                      server reports it (vLLM: ``--enable-per-request-metrics``); the way over HTTP
                      then counts as queueing. Else it is the submission, and queueing counts as
                      prefill. Known, and told to policies, only when the turn ends
GPU_PREEMPT, _RESUME  not visible; RUN_END has their number from the server's counters (-1 where it
                      has none)
KV_STATS              polled; ``cached_blocks`` and ``evicted_blocks`` are not told: -1
with a link           a scheduler of ours inside the server tells GPU_SCHED_FIRST, GPU_PREEMPT,
                      GPU_RESUME, KV_PIN, KV_UNPIN, free and pinned blocks as they happen
gpu_busy_ps           time in which at least one request was open
====================  ============================================================================
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from marsbench.core import PS_PER_S, HostView, to_ps
from marsbench.engine.base import CoreListener, CoreStats, EngineConfig, Request, StepTrace
from marsbench.engine.link.wire import EngineState
from marsbench.engine.live.client import Client, Completion
from marsbench.engine.live.metrics import ServerMetrics
from marsbench.engine.live.prompts import Prompts
from marsbench.engine.live.request import CompletionRequest, Hint
from marsbench.errors import EngineError
from marsbench.events import Kind
from marsbench.scheduler.base import EngineView, TurnView

UNKNOWN = -1
POLL_S = 0.5
STALL_S = 5.0
"""A server that is asked twice a second and neither answers nor sends a token for so long, with
turns to run, has stalled."""


class OpenTurn:
    """A turn that was sent and has not ended (``scheduler.base.TurnView``)."""

    def __init__(self, request: Request, sequence: int, sent_ps: int, block_size: int) -> None:
        self.request = request
        self.session = request.session
        self.turn_index = request.turn_index
        self.session_arrival_s = request.session_arrival_ps / PS_PER_S
        self.ready_s = sent_ps / PS_PER_S
        self.sequence = sequence
        self.prompt_tokens = request.prompt_tokens
        self.num_preemptions = 0
        self.last_scheduled_s = self.ready_s
        self.completion = Completion()
        self.scheduled = False
        """The engine has told of its first step."""
        self.told_ps = sent_ps
        """The time of the last thing that the engine told of the turn."""
        self.preempted = False
        self._block_size = block_size

    @property
    def generated_tokens(self) -> int:
        """How many output tokens have arrived."""
        return len(self.completion.token_ps)

    @property
    def computed_tokens(self) -> int:
        """Tokens of prompt and output, once output arrives; before that a client cannot know, so 0."""
        generated = self.generated_tokens
        return self.prompt_tokens + generated - 1 if generated else 0

    @property
    def num_blocks(self) -> int:
        """KV blocks that the computed tokens fill."""
        return -(-self.computed_tokens // self._block_size)


class LiveView:
    """The server as polling shows it (``scheduler.base.EngineView``)."""

    host: HostView | None = None
    """No server tells what its host memory holds."""

    def __init__(self, config: EngineConfig) -> None:
        self.block_size = config.block_size
        self.polled_blocks = config.num_blocks
        """Blocks the server has, as configured or as its metrics say."""
        self.open: dict[int, OpenTurn] = {}
        self.polled: ServerMetrics | None = None
        """None where the server has no metrics: then occupancy is what open turns must hold."""
        self.told: EngineState | None = None
        """By a scheduler of ours inside the server."""

    @property
    def num_blocks(self) -> int:
        """Blocks of the KV cache, from the same page as the number of free ones."""
        return self.told.num_blocks if self.told is not None else self.polled_blocks

    @property
    def pinned_blocks(self) -> int:
        """Blocks held by retention alone. Only a scheduler inside the server can tell; otherwise 0."""
        return self.told.pinned_blocks if self.told is not None else 0

    @property
    def free_blocks(self) -> int:
        """Unreferenced blocks, as of when the scheduler last told or the metrics were last read."""
        if self.told is not None:
            return self.told.free_blocks
        if self.polled is not None:
            return round((1.0 - self.polled.kv_usage) * self.num_blocks)
        return max(0, self.num_blocks - sum(turn.num_blocks for turn in self.open.values()))

    @property
    def running(self) -> Sequence[TurnView]:
        """Open turns that do not wait."""
        waiting = {turn.sequence for turn in self.waiting}
        return [turn for turn in self.open.values() if turn.sequence not in waiting]

    @property
    def waiting(self) -> Sequence[TurnView]:
        """Turns that wait: as many as the server says, the latest of those that have no token yet."""
        source = self.polled if self.told is None else self.told
        if source is None or not source.waiting:
            return []
        silent = [turn for turn in self.open.values() if not turn.generated_tokens]
        return silent[-source.waiting :]

    def cached_tokens(self, turn: TurnView) -> int:
        """Raise EngineError: a live server does not tell what its cache holds of a waiting turn."""
        raise EngineError("a live server does not tell what a waiting turn would find cached")


class LiveCore:
    """Sends turns to a server. An ``engine.base.EngineCore`` without ``advance``: time passes by
    itself. Lives inside a running event loop.
    """

    def __init__(
        self,
        config: EngineConfig,
        listener: CoreListener,
        client: Client,
        *,
        prompts: Prompts,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        """``wake`` is called after every answer; ``listener`` or ``failed`` knows of it by then."""
        self.config = config
        self._server = LiveView(config)
        self.view: EngineView = self._server
        self.stats = CoreStats(steps=UNKNOWN, evicted_blocks=UNKNOWN, preemptions=UNKNOWN)
        self.trace: StepTrace | None = None
        self.completions: list[tuple[Request, Completion]] = []
        """Every turn with its answer, in order of end."""
        self.failed: list[tuple[Request, Completion]] = []
        """Turns that will not finish and that the driver has not taken up."""
        self.broken: BaseException | None = None
        """What made a turn's task fail; the run stops with it."""
        self.gathered = ServerMetrics()
        """Counters of the server since ``open``, as of the last poll."""
        self._listener = listener
        self._client = client
        self._prompts = prompts
        self._wake = wake
        self._sequence = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._before: ServerMetrics | None = None
        self._accounted_ps = 0
        self._heard_ps = 0
        """When the server last gave a sign of life."""
        self.stalls_s: list[float] = []
        """How long each time it gave none while turns were open, seconds."""

    # ---- EngineCore

    def fits(self, prompt_tokens: int, output_tokens: int) -> bool:
        """Tell whether a turn of this size can ever run, by the server's own sizes once it has told
        them.
        """
        server = self._server
        sizes = replace(self.config, num_blocks=server.num_blocks, block_size=server.block_size)
        return sizes.fits(prompt_tokens, output_tokens)

    def submit(self, request: Request) -> None:
        """Send a turn to the server."""
        now_ps = self._client.clock.now_ps()
        self._account(now_ps)
        turn = OpenTurn(request, self._sequence, now_ps, self._server.block_size)
        self._server.open[self._sequence] = turn
        self._sequence += 1
        prompt = self._prompts.compose(request)
        task = asyncio.create_task(self._run(turn, prompt.tolist()))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def advance(self, now_ps: int, limit_ps: int) -> int:
        """Raise an error: time passes by itself here, and the virtual-time loop cannot drive a
        server.
        """
        raise EngineError("a live server runs on the wall clock; use marsbench.engine.live")

    def session_ended(self, session: int) -> None:
        """Drop the context of a session that has ended."""
        self._prompts.forget(session)

    def cached_blocks(self) -> int:
        """Return -1, which stands for unknown: no server tells how many of its free blocks have
        reusable content.
        """
        return UNKNOWN

    def idle(self) -> bool:
        """Tell whether no turn is open."""
        return not self._server.open

    def check_integrity(self) -> None:
        """Assert that every turn that was sent has ended."""
        assert self.idle(), "turns are still open"
        assert len(self.completions) == self._sequence, "turns were lost"

    # ---- what a scheduler of ours inside the server tells (``engine.link.outside.Ear``)

    def engine_event(
        self, kind: Kind, session: int, turn: int, at_ps: int, args: tuple[int, ...]
    ) -> None:
        """Pass on what a client cannot see; what it measures itself is measured here."""
        listener = self._listener
        if kind == Kind.KV_PIN:
            listener.on_pin(session, turn, at_ps, args[0], args[1])
            return
        if kind == Kind.KV_UNPIN:
            listener.on_unpin(session, turn, at_ps, args[0], args[1], args[2])
            return
        found = self._open_turn(session, turn)
        if found is None:
            return
        if not found.generated_tokens or kind != Kind.GPU_SCHED_FIRST:
            found.told_ps = max(at_ps, found.told_ps)
        else:  # clocks are compared to within the time a message takes
            found.told_ps = max(min(at_ps, found.completion.first_ps), found.told_ps)
        at_ps = found.told_ps
        if kind == Kind.GPU_SCHED_FIRST and not found.scheduled:
            found.scheduled = True
            listener.on_scheduled_first(found.request, at_ps, args[0], args[1])
        elif kind == Kind.GPU_PREEMPT and found.scheduled and not found.preempted:
            found.preempted = True
            listener.on_preempted(found.request, at_ps, args[0], args[1])
        elif kind == Kind.GPU_RESUME and found.preempted:
            found.preempted = False
            listener.on_resumed(found.request, at_ps, args[0], args[1])

    def engine_state(self, state: EngineState | None) -> None:
        """Take in how the KV cache and the queues are now; None if that is not known any more."""
        self._account(self._client.clock.now_ps())
        self._server.told = state

    def _open_turn(self, session: int, turn_index: int) -> OpenTurn | None:
        for turn in self._server.open.values():
            if (turn.session, turn.turn_index) == (session, turn_index):
                return turn
        return None

    # ---- around a run

    async def open(self) -> None:
        """Ask the server for its sizes and the state of its counters."""
        self._before = await self.poll()
        if self._before is not None and self._before.num_blocks:
            self._server.polled_blocks = self._before.num_blocks
            self._server.block_size = self._before.block_size

    def begin(self) -> None:
        """Note that the run starts now; the clock has just been set to zero."""
        self._accounted_ps = self._heard_ps = 0

    async def poll(self) -> ServerMetrics | None:
        """Read ``/metrics`` now. Returns None if the server has no such page or does not answer."""
        polled = await self._client.metrics()
        if polled is not None:
            self._hear(self._client.clock.now_ps())
            self._account(self._client.clock.now_ps())
            self._server.polled = polled
            if self._before is not None:
                self.gathered = polled.since(self._before)
                self.stats.steps = self.gathered.steps
                self.stats.preemptions = self.gathered.preemptions
        return polled

    def _hear(self, now_ps: int) -> None:
        """Note that the server is alive. If it was silent for long, that was a stall, which is
        kept.
        """
        silent_s = (now_ps - self._heard_ps) / PS_PER_S
        if silent_s > STALL_S and self._server.open and self._before is not None:
            self.stalls_s.append(silent_s)
        self._heard_ps = now_ps

    async def keep_polling(self) -> None:
        """Read the metrics again and again until cancelled, if the server has any (see ``open``)."""
        while self._before is not None:
            await self.poll()
            await asyncio.sleep(POLL_S)

    async def close(self) -> None:
        """Break off the requests that are still open."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- a turn

    async def _run(self, turn: OpenTurn, prompt: list[int]) -> None:
        request = turn.request
        sent = CompletionRequest(
            prompt=prompt,
            output_tokens=request.output_tokens,
            session_id=f"{self._prompts.salt}/{request.session}",
            priority=request.priority,
            hints=hints_of(request),
        )
        await self._client.complete(
            sent,
            on_first=lambda at: self._first_token(request, at),
            into=turn.completion,
        )
        self._account(self._client.clock.now_ps())
        del self._server.open[turn.sequence]
        self._finish(turn)
        self._wake()

    def _first_token(self, request: Request, at_ps: int) -> None:
        self._hear(at_ps)
        self._listener.on_first_token(request, at_ps)

    def _finish(self, turn: OpenTurn) -> None:
        request, done = turn.request, turn.completion
        self.completions.append((request, done))
        if not done.ok or done.first_ps < 0:
            if done.ok:
                done.status = "error"
                done.problems.append("the server answered without a single token")
            self.failed.append((request, done))
            return
        self._prompts.answered(request, done.token_ids)
        cached = min(done.cached_tokens or 0, request.prompt_tokens)
        prefilled = request.prompt_tokens - cached
        recomputed = 0
        if request.turn_index > 0:
            size = self._server.block_size
            recomputed = max(0, (request.reused_tokens - 1) // size * size - cached)
        request.output_tokens = done.output_tokens
        submitted_ps = to_ps(turn.ready_s)
        sched_ps = submitted_ps
        if done.prefill_s is not None:
            sched_ps = max(submitted_ps, done.first_ps - to_ps(done.prefill_s))
        if not turn.scheduled:
            self._listener.on_scheduled_first(request, sched_ps, cached, prefilled)
        elif turn.preempted:  # its resumption was not told
            self._listener.on_resumed(request, done.end_ps, 0, request.prompt_tokens)
        self._listener.on_finished(
            request, done.end_ps, prefilled=prefilled, recomputed=recomputed, cached=cached
        )

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.broken = task.exception()
            self._wake()

    def _account(self, now_ps: int) -> None:
        """Integrate busy time and referenced blocks up to now."""
        span_ps = now_ps - self._accounted_ps
        if self._server.open:
            self.stats.busy_ps += span_ps
        held = self._server.num_blocks - self._server.free_blocks
        self.stats.referenced_block_ps += held * span_ps
        self._accounted_ps = now_ps


def hints_of(request: Request) -> Mapping[str, Hint]:
    """Return what a scheduler inside the server may know of a turn, under the names that the
    gateway uses, too. The tools and whether this was the session's last turn are meant for the
    turn's end, when the server of an agent could read them in the output.
    """
    return {
        "marsbench_session": request.session,
        "marsbench_turn": request.turn_index,
        "marsbench_arrival_s": request.session_arrival_ps / PS_PER_S,
        "marsbench_tools": list(request.tool_names),
        "marsbench_last": int(request.is_last),
    }
