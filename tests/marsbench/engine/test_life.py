"""Each transition of a session: what it does to the session, and the event it writes."""

from __future__ import annotations

from marsbench.core import Phase
from marsbench.engine.base import Request
from marsbench.engine.life import CallState, Life, SessionState, listeners_of
from marsbench.events import FIELDS, Kind, Status
from marsbench.records import EventLog
from marsbench.scheduler.base import EngineOrder


def life():
    """A life with a listener: (life, what the listener heard)."""
    heard = []
    return Life(EventLog(), [heard.append]), heard


def request(**given):
    return Request(
        **{
            "session": 3, "turn_index": 0, "prompt_tokens": 100, "reused_tokens": 0,
            "output_tokens": 7, "prefix_id": -1, "prefix_tokens": 0, "session_arrival_ps": 0,
            "ready_ps": 20, "priority": 0, "is_last": False, "tool_names": ("ls",), **given,
        }
    )  # fmt: skip


def written(of: Life) -> list[tuple]:
    """(kind, time, session, turn, call, payload as the kind has it)."""
    return [
        (Kind(row[1]).name, row[0], *row[2:5], *row[5 : 5 + len(FIELDS[Kind(row[1])])])
        for row in of.log.to_numpy().tolist()
    ]


def test_a_whole_life():
    """One session with one tool call, from arrival to end: every event with its payload, and the
    phase after each transition."""
    lives, heard = life()
    state = SessionState(3, "s")
    call_of = {"name": "ls", "tool_class": "shell_read"}
    assert state.phase is Phase.NEW
    lives.arrive(state, 10, 100)
    lives.ready(state, 10, 100)
    assert (state.phase, state.phase_since_ps, state.context_tokens) == (Phase.PENDING, 10, 100)
    lives.submit(state, 20, 7)
    assert (state.phase, list(lives.active)) == (Phase.ENGINE, [3])
    turn = request()
    lives.on_scheduled_first(turn, 30, 16, 84)
    lives.on_preempted(turn, 31, 90, 6)
    lives.on_resumed(turn, 32, 80, 20)
    lives.on_first_token(turn, 33)
    lives.on_finished(turn, 40, prefilled=84, recomputed=10, cached=16)
    assert lives.finished == [(turn, 40, 84)]
    lives.on_pin(3, 0, 40, 6, 90)
    lives.returned(state, 40, output_tokens=7, prefilled=84)
    assert (state.phase, state.context_tokens, state.served_tokens) == (Phase.TOOL, 107, 91)
    call = CallState(state, 0, **call_of, name_code=lives.log.intern("ls"), class_code=1)
    lives.tool_queued(call, 40)
    lives.tool_started(call, 45, 10, 99)
    state.turn_index += 1  # a call keeps the turn that made it, wherever its session stands
    lives.tool_ended(call, 60, error=True, cpu_ps=12)
    lives.on_unpin(3, 0, 61, 6, 0, 21)
    lives.ready(state, 61, 150)
    lives.submit(state, 61, 10)
    lives.end(state, 80, Status.ERROR)
    assert (state.phase, lives.active) == (Phase.DONE, {})
    assert written(lives) == [
        ("SESSION_ARRIVE", 10, 3, -1, -1, 100, -1, -1),
        ("TURN_READY", 10, 3, 0, -1, 100),
        ("SESSION_ADMIT", 20, 3, 0, -1, 1),
        ("GPU_SUBMIT", 20, 3, 0, -1, 100, 7),
        ("GPU_SCHED_FIRST", 30, 3, 0, -1, 16, 84),
        ("GPU_PREEMPT", 31, 3, 0, -1, 90, 6),
        ("GPU_RESUME", 32, 3, 0, -1, 80, 20),
        ("GPU_FIRST_TOKEN", 33, 3, 0, -1),
        ("GPU_END", 40, 3, 0, -1, 7, 16, 84, 10, 1, 0),
        ("KV_PIN", 40, 3, 0, -1, 6, 90),
        ("TOOL_ENQUEUED", 40, 3, 0, 0, 0, 1),
        ("TOOL_START", 45, 3, 0, 0, 0, 1, 10, 99),
        ("TOOL_END", 60, 3, 0, 0, 0, 1, 1, 12),
        ("KV_UNPIN", 61, 3, 0, -1, 6, 0, 21),
        ("TURN_READY", 61, 3, 1, -1, 150),
        ("GPU_SUBMIT", 61, 3, 1, -1, 150, 10),
        ("SESSION_END", 80, 3, -1, -1, 2),
    ]
    assert [(e.kind.name, *e.args) for e in heard] == [(row[0], *row[5:]) for row in written(lives)]
    assert {
        (e.name, e.tool_class) for e in heard if e.kind in {Kind.TOOL_START, Kind.TOOL_END}
    } == {("ls", "shell_read")}


def test_a_sub_agent_names_the_turn_that_started_it():
    """Its arrival carries its parent and the parent's turn."""
    lives, _ = life()
    child = SessionState(5, "c", SessionState(3, "s"))
    lives.arrive(child, 1, 50, parent_turn=2)
    assert child.is_child
    assert written(lives) == [("SESSION_ARRIVE", 1, 5, -1, -1, 50, 3, 2)]


def test_hits_are_of_the_last_turns_scheduled():
    """64 turns count; the oldest falls out."""
    lives, _ = life()
    lives.on_scheduled_first(request(prompt_tokens=1000), 0, 1000, 0)
    for _ in range(64):
        lives.on_scheduled_first(request(prompt_tokens=10), 0, 4, 6)
    assert lives.recent_hits() == (64 * 4, 64 * 10)


def test_who_listens():
    """Each policy object once, in order; policies that decide nothing hear nothing, and a class that
    extends one may decide anything, so it hears."""

    class Heard(EngineOrder):
        pass

    one, other = Heard(), Heard()
    assert listeners_of((one, EngineOrder(), one, other)) == [one.on_event, other.on_event]
