"""Progress-TTL: sessions stay active over short tool waits, and come back while growth still fits.

Source: vllm-project/router, pull request 286 (open, RFC 285), the rules of one backend.
Reproduced: a session is active or paused; a turn of a paused one waits at the router. When a turn ends,
its session stays active for a TTL of at most 10 s: the maximiser of P(wait <= t) C - E[wait; wait <= t]
- t P(wait > t) under a log-normal of the last 100 waits, C the time to compute its private context again
times 1.85; 0 before there are 100. Waiting turns are let in, those past their deadline first (whatever is
in use), then the session that finished a turn last, one that yielded its place behind the others, while
nobody waits in the engine and the contexts of active sessions, 100 tokens each and the growth of up to 14
rounds each fit; without room for that growth only if a larger batch gains more decode time than computing
the context costs. Once a second sessions pause while contexts and outputs to come exceed the cache,
longest active first, large contexts less; those in the engine at the end of their turn. After 14 rounds
a session yields if anybody waits. Deadline: 3 times the rounds ahead over the rate of turns, 30 to 300 s.
Differs: exact token counts; occupancy is the router's own count, not the engine's; the cost of computing
a context is the engine's, not the router's constants for two L20; the batch's gain leaves out that
longer contexts slow a step; no placement, since there is one backend; no hints from clients.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from marsbench.admission.base import SessionView, SystemView
from marsbench.core import PolicyContext
from marsbench.events import Event, Kind
from marsbench.system import Policies, System

WINDOW = 100
"""Samples that an estimate needs, and keeps."""
PERIOD_S = 1.0
BUFFER_TOKENS = 100
MISS_FACTOR = 1.85
"""Computing a context again delays others too: 2 - 0.15, the share of decode speed that is left."""
FORCE_LOW_S, FORCE_HIGH_S, FORCE_FACTOR = 30.0, 300.0, 3.0
STEP_S, STEP_S_PER_TURN = 0.0106, 0.00042
"""The router's decode step: fixed part and part per turn in the batch; only their ratio matters."""


@dataclass(slots=True)
class Program:
    """What the router remembers of a session."""

    active: bool = False
    marked: bool = False
    """Pauses when its turn ends."""
    yielded: bool = False
    context: int = 0
    last_context: int = 0
    """At the end of its last turn."""
    shared: int = 0
    """Tokens of its first prompt that were cached."""
    rounds: int = 0
    """Turns since it became active."""
    unpaused_rounds: int = 0
    """Turns since its TTL last ran out."""
    active_since_s: float = 0.0
    finished_s: float = -math.inf
    expires_s: float = math.inf
    """Its TTL, while it is in its tools."""
    queued_s: float = math.inf
    deadline_s: float = math.inf
    impact_s: float = 0.0
    """Cost of losing its context when its last turn ended."""
    first_token_s: float = 0.0

    @property
    def tokens(self) -> float:
        """What it occupies."""
        return max(self.context - self.shared, 0) + BUFFER_TOKENS


class Samples:
    """The last WINDOW values."""

    def __init__(self) -> None:
        self.values: deque[float] = deque(maxlen=WINDOW)

    @property
    def complete(self) -> bool:
        return len(self.values) == WINDOW

    @property
    def mean(self) -> float:
        """0 without any."""
        return sum(self.values) / len(self.values) if self.values else 0.0


class ProgressTtl:
    """Admission policy: pause by TTL and capacity, resume by recency and room for growth."""

    gates_continuations = True
    tick_s: float | None = PERIOD_S

    def __init__(self, context: PolicyContext) -> None:
        self._context = context
        params = context.params
        self._capacity = context.num_blocks * context.block_size * params.get("capacity_share", 1.0)
        self._max_ttl_s = params.get("max_ttl_s", 10.0)
        self._max_rounds = params.get("max_rounds", 14.0)
        self._recent_first = params.get("recent_first", 1.0)
        self.programs: dict[int, Program] = {}
        self.waits = Samples()
        self.growth, self.outputs, self.decodes = Samples(), Samples(), Samples()
        self.prompts, self.run_lengths, self.finished = Samples(), Samples(), Samples()
        self._next_s = 0.0

    # --- what the router sees ----------------------------------------------------------------

    def on_event(self, event: Event) -> None:
        """Contexts, waits and rounds, turn by turn."""
        if event.kind == Kind.SESSION_END:
            self.programs.pop(event.session, None)
            return
        if event.kind == Kind.SESSION_ARRIVE:
            self.programs[event.session] = Program()
        program = self.programs.get(event.session)
        if program is None:
            return
        if event.kind == Kind.TURN_READY:
            if event.turn > 0:
                self.waits.values.append(event.time_s - program.finished_s)
            program.context = event.args[0]
            program.expires_s = math.inf
        elif event.kind == Kind.GPU_SCHED_FIRST and event.turn == 0:
            program.shared = event.args[0]
        elif event.kind == Kind.GPU_FIRST_TOKEN:
            program.first_token_s = event.time_s
        elif event.kind == Kind.GPU_END:
            self._finish(program, event)

    def _finish(self, program: Program, event: Event) -> None:
        """A turn has ended: estimates, then the TTL, the mark and the length of the segment."""
        output, now_s = event.args[0], event.time_s
        program.rounds += 1
        program.unpaused_rounds += 1
        grown = program.context + output - program.last_context
        if event.turn > 0 and grown > 0:
            self.growth.values.append(grown)
        self.prompts.values.append(program.context)
        self.outputs.values.append(output)
        self.decodes.values.append(now_s - program.first_token_s)
        self.run_lengths.values.append(program.unpaused_rounds)
        self.finished.values.append(now_s)
        program.context += output
        program.last_context = program.context
        program.finished_s = now_s
        private = max(program.context - program.shared, 0)
        program.impact_s = MISS_FACTOR * self._context.prefill_s(private, private)
        ttl_s = self.ttl_s(program.impact_s)
        program.expires_s = now_s + ttl_s
        if program.marked:
            self._pause(program)
        elif ttl_s <= 0:
            self._expire(program)
        elif program.rounds >= self._max_rounds and any(
            not other.active and math.isfinite(other.queued_s) for other in self.programs.values()
        ):
            self._pause(program)
            program.yielded = True

    def ttl_s(self, impact_s: float) -> float:
        """Return the most useful time to stay active in the tools, seconds; 0 if none pays."""
        high = min(self._max_ttl_s, impact_s)
        waits = [wait for wait in self.waits.values if wait > 0]
        if not self.waits.complete or not waits or high <= 0:
            return 0.0
        logs = [math.log(wait) for wait in waits]
        mean = sum(logs) / len(logs)
        sigma = max(math.sqrt(sum((x - mean) ** 2 for x in logs) / len(logs)), 1e-6)
        whole = math.exp(mean + sigma * sigma / 2)
        low = min(0.05, high)
        best_s, best_value = 0.0, 0.0
        for step in range(32):
            ttl = low * (high / low) ** (step / 31)
            z = (math.log(ttl) - mean) / sigma
            back = _normal(z)
            value = impact_s * back - whole * _normal(z - sigma) - ttl * (1 - back)
            if value >= best_value:
                best_s, best_value = ttl, value
        return best_s

    # --- decisions ---------------------------------------------------------------------------

    def admit(
        self, pending: Sequence[SessionView], view: SystemView, now_s: float
    ) -> Sequence[SessionView]:
        """Admit turns of active sessions, and of those that may become active."""
        for program in self.programs.values():
            if program.active and program.expires_s <= now_s:
                self._expire(program)
        if now_s >= self._next_s:
            self._next_s = now_s + PERIOD_S
            in_tools = {s.session for s in view.active if s.phase == "tool"}
            self._repair(in_tools, now_s)
        admitted = [s for s in pending if self.programs[s.session].active]
        waiting = [s for s in pending if not self.programs[s.session].active]
        for session in waiting:
            self._queue(self.programs[session.session], waiting, now_s)
        waiting.sort(key=lambda s: self._order(self.programs[s.session], now_s))
        for session in waiting:
            if self._may_enter(self.programs[session.session], view, now_s):
                self._activate(self.programs[session.session], now_s)
                admitted.append(session)
        if waiting and not admitted and not any(s.phase in {"engine", "tool"} for s in view.active):
            self._activate(self.programs[waiting[0].session], now_s)
            admitted.append(waiting[0])
        return admitted

    def _queue(self, program: Program, waiting: Sequence[SessionView], now_s: float) -> None:
        """Once, when its turn begins to wait: the deadline, by the work that is ahead of it."""
        if math.isfinite(program.queued_s):
            return
        program.queued_s = now_s
        finished = self.finished.values
        span_s = finished[-1] - finished[0] if self.finished.complete else 0.0
        if span_s <= 0:
            program.deadline_s = now_s + FORCE_HIGH_S
            return
        mine = self._order(program, now_s)
        ahead = sum(
            self._order(self.programs[s.session], now_s) < mine
            for s in waiting
            if math.isfinite(self.programs[s.session].queued_s)
        )
        rounds = sum(self._rounds_left()) + ahead * self._target_rounds()
        wait_s = FORCE_FACTOR * rounds * span_s / (WINDOW - 1)
        program.deadline_s = now_s + min(max(wait_s, FORCE_LOW_S), FORCE_HIGH_S)

    def _order(self, program: Program, now_s: float) -> tuple[bool, bool, float, float]:
        recency = -program.finished_s if self._recent_first else 0.0
        return (program.deadline_s > now_s, program.yielded, recency, program.queued_s)

    def _may_enter(self, program: Program, view: SystemView, now_s: float) -> bool:
        if program.deadline_s <= now_s:
            return True
        if view.num_waiting:
            return False
        room = self._capacity - self._used() - program.tokens
        if room < 0:
            return False
        target, left = self._target_rounds(), self._rounds_left()
        growth = max(self.growth.mean, 0.0)
        if growth * (target + sum(left)) <= room:
            return True
        return self._gain_s(program, room, growth) >= 0

    def _gain_s(self, program: Program, room: float, growth: float) -> float:
        """Decode time that one more in the batch saves, less its own prefill and what the others lose by
        the rounds they no longer have room for; negative without enough samples.
        """
        batch = sum(p.active and math.isinf(p.expires_s) for p in self.programs.values())
        if not self.decodes.complete or not batch:
            return -math.inf
        rate = [n / (STEP_S + n * STEP_S_PER_TURN) for n in (batch, batch + 1)]
        gain_s = self.decodes.mean * (rate[1] / rate[0] - 1)
        target = self._target_rounds()
        guarded = [p for p in self.programs.values() if p.active and p.rounds < target]
        left = sum(target - p.rounds for p in guarded)
        loss_s = 0.0
        if growth > 0 and guarded:
            before = min(left, (room + program.tokens) / growth)
            after = min(left, max(room - growth * target, 0.0) / growth)
            if before > 0 and after <= 0:
                return -math.inf
            if after > 0:
                cost_s = sum(p.impact_s for p in guarded) / len(guarded)
                loss_s = (before - after) / after * cost_s
        private = max(program.context - program.shared, 0)
        own_s = MISS_FACTOR * self._context.prefill_s(private, private)
        return gain_s - own_s - loss_s

    def _used(self) -> float:
        return sum(program.tokens for program in self.programs.values() if program.active)

    def _target_rounds(self) -> float:
        """Rounds of growth that are kept free; 0 until there are enough samples."""
        if not self.run_lengths.complete:
            return 0.0
        return min(max(math.ceil(2 * self.run_lengths.mean), 1.0), self._max_rounds)

    def _rounds_left(self) -> list[float]:
        target = self._target_rounds()
        return [max(target - p.rounds, 0.0) for p in self.programs.values() if p.active]

    def _repair(self, in_tools: set[int], now_s: float) -> None:
        """Pause, or mark to pause, until contexts and the outputs to come fit."""
        output = math.ceil(self.outputs.mean)
        active = [(n, p) for n, p in self.programs.items() if p.active]
        used = sum(p.tokens + (0 if n in in_tools else output) for n, p in active if not p.marked)
        if used <= self._capacity:
            return
        usual = max(self.prompts.mean, 1.0)

        def score(program: Program) -> float:
            small = max(math.sqrt(usual / max(program.context, 1)), 0.5)
            return (now_s - program.active_since_s) * small

        for number, program in sorted(active, key=lambda item: (-score(item[1]), item[0])):
            if used <= self._capacity:
                break
            if program.marked:
                continue
            used -= program.tokens
            if number in in_tools:
                self._pause(program)
            else:
                used -= output
                program.marked = True

    # --- transitions -------------------------------------------------------------------------

    def _activate(self, program: Program, now_s: float) -> None:
        program.active, program.yielded = True, False
        program.rounds = 0
        program.active_since_s = now_s
        program.queued_s = program.deadline_s = program.expires_s = math.inf

    def _pause(self, program: Program) -> None:
        program.active = program.marked = False
        program.expires_s = math.inf

    def _expire(self, program: Program) -> None:
        self._pause(program)
        program.unpaused_rounds = 0


def _normal(value: float) -> float:
    """Cumulative standard normal distribution."""
    return 0.5 * (1.0 + math.erf(value / math.sqrt(2.0)))


def build(context: PolicyContext) -> Policies:
    return Policies(admission=ProgressTtl(context))


PROGRESS_TTL = System(
    name="progress-ttl",
    summary="Progress-TTL (vLLM router #286): active for a fitted TTL, back when growth fits, most recent first",
    build=build,
    tunable={
        "max_ttl_s": (2.0, 10.0, 30.0),
        "capacity_share": (0.85, 1.0, 1.15),
        "max_rounds": (7, 14, 28),
        "recent_first": (0, 1),
    },
    limits={
        "max_ttl_s": (0.1, 600.0),
        "capacity_share": (0.25, 4.0),
        "max_rounds": (1, 1000),
        "recent_first": (0, 1),
    },
)
