"""The life of a session: every transition from arrival to end, and the event that each one emits.

::

    arrive -> ready -> submit -> (in the engine: scheduled, first token, preempted, resumed, finished)
                ^                     |
                |                     v
                +-- tools end <- tools start <- tools queued <- returned        end

This is all there is to it, and it stands here once. Three drivers call it: the replay in virtual
time (``engine.loop``), the replay on the wall clock (``engine.live.wall``) and the gateway
(``marsbench.gateway``). They know *when* something happens; this module knows what it does to the
session, which phase follows and what is written to the information stream.

Times are picoseconds and are given by the caller. Nothing here reads a clock, decides anything, or
knows what a session will do next: a ``SessionState`` is also what policies are shown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from marsbench.core import Phase, to_s
from marsbench.engine.base import Request, StoredChunks, TurnKey
from marsbench.events import FIELDS, Event, Kind, Status
from marsbench.records import EventLog, pack_row
from marsbench.system import is_null

HIT_WINDOW = 64
"""Turns over which the prefix cache hit rate of the telemetry is taken."""


class SessionState:
    """What has happened to one session so far (``admission.base.SessionView``).

    It holds the past and the present only, so it can be handed to any policy.
    """

    __slots__ = (
        "admitted",
        "arrival_ps",
        "context_tokens",
        "parent",
        "phase",
        "phase_since_ps",
        "prompt_tokens",
        "served_tokens",
        "session",
        "session_id",
        "turn_index",
    )

    def __init__(self, session: int, session_id: str, parent: SessionState | None = None) -> None:
        self.session = session
        self.session_id = session_id
        self.parent = parent
        """The session whose turn started this one; None unless it is a sub-agent."""
        self.arrival_ps = 0
        self.turn_index = 0
        self.prompt_tokens = 0
        """Prompt of the current turn."""
        self.context_tokens = 0
        """Last prompt plus last output; before the first turn has ended, its prompt."""
        self.served_tokens = 0
        """Prefill and decode tokens that the engine has computed for it."""
        self.phase = Phase.NEW
        self.phase_since_ps = 0
        self.admitted = False

    @property
    def arrival_s(self) -> float:
        """Arrival, seconds."""
        return to_s(self.arrival_ps)

    @property
    def phase_since_s(self) -> float:
        """When the current phase began, seconds."""
        return to_s(self.phase_since_ps)

    @property
    def is_child(self) -> bool:
        """A sub-agent: its parent is active and waits for it."""
        return self.parent is not None


class CallState:
    """A tool call that waits for a slot or runs (``admission.base.ToolCallView``)."""

    __slots__ = (
        "call_index",
        "class_code",
        "name",
        "name_code",
        "queued_ps",
        "state",
        "tool_class",
        "turn_index",
    )

    def __init__(
        self,
        state: SessionState,
        call_index: int,
        *,
        name: str,
        tool_class: str,
        name_code: int,
        class_code: int,
    ) -> None:
        self.state = state
        self.turn_index = state.turn_index
        """Turn that made the call."""
        self.call_index = call_index
        self.name = name
        self.tool_class = tool_class
        self.name_code = name_code
        """Code of the name in the log's string table."""
        self.class_code = class_code
        self.queued_ps = 0

    @property
    def session(self) -> int:
        """Session index."""
        return self.state.session

    @property
    def queued_s(self) -> float:
        """When it was enqueued, seconds."""
        return to_s(self.queued_ps)


class Life:
    """The sessions of one run or one gateway, and the stream of what happens to them.

    An engine reports to it directly (``engine.base.CoreListener``).
    """

    def __init__(self, log: EventLog, listeners: Iterable[Callable[[Event], None]] = ()) -> None:
        """Events are appended to ``log`` and then told to ``listeners``, in order."""
        self.log = log
        self.listeners = list(listeners)
        self.active: dict[int, SessionState] = {}
        """Admitted, unfinished sessions in order of admission."""
        self.finished: list[tuple[Request, int, int]] = []
        """Turns that the engine has finished and the driver has not taken up:
        (turn, when in picoseconds, prompt tokens computed)."""
        self._write = log.rows.frombytes
        self._hits: deque[tuple[int, int]] = deque(maxlen=HIT_WINDOW)

    # --- sessions --------------------------------------------------------------------------

    def arrive(
        self, state: SessionState, at_ps: int, prompt_tokens: int, parent_turn: int = -1
    ) -> None:
        """The session enters the system with the prompt of its first turn."""
        state.arrival_ps = at_ps
        state.prompt_tokens = state.context_tokens = prompt_tokens
        state.phase = Phase.PENDING
        state.phase_since_ps = at_ps
        parent = -1 if state.parent is None else state.parent.session
        session = state.session
        self.emit(at_ps, Kind.SESSION_ARRIVE, session, -1, -1, prompt_tokens, parent, parent_turn)

    def ready(self, state: SessionState, at_ps: int, prompt_tokens: int) -> None:
        """Make the session's current turn ready: from now on it could be sent to the engine."""
        state.prompt_tokens = prompt_tokens
        state.phase = Phase.PENDING
        state.phase_since_ps = at_ps
        self.emit(at_ps, Kind.TURN_READY, state.session, state.turn_index, -1, prompt_tokens)

    def submit(self, state: SessionState, at_ps: int, blocks: int) -> None:
        """Send the current turn to the engine; with its first turn, the session is admitted."""
        session = state.session
        if not state.admitted:
            state.admitted = True
            self.active[session] = state
            self.emit(at_ps, Kind.SESSION_ADMIT, session, 0, -1, len(self.active))
        state.phase = Phase.ENGINE
        state.phase_since_ps = at_ps
        self.emit(
            at_ps, Kind.GPU_SUBMIT, session, state.turn_index, -1, state.prompt_tokens, blocks
        )

    def routed(self, state: SessionState, at_ps: int, replica: int, previous: int) -> None:
        """Record to which of several replicas the current turn goes, and where its session's last
        one was.
        """
        self.emit(at_ps, Kind.ROUTE, state.session, state.turn_index, -1, replica, previous)

    def withdraw(self, state: SessionState, at_ps: int) -> None:
        """Take back the current turn before it was sent: its client has gone, or waited for too
        long.
        """
        state.phase = Phase.TOOL
        state.phase_since_ps = at_ps

    def returned(
        self, state: SessionState, at_ps: int, *, output_tokens: int, prefilled: int
    ) -> None:
        """Take the engine's answer to the current turn; the turn's tools and sub-agents follow."""
        state.context_tokens = state.prompt_tokens + output_tokens
        state.served_tokens += prefilled + output_tokens
        state.phase = Phase.TOOL
        state.phase_since_ps = at_ps

    def end(self, state: SessionState, at_ps: int, status: Status) -> None:
        """End the session: no further turn of it will come."""
        state.phase = Phase.DONE
        state.phase_since_ps = at_ps
        self.active.pop(state.session, None)
        self.emit(at_ps, Kind.SESSION_END, state.session, -1, -1, int(status))

    # --- tool calls ------------------------------------------------------------------------

    def tool_queued(self, call: CallState, at_ps: int) -> None:
        """Put a tool call into the queue: from now on it could start."""
        call.queued_ps = at_ps
        self._emit_tool(at_ps, Kind.TOOL_ENQUEUED, call)

    def tool_started(self, call: CallState, at_ps: int, nice: int, nice_after_ps: int) -> None:
        """Start a tool call, at a niceness that begins after so much CPU time."""
        self._emit_tool(at_ps, Kind.TOOL_START, call, nice, nice_after_ps)

    def tool_ended(self, call: CallState, at_ps: int, *, error: bool, cpu_ps: int) -> None:
        """End a tool call, which has used so much CPU time."""
        self._emit_tool(at_ps, Kind.TOOL_END, call, int(error), cpu_ps)

    # --- what an engine reports (``engine.base.CoreListener``) -------------------------------

    def on_scheduled_first(self, request: Request, at_ps: int, cached: int, uncached: int) -> None:
        """A turn runs for the first time; ``cached`` prompt tokens were found."""
        self._hits.append((cached, request.prompt_tokens))
        self.emit(
            at_ps, Kind.GPU_SCHED_FIRST, request.session, request.turn_index, -1, cached, uncached
        )

    def on_preempted(self, request: Request, at_ps: int, lost_tokens: int, blocks: int) -> None:
        """A running turn lost its place and its blocks."""
        self.emit(
            at_ps, Kind.GPU_PREEMPT, request.session, request.turn_index, -1, lost_tokens, blocks
        )

    def on_resumed(self, request: Request, at_ps: int, cached: int, uncached: int) -> None:
        """A preempted turn runs again."""
        self.emit(at_ps, Kind.GPU_RESUME, request.session, request.turn_index, -1, cached, uncached)

    def on_first_token(self, request: Request, at_ps: int) -> None:
        """Record the first output token of a turn."""
        self.emit(at_ps, Kind.GPU_FIRST_TOKEN, request.session, request.turn_index)

    def on_finished(
        self, request: Request, at_ps: int, *, prefilled: int, recomputed: int, cached: int
    ) -> None:
        """Record the last output token of a turn; ``CoreListener.on_finished`` explains the counts."""
        self.emit(
            at_ps,
            Kind.GPU_END,
            request.session,
            request.turn_index,
            -1,
            request.output_tokens,
            cached,
            prefilled,
            recomputed,
            len(request.tool_names),
            int(request.is_last),
        )
        self.finished.append((request, at_ps, prefilled))

    def on_pin(self, session: int, turn_index: int, at_ps: int, blocks: int, until_ps: int) -> None:
        """A session's blocks are kept while its tools run."""
        self.emit(at_ps, Kind.KV_PIN, session, turn_index, -1, blocks, until_ps)

    def on_unpin(
        self, session: int, turn_index: int, at_ps: int, blocks: int, reason: int, held_ps: int
    ) -> None:
        """Record that the kept blocks of a session were given up."""
        self.emit(at_ps, Kind.KV_UNPIN, session, turn_index, -1, blocks, int(reason), held_ps)

    def on_load(self, turn: TurnKey, at_ps: int, local_tokens: int, loaded_tokens: int) -> None:
        """A waiting turn begins to load KV from host memory."""
        self.emit(
            at_ps,
            Kind.KV_LOAD,
            turn.session,
            turn.turn_index,
            -1,
            local_tokens,
            loaded_tokens,
        )

    def on_loaded(self, turn: TurnKey, at_ps: int, chunks: int, waited_ps: int) -> None:
        """Record that the KV a waiting turn loads from host memory has arrived."""
        self.emit(at_ps, Kind.KV_LOADED, turn.session, turn.turn_index, -1, waited_ps)

    def on_store(self, turn: TurnKey, at_ps: int, stored: StoredChunks) -> None:
        """Stores are told in sums, with the samples."""

    def on_stored(self, turn: TurnKey, at_ps: int, chunks: int) -> None:
        """Stores are told in sums, with the samples."""

    # --- the stream ------------------------------------------------------------------------

    def recent_hits(self) -> tuple[int, int]:
        """Return the cached tokens and the prompt tokens of the last turns that were scheduled."""
        return sum(hit[0] for hit in self._hits), sum(hit[1] for hit in self._hits)

    def emit(
        self,
        at_ps: int,
        kind: Kind,
        session: int,
        turn: int = -1,
        call: int = -1,
        a: int = 0,
        b: int = 0,
        c: int = 0,
        d: int = 0,
        e: int = 0,
        f: int = 0,
    ) -> None:
        """Write one event and tell it to everybody who listens; the payload is ``FIELDS[kind]``."""
        self._write(pack_row(at_ps, kind, session, turn, call, a, b, c, d, e, f))
        if self.listeners:
            args = (a, b, c, d, e, f)[: len(FIELDS[kind])]
            self._tell(Event(to_s(at_ps), kind, session, turn, call, args))

    def _emit_tool(
        self, at_ps: int, kind: Kind, call: CallState, first: int = 0, second: int = 0
    ) -> None:
        session, turn, index = call.state.session, call.turn_index, call.call_index
        name, tool_class = call.name_code, call.class_code
        self._write(
            pack_row(at_ps, kind, session, turn, index, name, tool_class, first, second, 0, 0)
        )
        if self.listeners:
            payload = (name, tool_class, first, second)[: len(FIELDS[kind])]
            self._tell(
                Event(to_s(at_ps), kind, session, turn, index, payload, call.name, call.tool_class)
            )

    def _tell(self, event: Event) -> None:
        for listener in self.listeners:
            listener(event)


def listeners_of(policies: Iterable[object]) -> list[Callable[[Event], None]]:
    """Return ``on_event`` of each distinct policy object, without null policies, which need hear
    nothing.
    """
    found: list[Callable[[Event], None]] = []
    seen: set[int] = set()
    for policy in policies:
        if not is_null(policy) and id(policy) not in seen:
            seen.add(id(policy))
            found.append(policy.on_event)  # type: ignore[attr-defined]
    return found
