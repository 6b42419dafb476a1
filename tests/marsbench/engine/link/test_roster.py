"""Policies hear of a session's life once, whoever tells it first, and nothing that happened is lost."""

from __future__ import annotations

import pytest

from marsbench.core import to_ps
from marsbench.engine.link.roster import Roster
from marsbench.engine.link.wire import Batch, Beat, WireEvent, WireSession
from marsbench.events import Kind


class Scene:
    """A roster, what it told, and a control plane 100 s behind its clock."""

    def __init__(self, **options):
        self.now_s = 100.0
        self.heard = []
        self.over = []
        self.roster = Roster(self.heard.append, self.over.append, self.now_ps, **options)

    def now_ps(self):
        return to_ps(self.now_s)

    def stream(self, kind, session=0, turn=-1, call=-1, args=(), name=""):
        """An event of the control plane, now."""
        event = WireEvent(
            to_ps(self.now_s - 100), int(kind), session, turn, call, args, name, "", f"s/{session}"
        )
        self.roster.heard(Batch("b", 0, (event,)))

    def beat(self, *sessions):
        """(session, parent, turn, phase) of each unfinished session."""
        listed = tuple(
            WireSession(k, f"s/{k}", parent, to_ps(1), turn, 50, 50, 0, phase)
            for k, parent, turn, phase in sessions
        )
        self.roster.heard(Beat("b", 0, to_ps(self.now_s - 100), 0, listed))

    def kinds(self):
        """Kinds told since last asked, with the turn."""
        told = [(event.kind.name, event.session, event.turn) for event in self.heard]
        self.heard.clear()
        return told


@pytest.fixture
def scene():
    return Scene()


def whole_turn(scene, turn):
    """The stream's part of a turn up to its request."""
    scene.stream(Kind.TURN_READY, turn=turn, args=(60,))
    scene.stream(Kind.GPU_SUBMIT, turn=turn, args=(60, 4))


def test_stream_before_request(scene):
    """What the stream told, the request does not tell again; tool calls are the stream's."""
    scene.stream(Kind.SESSION_ARRIVE, args=(50, -1, -1))
    scene.now_s = 102.0
    whole_turn(scene, 0)
    known, turn = scene.roster.submitted("s/0", 60, None)
    assert (known.index, known.arrival_s, turn) == (0, 100.0, 0)
    assert scene.kinds() == [("SESSION_ARRIVE", 0, -1), ("TURN_READY", 0, 0), ("GPU_SUBMIT", 0, 0)]
    for kind in (Kind.TOOL_ENQUEUED, Kind.TOOL_START, Kind.TOOL_END):
        scene.stream(kind, turn=0, call=0, args=(7, 8), name="ls")
    assert [event.name for event in scene.heard] == ["ls"] * 3
    scene.kinds()
    whole_turn(scene, 1)
    scene.roster.submitted("s/0", 70, 1)
    assert scene.kinds() == [("TURN_READY", 0, 1), ("GPU_SUBMIT", 0, 1)]
    scene.stream(Kind.SESSION_END, args=(0,))
    assert scene.kinds() == [("SESSION_END", 0, 1)]
    assert scene.over == [0]
    assert not len(scene.roster)
    assert not scene.roster.expects


def test_request_before_stream(scene):
    """A stream that comes late, or never, changes nothing that the request told."""
    scene.roster.submitted("s/0", 60, 0)
    told = [("SESSION_ARRIVE", 0, -1), ("TURN_READY", 0, 0), ("GPU_SUBMIT", 0, 0)]
    assert scene.kinds() == told
    scene.stream(Kind.SESSION_ARRIVE, args=(50, -1, -1))
    whole_turn(scene, 0)
    assert scene.kinds() == []
    scene.roster.tools_started(0, 0, ("ls", "cat"))
    assert scene.kinds() == [("TOOL_START", 0, 0)] * 2
    scene.stream(Kind.TOOL_START, turn=0, call=0, args=(0, 0), name="ls")
    scene.stream(Kind.TOOL_END, turn=0, call=0, args=(0, 0, 0, 0), name="ls")
    assert scene.kinds() == [("TOOL_END", 0, 0)]
    scene.roster.submitted("s/0", 70, None)
    told = [("TOOL_END", 0, 0), ("TURN_READY", 0, 1), ("GPU_SUBMIT", 0, 1)]
    assert scene.kinds() == told, "the second call must have ended"
    scene.stream(Kind.TOOL_END, turn=0, call=1, args=(0, 0, 0, 0), name="cat")
    assert scene.kinds() == []


def test_control_plane_dies_while_tools_run(scene):
    """Calls whose end nobody told end with the session's next request."""
    scene.stream(Kind.SESSION_ARRIVE, args=(50, -1, -1))
    whole_turn(scene, 0)
    scene.roster.submitted("s/0", 60, 0)
    scene.stream(Kind.TOOL_START, turn=0, call=0, args=(0, 0), name="ls")
    assert scene.roster.expects
    scene.kinds()
    scene.roster.submitted("s/0", 70, None)
    assert scene.kinds() == [("TOOL_END", 0, 0), ("TURN_READY", 0, 1), ("GPU_SUBMIT", 0, 1)]
    scene.roster.ended(0)
    assert scene.kinds() == [("SESSION_END", 0, 1)]


def test_a_beat_makes_up_for_losses(scene):
    """A beat begins sessions whose arrival was missed, parents first, and ends those that it listed
    before and does not list now; sessions known from requests alone stay."""
    scene.roster.submitted("other", 10, 0)
    scene.kinds()
    scene.beat((3, -1, 0, "tool"), (5, 3, 0, "engine"))
    assert scene.kinds() == [("SESSION_ARRIVE", 1, -1), ("SESSION_ARRIVE", 2, -1)]
    assert scene.roster.name_of(2) == "s/5"
    scene.beat((3, -1, 0, "tool"))
    assert scene.kinds() == [("SESSION_END", 2, -1)]
    scene.stream(Kind.SESSION_END, session=5, args=(0,))
    assert scene.kinds() == []
    assert scene.roster.name_of(0) == "other"
    assert scene.roster.name_of(2) == ""


def test_parents_are_renumbered(scene):
    """A sub-agent's parent is told by the number that policies know it by."""
    scene.roster.submitted("other", 10, 0)
    scene.stream(Kind.SESSION_ARRIVE, session=8, args=(50, -1, -1))
    scene.stream(Kind.SESSION_ARRIVE, session=9, args=(50, 8, 2))
    assert scene.heard[-1].args == (50, 1, 2)


def test_what_the_engine_knows_best_is_ignored(scene):
    """GPU events of the stream are not told: the engine has its own."""
    scene.stream(Kind.GPU_END, turn=0, args=(1, 2, 3, 4, 5, 6))
    scene.stream(Kind.GPU_FIRST_TOKEN, turn=0)
    assert scene.kinds() == []


def test_times_are_ours_and_never_ahead(scene):
    """An event's time is put on the local clock by the fastest message so far."""
    late = WireEvent(to_ps(3), int(Kind.SESSION_ARRIVE), 0, -1, -1, (5, -1, -1), "", "", "s/0")
    scene.stream(Kind.CPU_STATS, session=-1, args=(0, 0, 0, 0))  # sent at 0, here at 100
    scene.now_s = 104.0
    scene.roster.heard(Batch("b", 1, (late,)))
    assert [event.time_s for event in scene.heard] == [100.0, 103.0]


def test_the_oldest_is_forgotten():
    """Memory is bounded: the session heard of least recently goes."""
    scene = Scene(max_sessions=2)
    for name in ("a", "b", "a", "c"):
        scene.roster.submitted(name, 10, None)
    assert scene.over == [1]
    assert [scene.roster.name_of(k) for k in range(3)] == ["a", "", "c"]
    scene.roster.clear()
    assert scene.over == [1, 0, 2]
    assert scene.roster.submitted("d", 10, None)[0].index == 0
