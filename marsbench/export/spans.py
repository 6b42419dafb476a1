"""From the event stream to spans: sessions with their turns and tool calls, each with its times.

Works on the rows of a run folder and on a run's live stream alike, since a session is put together
when its end is heard of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from marsbench.events import FIELDS, Kind, Status

UNFINISHED = "unfinished"


@dataclass(slots=True)
class CallTimes:
    """One tool call; picoseconds from the start of the cell, -1 for what did not happen."""

    call: int
    name: str
    tool_class: str
    enqueued_ps: int
    started_ps: int = -1
    ended_ps: int = -1
    error: bool = False
    cpu_ps: int = 0


@dataclass(slots=True)
class TurnSpan:
    """One LLM call; picoseconds from the start of the cell, -1 for what did not happen."""

    turn: int
    ready_ps: int
    prompt_tokens: int
    submit_ps: int = -1
    sched_first_ps: int = -1
    first_token_ps: int = -1
    end_ps: int = -1
    cached_tokens: int = 0
    recomputed_tokens: int = 0
    output_tokens: int = 0
    replica: int = -1
    """Where it ran; -1 with one engine."""
    preempted: list[tuple[int, int]] = field(default_factory=list)
    """From each preemption to its resumption (-1: not resumed)."""
    calls: dict[int, CallTimes] = field(default_factory=dict)


@dataclass(slots=True)
class SessionSpan:
    """One session from its arrival to its end, with all that it did."""

    session: int
    session_id: str
    parent: int
    """Index of the session that it is a sub-agent of; -1 for none."""
    arrival_ps: int
    end_ps: int = -1
    status: str = UNFINISHED
    root: str = ""
    """Id of the session at the top of its sub-agents: its own if it is none."""
    turns: dict[int, TurnSpan] = field(default_factory=dict)


class SpanAssembler:
    """Takes in events in order of time and hands back each session when it ends."""

    def __init__(self, session_ids: Sequence[str]) -> None:
        """``session_ids``: ids by session index."""
        self._ids = session_ids
        self._open: dict[int, SessionSpan] = {}
        self._roots: dict[int, str] = {}

    def add(
        self,
        time_ps: int,
        kind: Kind,
        session: int,
        turn: int,
        call: int,
        args: Sequence[int],
        name: str = "",
        tool_class: str = "",
    ) -> SessionSpan | None:
        """Take in one event; the session, if this was its end. Events of sessions that have ended, and
        those of no session, are passed over.
        """
        payload = dict(zip(FIELDS[kind], args, strict=False))
        if kind == Kind.SESSION_ARRIVE:
            self._arrive(session, time_ps, payload["parent"])
            return None
        span = self._open.get(session)
        if span is None:
            return None
        if kind == Kind.SESSION_END:
            span.end_ps, span.status = time_ps, Status(payload["status"]).name.lower()
            return self._open.pop(session)
        if kind == Kind.TURN_READY:
            span.turns[turn] = TurnSpan(turn, time_ps, payload["prompt_tokens"])
        elif turn in span.turns:
            if kind in {Kind.TOOL_ENQUEUED, Kind.TOOL_START, Kind.TOOL_END}:
                _tool(span.turns[turn], kind, time_ps, call, payload, name, tool_class)
            else:
                _gpu(span.turns[turn], kind, time_ps, payload)
        return None

    def rest(self, time_ps: int) -> Iterator[SessionSpan]:
        """The sessions that had not ended when the run did, as they were then."""
        for span in self._open.values():
            span.end_ps = max(time_ps, span.arrival_ps)
            yield span
        self._open.clear()

    def _arrive(self, session: int, time_ps: int, parent: int) -> None:
        name = self._ids[session]
        root = self._roots.get(parent, name)
        self._roots[session] = root
        self._open[session] = SessionSpan(session, name, parent, time_ps, root=root)


def _gpu(turn: TurnSpan, kind: Kind, time_ps: int, payload: dict[str, int]) -> None:
    match kind:
        case Kind.ROUTE:
            turn.replica = payload["replica"]
        case Kind.GPU_SUBMIT:
            turn.submit_ps = time_ps
        case Kind.GPU_SCHED_FIRST:
            turn.sched_first_ps, turn.cached_tokens = time_ps, payload["cached_tokens"]
        case Kind.GPU_FIRST_TOKEN:
            turn.first_token_ps = time_ps
        case Kind.GPU_PREEMPT:
            turn.preempted.append((time_ps, -1))
        case Kind.GPU_RESUME if turn.preempted:
            turn.preempted[-1] = (turn.preempted[-1][0], time_ps)
        case Kind.GPU_END:
            turn.end_ps, turn.output_tokens = time_ps, payload["output_tokens"]
            turn.cached_tokens = payload["cached_tokens"]
            turn.recomputed_tokens = payload["recomputed_tokens"]
        case _:  # pins and loads belong to the cache, not to the turn
            pass


def _tool(
    turn: TurnSpan, kind: Kind, time_ps: int, call: int, payload: dict[str, int],
    name: str, tool_class: str,
) -> None:  # fmt: skip
    if kind == Kind.TOOL_ENQUEUED:
        turn.calls[call] = CallTimes(call, name, tool_class, time_ps)
    elif call in turn.calls:
        known = turn.calls[call]
        if kind == Kind.TOOL_START:
            known.started_ps = time_ps
        else:
            known.ended_ps = time_ps
            known.error, known.cpu_ps = bool(payload["error"]), payload["cpu_ps"]
