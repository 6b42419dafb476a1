"""What MARS derives from the unified information stream: sessions and resources as of now.

Paper: "unified information stream" (arXiv:2604.26963); fields follow the public preview's events.
Everything here was observed; nothing is read from a trace's future.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from mars_impl.estimate import ClassModel, GapModel, Growth, ToolWaits
from marsbench.core import PS_PER_S
from marsbench.events import Event, Kind, Status

BUSY_WINDOW_S = 120.0
"""Time constant of what turns took and of how busy the tool cores were."""
WAIT_WEIGHT = 0.2
"""Weight of the newest wait for a tool slot, as in the preview; worth less than 0.5 %."""
LEAST_SPARE = 0.02
"""An engine with a smaller share of its speed to spare counts as full."""


@dataclass(slots=True)
class SessionInfo:
    """One session as the stream shows it."""

    session: int
    root: int
    """Top-level session it belongs to (itself, or the one that started this sub-agent)."""
    arrival_s: float
    first_prompt: int
    rank: float = math.inf
    """Order of arrival of its root, once that is admitted: smaller = higher priority, everywhere."""
    order: float = 0.0
    """Order of arrival."""
    context: int = 0
    """Tokens of its context: last prompt, plus output once the turn has ended."""
    last_prompt: int = 0
    previous_prompt: int = 0
    """The prompt before that."""
    kept: int = 0
    """Its context when its last turn ended."""
    alone_s: float = 0.0
    """Time its turns would have taken alone, on a warm cache, and the time in its tools."""
    shared: int = 0
    """Leading tokens of its context that others have computed: memory that they hold too."""
    turns: int = 0
    """Turns finished."""
    phase: str = "backlog"
    since_s: float = 0.0
    admitted_s: float = math.inf
    resident: bool = False
    """Its working set has a place in memory, as far as the control plane is concerned."""
    judged_s: float = -math.inf
    """When lending that place was last considered."""
    calls: dict[int, tuple[str, float]] = field(default_factory=dict)
    """Outstanding tool calls: index -> (name, start; inf while queued)."""
    top: SessionInfo = field(init=False, repr=False, compare=False)
    """The session ``root`` is while that is unfinished, else this one."""
    children: int = 0
    """Unfinished sub-agents whose root it is."""

    def __post_init__(self) -> None:
        self.top = self

    @property
    def private(self) -> int:
        """Tokens of KV that are its own."""
        return max(self.context - self.shared, 0)


class StreamState:
    """Sessions and resources, updated event by event."""

    def __init__(
        self,
        *,
        turn_s: Callable[[int, int, int], float],
        tool_cores: int = 0,
    ) -> None:
        """``turn_s``: seconds of a turn alone, by tokens prefilled, of the prompt and made."""
        self.sessions: dict[int, SessionInfo] = {}
        """Unfinished sessions."""
        self.residents: dict[int, SessionInfo] = {}
        """Those that were given a place in memory; their sub-agents share it."""
        self.in_engine: dict[int, SessionInfo] = {}
        """Those with a turn there."""
        self.sub_agents: dict[int, SessionInfo] = {}
        """Those whose root is unfinished."""
        self.num_admitted = 0
        """Unfinished top-level sessions that have a rank."""
        self.growth = Growth()
        self.gaps = GapModel()
        self.waits = ToolWaits()
        self.classes = ClassModel()
        self.now_s = 0.0
        self.tool_wait_s = 0.0
        """Moving average of the time tool calls wait for a slot."""
        self._alone_s = self._took_s = 1.0
        """Of recent turns: engine time each would have taken alone, and took."""
        self.tool_busy = 0.0
        """Share of the tool cores' recent time that calls have used; 0 where nobody tells."""
        self.cores_told = False
        """Whether anybody does."""
        self.shared_resident = 0
        """Largest shared prefix seen: resident once for all."""
        self._turn_s = turn_s
        self._tool_cores = tool_cores
        self._cores_seen = (0.0, 0)
        """Time and used core time of the last telemetry."""
        self.ranks = itertools.count()
        """Order of arrival, of all replicas where there are several."""
        self._queued: dict[tuple[int, int, int], float] = {}
        self._takes: dict[Kind, Callable[[SessionInfo, Event], None]] = {
            Kind.TURN_READY: self._ready,
            Kind.GPU_SUBMIT: self._submit,
            Kind.GPU_SCHED_FIRST: self._start,
            Kind.GPU_END: self._turn_end,
            Kind.SESSION_END: self._end,
            Kind.TOOL_ENQUEUED: self._tool_queued,
            Kind.TOOL_START: self._tool_start,
            Kind.TOOL_END: self._tool_end,
        }

    def on_event(self, event: Event) -> None:
        """Take one event in."""
        self._pass_time(event.time_s)
        kind = event.kind
        if kind == Kind.SESSION_ARRIVE:
            self._arrive(event)
            return
        if kind == Kind.CPU_STATS:
            self._cores(event)
            return
        take = self._takes.get(kind)
        if take is not None and (info := self.sessions.get(event.session)) is not None:
            take(info, event)

    def learns_with(self, other: StreamState) -> None:
        """Share with another state what either observes of growth, tools and classes, and the order
        of arrival.
        """
        self.growth, self.gaps, self.waits = other.growth, other.gaps, other.waits
        self.classes, self.ranks = other.classes, other.ranks

    def adopt(self, info: SessionInfo) -> None:
        """Take in a session that goes on here."""
        self.sessions[info.session] = info
        if info.resident:
            self.residents[info.session] = info
        if info.phase == "engine":
            self.in_engine[info.session] = info
        if info.top is not info:
            self.sub_agents[info.session] = info
        self.num_admitted += info.root == info.session and not math.isinf(info.rank)

    def release(self, session: int) -> SessionInfo:
        """Give away a session that goes on elsewhere; returns what is known of it."""
        info = self._forget(session)
        self.num_admitted -= info.root == info.session and not math.isinf(info.rank)
        return info

    def seat(self, info: SessionInfo) -> None:
        """Give a session a place in memory."""
        info.resident = True
        self.residents[info.session] = info

    def unseat(self, info: SessionInfo) -> None:
        """Take a session's place away, if it has one."""
        info.resident = False
        self.residents.pop(info.session, None)

    def _forget(self, session: int) -> SessionInfo:
        for known in (self.residents, self.in_engine, self.sub_agents):
            known.pop(session, None)
        return self.sessions.pop(session)

    def waited_for_slot(self, seconds: float) -> None:
        """Learn that a tool call started after so long in the queue."""
        self.tool_wait_s += WAIT_WEIGHT * (seconds - self.tool_wait_s)

    @property
    def spare(self) -> float:
        """Share of the engine's speed that more turns could have: 1 where turns take as long as alone.

        A batch is seldom full when something runs. Shared equally by load rho, an engine serves each
        turn at 1 - rho of its speed (processor sharing), so that this is what turns took, inverted.
        """
        return min(self._alone_s / self._took_s, 1.0) if self._took_s > 0 else 1.0

    def _pass_time(self, now_s: float) -> None:
        span = now_s - self.now_s
        if span > 0:
            keep = math.exp(-span / BUSY_WINDOW_S)
            self._alone_s *= keep
            self._took_s *= keep
            self.now_s = now_s

    def _cores(self, event: Event) -> None:
        then_s, before_ps = self._cores_seen
        self._cores_seen = (event.time_s, event.args[2])
        span_s = event.time_s - then_s
        if self._tool_cores and span_s > 0:
            self.cores_told = True
            used = (event.args[2] - before_ps) / PS_PER_S / (span_s * self._tool_cores)
            keep = math.exp(-span_s / BUSY_WINDOW_S)
            self.tool_busy = keep * self.tool_busy + (1.0 - keep) * min(used, 1.0)

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
            info.top = self.sessions.get(info.root, info)
            if info.top is not info:
                info.top.children += 1
                self.sub_agents[info.session] = info
        else:
            info.order = float(next(self.ranks))
        self.sessions[event.session] = info

    def _ready(self, info: SessionInfo, event: Event) -> None:
        prompt = event.args[0]
        info.first_prompt = info.first_prompt or prompt  # a live agent arrives before it has one
        if event.turn > 0:
            self.growth.observe(prompt - info.last_prompt)
            if info.phase == "tool":
                self.waits.observe(event.time_s - info.since_s)
                info.alone_s += event.time_s - info.since_s
            info.calls.clear()
        info.previous_prompt = info.last_prompt
        info.last_prompt = prompt
        info.context = prompt
        self._moves(info, "ready", event)

    def _moves(self, info: SessionInfo, phase: str, event: Event) -> None:
        if phase == "engine":
            self.in_engine[info.session] = info
        else:
            self.in_engine.pop(info.session, None)
        info.phase = phase
        info.since_s = event.time_s
        info.judged_s = -math.inf

    def _submit(self, info: SessionInfo, event: Event) -> None:
        self._moves(info, "engine", event)
        if math.isinf(info.admitted_s):
            info.admitted_s = event.time_s
            if math.isinf(info.rank):
                info.rank = info.order
                self.num_admitted += info.root == info.session

    def _start(self, info: SessionInfo, event: Event) -> None:
        cached = event.args[0]
        if event.turn == 0 or cached > info.kept:
            self._shares(info, cached)

    def _shares(self, info: SessionInfo, cached: int) -> None:
        """Others have computed so much of its prompt: all of a first turn's hit, and in later turns
        whatever goes beyond its own last context. Agents that start together find nothing cached
        yet, and their prompts may begin alike for longer than the first one is.
        """
        if info.turns:
            grown = info.last_prompt - info.previous_prompt
            self.growth.revise(grown, grown - (cached - info.shared))
        info.shared = cached
        self.classes.observe_shared(info.first_prompt, info.turns, cached)
        self.shared_resident = max(self.shared_resident, cached)

    def _turn_end(self, info: SessionInfo, event: Event) -> None:
        output, _, prefilled = event.args[:3]
        cached = info.kept if info.turns and info.kept <= info.last_prompt else info.shared
        new = max(info.last_prompt - cached, 1)
        info.alone_s += self._turn_s(new, info.last_prompt, output)
        info.turns += 1
        info.context = info.kept = info.last_prompt + output
        self._alone_s += self._turn_s(prefilled, info.last_prompt, output)
        self._took_s += event.time_s - info.since_s
        self._moves(info, "tool", event)

    def _end(self, info: SessionInfo, event: Event) -> None:
        self._moves(info, "done", event)
        self._forget(info.session)
        if info.top is not info:
            info.top.children -= 1
        elif info.children:
            self._orphan(info)
        if info.root == info.session and not math.isinf(info.rank):
            self.num_admitted -= 1
        if info.root == info.session and info.turns and event.args[0] != Status.MOVED:
            self.classes.observe(
                info.first_prompt,
                turns=info.turns,
                private=info.private,
                active_s=event.time_s - info.admitted_s,
                alone_s=info.alone_s,
            )

    def _orphan(self, root: SessionInfo) -> None:
        """Sub-agents that outlive their root are on their own."""
        for info in list(self.sub_agents.values()):
            if info.top is root:
                info.top = info
                del self.sub_agents[info.session]

    def _tool_queued(self, info: SessionInfo, event: Event) -> None:
        info.calls[event.call] = (event.name, math.inf)
        self._queued[event.session, event.turn, event.call] = event.time_s

    def _tool_start(self, info: SessionInfo, event: Event) -> None:
        info.calls[event.call] = (event.name, event.time_s)
        key = (event.session, event.turn, event.call)
        self.waited_for_slot(event.time_s - self._queued.pop(key, event.time_s))

    def _tool_end(self, info: SessionInfo, event: Event) -> None:
        name, start_s = info.calls.pop(event.call, (event.name, event.time_s))
        self.gaps.observe(name, event.time_s - start_s)
