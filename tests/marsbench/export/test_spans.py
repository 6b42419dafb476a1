"""Sessions put together from the event stream, event by event."""

from __future__ import annotations

from marsbench.core import to_ps
from marsbench.events import Kind, Status
from marsbench.export.spans import UNFINISHED, SpanAssembler


def test_a_session_is_handed_back_at_its_end():
    """Nothing before, all of it then, and what comes after is passed over."""
    assembler = SpanAssembler(["a", "b"])

    def add(time_s, kind, *payload, session=0, turn=0, call=-1):
        return assembler.add(to_ps(time_s), kind, session, turn, call, payload, "bash", "test")

    assert add(1, Kind.SESSION_ARRIVE, 100, -1, -1, turn=-1) is None
    assert add(1, Kind.TURN_READY, 100) is None
    assert add(2, Kind.ROUTE, 3, -1) is None
    assert add(2, Kind.GPU_SUBMIT, 100, 7) is None
    assert add(3, Kind.GPU_END, 5, 64, 36, 2, 1, 0) is None
    assert add(3, Kind.TOOL_ENQUEUED, 0, 0, call=0) is None
    assert add(4, Kind.TOOL_START, 0, 0, 0, 0, call=0) is None
    assert add(6, Kind.TOOL_END, 0, 0, 1, to_ps(1.5), call=0) is None
    span = add(7, Kind.SESSION_END, int(Status.TIMEOUT), turn=-1)
    assert span is not None
    assert (span.session_id, span.status, span.end_ps) == ("a", "timeout", to_ps(7))
    (turn,) = span.turns.values()
    assert (turn.replica, turn.cached_tokens, turn.recomputed_tokens) == (3, 64, 2)
    (call,) = turn.calls.values()
    assert (call.started_ps, call.ended_ps) == (to_ps(4), to_ps(6))
    assert (call.name, call.error, call.cpu_ps) == ("bash", True, to_ps(1.5))
    assert add(8, Kind.GPU_END, 5, 0, 0, 0, 0, 0) is None
    assert not list(assembler.rest(to_ps(9)))


def test_what_the_end_of_a_run_cuts_off():
    """Sessions without an end last until the run's, and are called unfinished; sub-agents know their root."""
    assembler = SpanAssembler(["a", "b"])
    assembler.add(0, Kind.SESSION_ARRIVE, 0, -1, -1, (1, -1, -1))
    assembler.add(5, Kind.SESSION_ARRIVE, 1, -1, -1, (1, 0, 0))
    assembler.add(6, Kind.TURN_READY, 7, 0, -1, (1,))  # a session whose arrival was not heard of
    left = list(assembler.rest(9))
    assert [(s.session_id, s.root, s.end_ps, s.status) for s in left] == [
        ("a", "a", 9, UNFINISHED),
        ("b", "a", 9, UNFINISHED),
    ]
