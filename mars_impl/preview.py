"""The scheduler the authors released, rule by rule: the MARS preview code, not the paper.

Source: public preview of MARS (arXiv:2604.26963 v2), internal scheduler and replay controller;
constants are those of its replay scripts. What it has: levels by *full* prompt length in the waiting
queue, an effective level with ageing that sets order and prefill quantum, demotion, chunk
shrinking, an active window of 30 turns in the engine; in front of it an AIMD window on sessions
with CPU and KV caps, packing by free blocks, and four orders of the backlog. What it has not: any
retention, any priority of a session over turns, any projection of growth.

Differs from the released code:

- the controller acts on every event and every 0.2 s, not only when a session arrives;
- the end of the arrivals is not known in advance: it is assumed when none came for ten mean gaps;
- the arrival rate in the needle rule is the one observed, not the one configured;
- with nothing in flight the shortest session always enters (the release can wait for ever);
- sub-agents, which the release does not have, enter with their parents and need no place;
- running turns are sorted again after every change and every 0.1 s, not at every decode step;
- the in-engine window is the engine's limit of 30 running turns plus the order of the queue;
- a waiting turn starts only when its whole prompt fits, the rule of the suite's engine; the older
  vLLM of the release lacks it (``scheduler_reserve_full_isl`` false; far worse under pressure);
- tool slots: one call per core, first come first served, without the release's fixed core numbers.

``pool`` 8, ``window_min`` 2 and ``needle_slots`` 1 are the values of its OpenHands driver.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields

from mars_impl.control_plane import Pressure
from marsbench.admission.base import Oversubscribe, SessionView, SystemView
from marsbench.core import PolicyContext
from marsbench.events import Event, Kind
from marsbench.scheduler.base import EngineView, Key, TurnView
from marsbench.system import Policies, System

LEVEL_ENDS_TOKENS = (2_048, 8_192, 32_768)
QUANTA_TOKENS = (2_048, 1_024, 512, 256)
WORST_LEVEL = 3
AGEING_S = 30.0
"""A level better for each so long without being scheduled."""
NEVER_SCHEDULED_S = 150.0
"""Age of a turn that has never run: five levels, so that its first chunk is one of level 0."""
ENGINE_WINDOW = 30
"""Turns in the engine, running and waiting, that take part; the rest queue behind them."""
RESORT_S = 0.1
EMA_WEIGHT = 0.2
QUIET_GAPS = 10.0
"""So many mean gaps without an arrival count as the end of arrivals."""


@dataclass(frozen=True, slots=True)
class PreviewParams:
    """What the preview's scripts can set, with the values of its replay script."""

    pool: float = 30.0
    """Most sessions in flight."""
    window_min: float = 4.0
    window_decrease: float = 0.7
    control_s: float = 0.2
    cpu_low: float = 1.0
    """Tool calls, queued and running, per core."""
    cpu_high: float = 4.0
    cpu_wait_low_s: float = 2.0
    cpu_wait_high_s: float = 5.0
    kv_low: float = 0.85
    """Share of referenced blocks."""
    kv_high: float = 0.90
    long_tokens: float = 50_000.0
    needle_slots: float = 2.0
    tail_kv_ratio: float = 0.95
    quantum_scale: float = 1.0
    """Ours: all quanta times this, for tuning."""

    @classmethod
    def of(cls, context: PolicyContext) -> PreviewParams:
        """Return the defaults with the context's overrides on top."""
        defaults = cls()
        given = {f.name: context.params.get(f.name, getattr(defaults, f.name)) for f in fields(cls)}
        return cls(**given)


def length_level(tokens: int) -> int:
    """Return the level of a prompt, or of the part of it that is left."""
    return sum(tokens > end for end in LEVEL_ENDS_TOKENS)


class PreviewQueue:
    """Scheduling policy: the preview's multi-level feedback over single turns."""

    reorders_running = True
    resort_s = RESORT_S

    def __init__(self, quantum_scale: float = 1.0) -> None:
        self._quanta = tuple(int(tokens * quantum_scale) for tokens in QUANTA_TOKENS)
        self._active: set[int] = set()
        self._overflow: deque[int] = deque()
        self._feedback: dict[int, int] = {}
        self._front: dict[int, int] = {}
        """Preempted sessions: the more negative, the closer to the front."""
        self._fronts = 0
        self._granted: dict[int, int] = {}
        """Quantum of the level each turn was last given, before any shrinking."""

    def on_event(self, event: Event) -> None:
        """Follow who is in the engine; a session has at most one turn there."""
        if event.kind == Kind.GPU_SUBMIT:
            self._overflow.append(event.session)
            self._refill()
        elif event.kind == Kind.GPU_PREEMPT:
            self._fronts -= 1
            self._front[event.session] = self._fronts
            self._feedback.pop(event.session, None)
        elif event.kind in {Kind.GPU_END, Kind.SESSION_END}:
            self._leave(event.session)

    def _refill(self) -> None:
        while self._overflow and len(self._active) < ENGINE_WINDOW:
            self._active.add(self._overflow.popleft())

    def _leave(self, session: int) -> None:
        self._active.discard(session)
        if session in self._overflow:
            self._overflow.remove(session)
        for table in (self._feedback, self._front, self._granted):
            table.pop(session, None)
        self._refill()

    def waiting_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """Serve the window first: by the level of the whole prompt, preempted turns at the front of
        level 0. Behind the window the order is that of submission.
        """
        if turn.session not in self._active:
            return (1.0, 0.0, float(turn.sequence))
        if turn.session in self._front:
            return (0.0, 0.0, float(self._front[turn.session]))
        return (0.0, float(length_level(turn.prompt_tokens)), float(turn.sequence))

    def level(self, turn: TurnView, view: EngineView, now_s: float) -> int:
        """Return the effective level: the worse of feedback and what is left, less one per 30 s of
        waiting.
        """
        base = self._base_level(turn, view)
        waited_s = now_s - turn.last_scheduled_s
        if turn.computed_tokens == 0 and turn.num_preemptions == 0:
            waited_s = max(waited_s, NEVER_SCHEDULED_S)
        return max(base - math.floor(waited_s / AGEING_S), 0)

    def _base_level(self, turn: TurnView, view: EngineView) -> int:
        """Level without ageing, after prefix hits; -1 while decoding."""
        left = turn.prompt_tokens - (turn.computed_tokens or view.cached_tokens(turn))
        if left <= 0:
            return -1
        return max(self._feedback.get(turn.session, 0), length_level(left))

    def running_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """Order running turns by effective level, then least recently scheduled, then arrival."""
        return (float(self.level(turn, view, now_s)), turn.last_scheduled_s, float(turn.sequence))

    def prefill_quantum(self, turn: TurnView, view: EngineView, now_s: float) -> int | None:
        """Return a smaller chunk for a worse level; for a waiting turn it is halved until it
        fits.
        """
        quantum = self._quanta[self.level(turn, view, now_s)]
        self._granted[turn.session] = quantum
        if turn.computed_tokens == 0:
            room = view.free_blocks * view.block_size
            while quantum > view.block_size and quantum > room:
                quantum = max(quantum // 2, view.block_size)
        return quantum

    def on_scheduled(
        self, turn: TurnView, new_tokens: int, quantum: int | None, now_s: float
    ) -> None:
        """Lower a turn by one level that used its whole quantum and has prompt left; once the
        prompt is done it is at level 0 again.
        """
        left = turn.prompt_tokens - turn.computed_tokens - new_tokens
        if left <= 0:
            self._feedback.pop(turn.session, None)
        elif new_tokens >= self._granted.get(turn.session, math.inf):
            worse = self._feedback.get(turn.session, 0) + 1
            self._feedback[turn.session] = min(worse, WORST_LEVEL)

    def victim_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """Preempt the worst level first, without ageing, then the most blocks, then the latest;
        decodes last.
        """
        level = self._base_level(turn, view)
        return (float(level), float(turn.num_blocks), turn.ready_s, float(turn.sequence))

    def skip_blocked(self) -> bool:
        """Stop at the first turn that does not fit, as vLLM does."""
        return False

    def shrink_chunks(self) -> bool:
        """Return True: a chunk is halved before anyone is preempted for it."""
        return True


class PreviewController(Oversubscribe):
    """Admission and tool slots: the preview's controller in front of the engine."""

    gates_continuations = False

    def __init__(self, params: PreviewParams, block_size: int) -> None:
        self.params = params
        self.tick_s: float | None = params.control_s
        self.cpu = Pressure()
        self.kv = Pressure()
        self.window = params.pool
        self.mode = ""
        """Order of the backlog at the last decision."""
        self.queue_wait_s = 0.0
        self._block_size = block_size
        self._first_prompt: dict[int, int] = {}
        self._queued_s: dict[tuple[int, int, int], float] = {}
        self._controlled_s = -math.inf
        self._arrivals = 0
        self._first_arrival_s = 0.0
        self._last_arrival_s = 0.0
        self._short_seen_s = -math.inf

    def on_event(self, event: Event) -> None:
        """Sizes of sessions, pace of arrivals, waiting for tool slots."""
        if event.kind == Kind.SESSION_ARRIVE:
            self._first_prompt[event.session] = event.get("prompt_tokens")
            if event.get("parent") < 0:
                self._arrivals += 1
                self._last_arrival_s = event.time_s
                if self._arrivals == 1:
                    self._first_arrival_s = event.time_s
        elif event.kind == Kind.SESSION_END:
            self._first_prompt.pop(event.session, None)
        elif event.kind == Kind.TOOL_ENQUEUED:
            self._queued_s[event.session, event.turn, event.call] = event.time_s
        elif event.kind == Kind.TOOL_START:
            key = (event.session, event.turn, event.call)
            waited_s = event.time_s - self._queued_s.pop(key, event.time_s)
            self.queue_wait_s += EMA_WEIGHT * (waited_s - self.queue_wait_s)

    # --- what it measures ------------------------------------------------------------------

    def mean_gap_s(self) -> float:
        """Return the mean time between arrivals so far, seconds; infinite before the second."""
        if self._arrivals < 2:
            return math.inf
        return (self._last_arrival_s - self._first_arrival_s) / (self._arrivals - 1)

    def _backlog(self, view: SystemView) -> float:
        calls = view.tools_running + view.tools_queued
        return calls / view.tool_cores if view.tool_cores else 0.0

    def _cpu_healthy(self, view: SystemView) -> bool:
        p = self.params
        return self._backlog(view) <= p.cpu_low and self.queue_wait_s <= p.cpu_wait_low_s

    def _usage(self, view: SystemView) -> float:
        return 1.0 - view.free_blocks / view.num_blocks

    def _budget(self, view: SystemView) -> int:
        """Free blocks above the reserve."""
        return view.free_blocks - math.ceil(view.num_blocks * (1.0 - self.params.kv_high))

    def _blocks(self, session: int) -> int:
        return -(-self._first_prompt[session] // self._block_size)

    def _is_long(self, session: int) -> bool:
        return self._first_prompt[session] > self.params.long_tokens

    # --- window ----------------------------------------------------------------------------

    def cpu_cap(self, view: SystemView) -> float:
        """Return how many sessions the tool cores can take."""
        p = self.params
        if not view.tool_cores:
            return p.pool
        wanted = math.ceil(view.tool_cores * (p.cpu_low + p.cpu_high) / 2.0)
        return min(max(wanted, p.window_min), p.pool)

    def kv_cap(self, view: SystemView) -> float:
        """Return how many sessions memory can take: the pool below the low mark, the least window
        above the high one, linear between.
        """
        p = self.params
        room = (p.kv_high - self._usage(view)) / (p.kv_high - p.kv_low)
        return math.floor(p.window_min + (p.pool - p.window_min) * min(max(room, 0.0), 1.0))

    def control(self, view: SystemView, now_s: float) -> None:
        """Update the flags with hysteresis, then take one AIMD step, at most once per control
        interval.
        """
        p = self.params
        if now_s - self._controlled_s < p.control_s:
            return
        self._controlled_s = now_s
        usage, healthy = self._usage(view), self._cpu_healthy(view)
        self.cpu.update(
            high=self._backlog(view) >= p.cpu_high or self.queue_wait_s >= p.cpu_wait_high_s,
            low=healthy,
        )
        self.kv.update(high=usage >= p.kv_high, low=usage <= p.kv_low)
        if self.cpu.on or self.kv.on:
            self.window = max(p.window_min, math.floor(p.window_decrease * self.window))
        elif healthy and usage <= p.kv_low and self._budget(view) > 0:
            self.window = min(p.pool, self.window + 1.0)
        self.window = min(self.window, self.cpu_cap(view), self.kv_cap(view))

    # --- admission -------------------------------------------------------------------------

    def admit(
        self, pending: Sequence[SessionView], view: SystemView, now_s: float
    ) -> Sequence[SessionView]:
        """Fill the free slots in the order of the present mode, skipping what does not fit."""
        self.control(view, now_s)
        in_flight = [s.session for s in view.active if not s.is_child]
        shorts = [s for s in pending if not self._is_long(s.session)]
        longs = [s for s in pending if self._is_long(s.session)]
        if shorts:
            self._short_seen_s = now_s
        limit = min(self.window, self.cpu_cap(view), self.kv_cap(view))
        free = int(limit) - len(in_flight)
        if not shorts and now_s - self._last_arrival_s > QUIET_GAPS * self.mean_gap_s():
            self.mode = "tail_kv_drain_fit"
            chosen = self._tail(longs, in_flight, view)
        elif self._low_pressure(pending, free, view):
            self.mode = "low_pressure_fcfs"
            chosen = self._pack(pending, free, view)
        elif self.cpu.on:
            self.mode = "cpu_overloaded_long_first"
            chosen = self._pack(sorted(pending, key=lambda s: -s.prompt_tokens), free, view)
        else:
            self.mode = "short_first"
            ordered = sorted(shorts, key=lambda s: s.prompt_tokens)
            needles = self._needles(longs, in_flight, now_s)
            chosen = self._pack([*ordered, *needles], free, view)
        if not chosen and not in_flight:
            return sorted(pending, key=lambda s: s.prompt_tokens)[:1]
        return chosen

    def _low_pressure(self, pending: Sequence[SessionView], free: int, view: SystemView) -> bool:
        calm = not self.cpu.on and not self.kv.on and self._cpu_healthy(view)
        return calm and self._usage(view) <= self.params.kv_low and len(pending) <= free

    def _pack(
        self, ordered: Sequence[SessionView], slots: int, view: SystemView
    ) -> list[SessionView]:
        """Best effort: who does not fit into the budget lets later ones pass."""
        return self._fill(ordered, slots, self._budget(view))

    def _fill(self, ordered: Sequence[SessionView], slots: int, budget: float) -> list[SessionView]:
        chosen: list[SessionView] = []
        for candidate in ordered:
            blocks = self._blocks(candidate.session)
            if len(chosen) < slots and blocks <= budget:
                chosen.append(candidate)
                budget -= blocks
        return chosen

    def _needles(
        self, longs: Sequence[SessionView], in_flight: Sequence[int], now_s: float
    ) -> list[SessionView]:
        """Long sessions that may slip in: no short one was queued for a while, memory is calm."""
        patience_s = max(0.2, min(5.0, self.mean_gap_s()))
        quiet = not in_flight or now_s - self._short_seen_s >= patience_s
        if self.kv.on or not quiet:
            return []
        places = int(self.params.needle_slots) - sum(map(self._is_long, in_flight))
        return sorted(longs, key=lambda s: s.prompt_tokens)[: max(places, 0)]

    def _tail(
        self, longs: Sequence[SessionView], in_flight: Sequence[int], view: SystemView
    ) -> list[SessionView]:
        """Only long sessions are left: fixed pool, arrival order, packed into the free blocks."""
        running = [session for session in in_flight if self._is_long(session)]
        slots = int(self.params.pool) - len(in_flight)
        if len(running) < len(in_flight):
            slots = 1 - len(running)
        budget = view.free_blocks * self.params.tail_kv_ratio - sum(map(self._blocks, running))
        chosen = self._fill(longs, slots, budget)
        return chosen if chosen or running else list(longs[:1])

    # --- tool slots ------------------------------------------------------------------------

    def slots(self, view: SystemView, now_s: float) -> int | None:
        """Return one worker per tool core."""
        return view.tool_cores or None


def build(context: PolicyContext) -> Policies:
    """Build the authors' public preview for a deployment."""
    params = PreviewParams.of(context)
    queue = PreviewQueue(params.quantum_scale)
    controller = PreviewController(params, context.block_size)
    return Policies(scheduling=queue, admission=controller, tools=controller)


PREVIEW = System(
    name="mars-preview",
    summary="the authors' public preview of MARS, rule by rule (no retention)",
    build=build,
    engine={"max_num_seqs": ENGINE_WINDOW},
    tunable={"pool": (4.0, 8.0, 16.0, 30.0), "quantum_scale": (1.0, 16.0)},
)
