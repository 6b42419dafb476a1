"""What MARS derives from the unified information stream: sessions and resources as of now.

Paper: "unified information stream" (arXiv:2604.26963); fields follow the public preview's events.
Everything here was observed; nothing is read from a trace's future.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from mars_impl.estimate import ClassModel, GapModel, Growth
from marsbench.events import Event, Kind

BUSY_WINDOW_S = 120.0
"""Time constant of the engine's busy share."""
LOSS_DECAY = 0.98
"""Per finished turn: the loss is an average over some fifty turns."""


@dataclass(slots=True)
class SessionInfo:
    """One session as the stream shows it."""

    session: int
    root: int
    """Top-level session it belongs to (itself, or the one that started this sub-agent)."""
    arrival_s: float
    first_prompt: int
    rank: float = math.inf
    """Order of admission of its root: smaller = higher priority, everywhere."""
    context: int = 0
    """Tokens of its context: last prompt, plus output once the turn has ended."""
    last_prompt: int = 0
    shared: int = 0
    """Tokens of the first prompt that were already cached: memory that others hold too."""
    turns: int = 0
    """Turns finished."""
    phase: str = "backlog"
    since_s: float = 0.0
    admitted_s: float = math.inf
    work_tokens: int = 0
    calls: dict[int, tuple[str, float]] = field(default_factory=dict)
    """Outstanding tool calls: index -> (name, start; inf while queued)."""
    children: int = 0
    """Sub-agents it waits for."""

    @property
    def private(self) -> int:
        """Tokens of KV that are its own."""
        return max(self.context - self.shared, 0)


class StreamState:
    """Sessions and resources, updated event by event."""

    def __init__(self, *, ema: float, history: int, gap_samples: float) -> None:
        self.sessions: dict[int, SessionInfo] = {}
        """Unfinished sessions."""
        self.growth = Growth()
        self.gaps = GapModel(gap_samples)
        self.classes = ClassModel(history)
        self.now_s = 0.0
        self.tool_wait_s = 0.0
        """Moving average of the time tool calls wait for a slot."""
        self.stretch = 1.0
        """Moving average of tool durations over what their names lead to expect."""
        self.busy = 0.0
        """Share of recent time in which the engine had a turn to work on."""
        self._in_engine = 0
        self.turns = 0
        """Turns finished, of all sessions."""
        self._recomputed = 0.0
        self._prompted = 1.0
        self.shared_resident = 0
        """Largest shared prefix seen: resident once for all."""
        self.arrivals = 0
        self._ema = ema
        self._next_rank = 0.0
        self._queued: dict[tuple[int, int, int], float] = {}

    def on_event(self, event: Event) -> None:
        """Take one event in."""
        self._pass_time(event.time_s)
        kind = event.kind
        if kind == Kind.GPU_SUBMIT:
            self._in_engine += 1
        elif kind == Kind.GPU_END:
            self._in_engine -= 1
        if kind == Kind.SESSION_ARRIVE:
            self._arrive(event)
            return
        info = self.sessions.get(event.session)
        if info is None:
            return
        if kind == Kind.TURN_READY:
            self._ready(info, event)
        elif kind == Kind.GPU_SUBMIT:
            self._submit(info, event)
        elif kind == Kind.GPU_SCHED_FIRST:
            if event.turn == 0:
                info.shared = event.args[0]
                self.shared_resident = max(self.shared_resident, event.args[0])
        elif kind == Kind.GPU_END:
            self._turn_end(info, event)
        elif kind == Kind.SESSION_END:
            self._end(info, event)
        else:
            self._tool(info, event)

    def _pass_time(self, now_s: float) -> None:
        span = now_s - self.now_s
        if span > 0:
            keep = math.exp(-span / BUSY_WINDOW_S)
            self.busy = keep * self.busy + (1.0 - keep) * float(self._in_engine > 0)
            self.now_s = now_s

    @property
    def loss(self) -> float:
        """Share of recent prompt tokens that had been in the cache and were computed again."""
        return self._recomputed / self._prompted

    def _arrive(self, event: Event) -> None:
        parent = event.args[1]
        root = event.session
        info = SessionInfo(event.session, root, event.time_s, event.args[0])
        info.context = info.last_prompt = event.args[0]
        info.since_s = event.time_s
        holder = self.sessions.get(parent)
        if holder is not None:
            info.root = holder.root
            info.rank = holder.rank
            holder.children += 1
        else:
            self.arrivals += 1
        self.sessions[event.session] = info

    def _ready(self, info: SessionInfo, event: Event) -> None:
        prompt = event.args[0]
        if event.turn > 0:
            self.growth.observe(prompt - info.last_prompt)
            info.calls.clear()
        info.last_prompt = prompt
        info.context = prompt
        info.phase = "ready"
        info.since_s = event.time_s

    def _submit(self, info: SessionInfo, event: Event) -> None:
        info.phase = "engine"
        info.since_s = event.time_s
        if math.isinf(info.admitted_s):
            info.admitted_s = event.time_s
            if math.isinf(info.rank):
                info.rank = self._next_rank
                self._next_rank += 1.0

    def _turn_end(self, info: SessionInfo, event: Event) -> None:
        output, cached, prefilled, recomputed = event.args[:4]
        info.turns += 1
        info.context = info.last_prompt + output
        info.work_tokens += prefilled + output
        info.phase = "tool"
        info.since_s = event.time_s
        self.turns += 1
        self._recomputed = LOSS_DECAY * self._recomputed + recomputed
        self._prompted = LOSS_DECAY * self._prompted + cached + prefilled

    def _end(self, info: SessionInfo, event: Event) -> None:
        del self.sessions[info.session]
        if info.root != info.session:
            parent = self.sessions.get(info.root)
            if parent is not None:
                parent.children = max(parent.children - 1, 0)
            return
        if info.turns:
            self.classes.observe(
                info.first_prompt,
                turns=info.turns,
                private=info.private,
                active_s=event.time_s - info.admitted_s,
            )

    def _tool(self, info: SessionInfo, event: Event) -> None:
        key = (event.session, event.turn, event.call)
        if event.kind == Kind.TOOL_ENQUEUED:
            info.calls[event.call] = (event.name, math.inf)
            self._queued[key] = event.time_s
        elif event.kind == Kind.TOOL_START:
            info.calls[event.call] = (event.name, event.time_s)
            waited = event.time_s - self._queued.pop(key, event.time_s)
            self.tool_wait_s += self._ema * (waited - self.tool_wait_s)
        elif event.kind == Kind.TOOL_END:
            name, start_s = info.calls.pop(event.call, (event.name, event.time_s))
            took = event.time_s - start_s
            ratio = min(took / self.gaps.expected_s(name), 10.0)
            self.stretch += 0.02 * (ratio - self.stretch)
            self.gaps.observe(name, took)
