"""Everything that happens in a run, written to its log and told to its policies as it happens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from marsbench.admission.base import FirstReplica, Oversubscribe, Unlimited
from marsbench.core import to_s
from marsbench.engine.base import Request
from marsbench.engine.sessions import CallState
from marsbench.events import FIELDS, Event, Kind
from marsbench.records import EventLog, pack_row
from marsbench.scheduler.base import EngineOrder, NoRetention

HIT_WINDOW = 64
"""Turns over which the prefix cache hit rate of the telemetry is taken."""
NULL_POLICIES = (EngineOrder, NoRetention, Unlimited, Oversubscribe, FirstReplica)
"""Policies that decide nothing and need to hear nothing."""


class Recorder:
    """Hears an engine core (``engine.base.CoreListener``) and emits events.

    A driver is one: it emits what happens outside the engine itself.
    """

    def __init__(self, log: EventLog, listeners: list[Callable[[Event], None]]) -> None:
        self.log = log
        self._write = log.rows.frombytes
        self._listeners = listeners
        self._finished: list[tuple[Request, int, int]] = []
        """Turns the engine has finished and the driver has not looked at: (turn, when, prefilled)."""
        self._hits: deque[tuple[int, int]] = deque(maxlen=HIT_WINDOW)

    # --- the core's listener ---------------------------------------------------------------

    def on_scheduled_first(self, request: Request, at_ps: int, cached: int, uncached: int) -> None:
        """See CoreListener."""
        self._hits.append((cached, request.prompt_tokens))
        self._emit(
            at_ps, Kind.GPU_SCHED_FIRST, request.session, request.turn_index, -1, cached, uncached
        )

    def on_preempted(self, request: Request, at_ps: int, lost_tokens: int, blocks: int) -> None:
        """See CoreListener."""
        self._emit(
            at_ps, Kind.GPU_PREEMPT, request.session, request.turn_index, -1, lost_tokens, blocks
        )

    def on_resumed(self, request: Request, at_ps: int, cached: int, uncached: int) -> None:
        """See CoreListener."""
        self._emit(
            at_ps, Kind.GPU_RESUME, request.session, request.turn_index, -1, cached, uncached
        )

    def on_first_token(self, request: Request, at_ps: int) -> None:
        """See CoreListener."""
        self._emit(at_ps, Kind.GPU_FIRST_TOKEN, request.session, request.turn_index)

    def on_finished(
        self, request: Request, at_ps: int, *, prefilled: int, recomputed: int, cached: int
    ) -> None:
        """See CoreListener."""
        self._emit(
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
        self._finished.append((request, at_ps, prefilled))

    def on_pin(self, session: int, turn_index: int, at_ps: int, blocks: int, until_ps: int) -> None:
        """See CoreListener."""
        self._emit(at_ps, Kind.KV_PIN, session, turn_index, -1, blocks, until_ps)

    def on_unpin(
        self, session: int, turn_index: int, at_ps: int, blocks: int, reason: int, held_ps: int
    ) -> None:
        """See CoreListener."""
        self._emit(at_ps, Kind.KV_UNPIN, session, turn_index, -1, blocks, int(reason), held_ps)

    # --- events ----------------------------------------------------------------------------

    def recent_hits(self) -> tuple[int, int]:
        """Cached and prompt tokens of the last turns scheduled."""
        return sum(hit[0] for hit in self._hits), sum(hit[1] for hit in self._hits)

    def _emit(
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
        self._write(pack_row(at_ps, kind, session, turn, call, a, b, c, d, e, f))
        if self._listeners:
            args = (a, b, c, d, e, f)[: len(FIELDS[kind])]
            self._tell(Event(to_s(at_ps), kind, session, turn, call, args))

    def _emit_tool(
        self, at_ps: int, kind: Kind, call: CallState, first: int = 0, second: int = 0
    ) -> None:
        state = call.state
        session, turn, index = state.session, state.turn_index, call.call_index
        name, tool_class = call.name_code, call.tool_class_code
        self._write(
            pack_row(at_ps, kind, session, turn, index, name, tool_class, first, second, 0, 0)
        )
        if self._listeners:
            payload = (name, tool_class, first, second)
            self._tell(
                Event(
                    to_s(at_ps),
                    kind,
                    session,
                    turn,
                    index,
                    payload[: len(FIELDS[kind])],
                    call.name,
                    call.tool_class,
                )
            )

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            listener(event)


def listeners_of(policies: Iterable[object]) -> list[Callable[[Event], None]]:
    """``on_event`` of each distinct policy object that is not a null policy."""
    found: list[Callable[[Event], None]] = []
    seen: set[int] = set()
    for policy in policies:
        if type(policy) not in NULL_POLICIES and id(policy) not in seen:
            seen.add(id(policy))
            found.append(policy.on_event)  # type: ignore[attr-defined]
    return found
