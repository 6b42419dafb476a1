"""Driver and scheduler over real sockets: what each hears, and that neither needs the other."""

from __future__ import annotations

import logging
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("zmq")

from marsbench.core import to_ps
from marsbench.engine.link import wire
from marsbench.engine.link.inside import InsideLink
from marsbench.engine.link.outside import OutsideLink
from marsbench.engine.link.roster import Roster
from marsbench.engine.link.sockets import Inlet, Outlet
from marsbench.errors import ConfigError
from marsbench.events import Event, Kind

SIZES = (100, 60, 7, 2, 1)


def now_ps():
    return time.monotonic_ns() * 1000


def until(condition, *steps, timeout_s=10.0):
    """Take steps until the condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        for step in steps:
            step()
        time.sleep(0.005)  # both ends are polled by their owners: nothing tells when a message came


class Scheduler:
    """The scheduler's end, as the plug-in uses it."""

    def __init__(self, folder):
        self.heard = []
        self.restarts = 0
        self.roster = Roster(self.heard.append, lambda _session: None, now_ps)
        self.link = InsideLink(
            listen=f"ipc://{folder}/driver",
            publish=f"ipc://{folder}/engine",
            roster=self.roster,
            now_ps=now_ps,
            restarted=self.restarted,
        )

    def restarted(self):
        self.restarts += 1
        self.roster.clear()

    def step(self, *, now=False):
        self.link.poll()
        self.link.flush(lambda: SIZES, now=now)

    def tell(self, kind, session, turn, *args):
        self.link.event(Event(now_ps() / 1e12, kind, session, turn, -1, args))

    def kinds(self):
        return [event.kind.name for event in self.heard]


class Driver:
    """The driver's end with a core that only remembers."""

    def __init__(self, folder):
        self.events, self.states, self.notes = [], [], []
        self.busy = False
        self.link = OutsideLink(
            publish=f"ipc://{folder}/driver",
            listen=f"ipc://{folder}/engine",
            note=self.notes.append,
        )

    def idle(self):
        return not self.busy

    def engine_event(self, *event):
        self.events.append(event)

    def engine_state(self, state):
        self.states.append(state)

    def begin(self, salt="run/1"):
        states = [
            SimpleNamespace(
                session=k, parent=None, arrival_ps=0, turn_index=0, prompt_tokens=50,
                context_tokens=0, served_tokens=0, phase="pending",
            )
            for k in range(3)
        ]  # fmt: skip
        self.link.begin(salt=salt, states=states, ear=self, now_ps=now_ps)

    def tell(self, kind, session, turn=-1, call=-1, args=(), name=""):
        self.link.event(Event(now_ps() / 1e12, kind, session, turn, call, args, name))


@pytest.fixture
def ends(tmp_path):
    """Both ends, connected."""
    driver, scheduler = Driver(tmp_path), Scheduler(tmp_path)
    driver.begin()
    until(
        lambda: scheduler.restarts and driver.states,
        driver.link.beat, driver.link.pump, lambda: scheduler.step(now=True),
    )  # fmt: skip
    yield driver, scheduler
    driver.link.close()
    scheduler.link.close()


def test_both_directions(ends):
    """A session's arrival, turn and tool reach the scheduler; the engine's events, pins and state
    reach the driver, under its own session numbers and on its own clock."""
    driver, scheduler = ends
    driver.tell(Kind.SESSION_ARRIVE, 2, args=(50, -1, -1))
    driver.tell(Kind.TURN_READY, 2, 0, args=(50,))
    driver.tell(Kind.GPU_SUBMIT, 2, 0, args=(50, 4))
    driver.tell(Kind.GPU_END, 2, 0, args=(1, 2, 3, 4, 5, 6))
    driver.tell(Kind.TOOL_START, 2, 0, 0, args=(1, 2), name="ls")
    until(lambda: len(scheduler.heard) >= 4, scheduler.step)
    assert scheduler.kinds() == ["SESSION_ARRIVE", "TURN_READY", "GPU_SUBMIT", "TOOL_START"]
    assert scheduler.roster.name_of(0) == "run/1/2"
    before = now_ps()
    scheduler.tell(Kind.GPU_SCHED_FIRST, 0, 0, 16, 34)
    scheduler.tell(Kind.KV_PIN, 0, 0, 3, before + to_ps(9))
    scheduler.tell(Kind.TURN_READY, 0, 0, 50)
    scheduler.step(now=True)
    until(lambda: len(driver.events) >= 2, driver.link.pump)
    (kind, session, turn, at_ps, args), pin = driver.events
    assert (kind, session, turn, args) == (Kind.GPU_SCHED_FIRST, 2, 0, (16, 34))
    assert abs(at_ps - before) < to_ps(1)
    assert pin[0] == Kind.KV_PIN
    assert abs(pin[4][1] - before - to_ps(9)) < to_ps(1)
    assert driver.states[-1].free_blocks == 60
    assert (driver.states[-1].running, driver.states[-1].waiting) == (2, 1)
    assert driver.link.report()["lost_messages"] == 0


def test_another_run(ends):
    """A new run makes the scheduler forget the last one, and the last one's events are not the new
    one's."""
    driver, scheduler = ends
    driver.tell(Kind.SESSION_ARRIVE, 0, args=(50, -1, -1))
    until(lambda: scheduler.heard, scheduler.step)
    stale = scheduler.roster.name_of(0)
    driver.begin("run/2")
    until(lambda: scheduler.restarts == 2, scheduler.step)
    assert stale == "run/1/0"
    assert scheduler.roster.name_of(0) == ""
    scheduler.roster.submitted(stale, 10, 0)
    scheduler.tell(Kind.GPU_SCHED_FIRST, 0, 0, 0, 10)
    scheduler.step(now=True)
    count = len(driver.states)
    until(lambda: len(driver.states) > count, driver.link.pump, lambda: scheduler.step(now=True))
    assert driver.events == []


def test_driver_dies_and_returns(ends, caplog, tmp_path, monkeypatch):
    """Without its driver the scheduler warns once and goes on with requests alone; it hears the next
    driver at the same address, as a new run."""
    driver, scheduler = ends
    driver.tell(Kind.SESSION_ARRIVE, 0, args=(50, -1, -1))
    until(lambda: scheduler.heard, scheduler.step)
    driver.link.close()
    monkeypatch.setattr("marsbench.engine.link.inside.SILENCE_S", 0.1)
    with caplog.at_level(logging.WARNING):
        until(lambda: not scheduler.link.linked, scheduler.step)
        for turn in range(5):
            scheduler.step()
            scheduler.roster.submitted("run/1/0", 60, turn)
    assert [record.getMessage()[:32] for record in caplog.records] == [
        "marsbench: the control plane has"
    ]
    assert scheduler.kinds().count("GPU_SUBMIT") == 5
    monkeypatch.undo()
    again = Driver(tmp_path)
    again.begin("run/2")
    driver.link = again.link  # closed by the fixture
    until(
        lambda: scheduler.restarts == 2 and scheduler.link.linked, again.link.beat, scheduler.step
    )


def test_old_messages_are_no_sign_of_life(ends, monkeypatch):
    """What an idle scheduler reads late was said long ago: the driver that said it may be gone."""
    driver, scheduler = ends
    monkeypatch.setattr("marsbench.engine.link.inside.SILENCE_S", 0.2)
    driver.tell(Kind.SESSION_ARRIVE, 0, args=(50, -1, -1))
    time.sleep(0.5)  # nobody polls, as in an engine without requests
    until(lambda: scheduler.heard, scheduler.step)
    assert not scheduler.link.linked
    until(lambda: scheduler.link.linked, driver.link.beat, scheduler.step)


def test_scheduler_dies_and_returns(ends, tmp_path, monkeypatch):
    """A scheduler that is silent while turns are open is noted once, its state is dropped, nothing
    waits for it; another process at its address is heard, on its own clock."""
    driver, scheduler = ends
    monkeypatch.setattr("marsbench.engine.link.outside.SILENCE_S", 0.2)
    driver.busy = True
    scheduler.link.close()
    until(lambda: driver.notes, driver.link.pump)
    for _ in range(5):
        driver.tell(Kind.TURN_READY, 0, 0, args=(1,))
        driver.link.pump()
    assert len(driver.notes) == 1
    assert "silent" in driver.notes[0]
    assert driver.states[-1] is None
    assert driver.link.report()["outages"] == 1
    again = Scheduler(tmp_path)
    scheduler.link = again.link
    until(lambda: len(driver.notes) == 2, driver.link.pump, lambda: again.step(now=True))
    assert "back" in driver.notes[1]
    assert driver.states[-1].free_blocks == 60


def test_idle_is_not_silence(ends, monkeypatch):
    """An engine without turns takes no steps and says nothing: that is no outage."""
    driver, _ = ends
    monkeypatch.setattr("marsbench.engine.link.outside.SILENCE_S", 0.05)
    for _ in range(20):
        driver.link.pump()
        time.sleep(0.01)  # 0.2 s in all: four times the silence that would be an outage
    assert driver.notes == []


def test_a_foreign_message_harms_nobody(tmp_path):
    """Messages of another version or damaged ones are counted and passed over."""
    import zmq

    context = zmq.Context()
    socket = context.socket(zmq.PUB)
    socket.bind(f"ipc://{tmp_path}/x")
    inlet = Inlet(f"ipc://{tmp_path}/x")
    good = wire.encode(wire.Beat("b", 0, 0, 0, ()))
    found = []

    def step():
        socket.send_multipart([wire.TOPIC_PREFIX + b"99", b""])
        socket.send_multipart([wire.TOPIC, b"\x00rubbish"])
        socket.send_multipart(good)
        found.extend(inlet.poll())

    until(lambda: found and inlet.damaged >= 2, step)
    assert "damaged" in inlet.problem or "version 99" in inlet.problem
    inlet.close()
    socket.close()
    context.term()


def test_a_wrong_address_is_one_clear_line():
    """An address nobody can bind or connect to is named."""
    with pytest.raises(ConfigError, match="cannot bind"):
        Outlet("ipc:///no/such/folder/x")
    with pytest.raises(ConfigError, match="cannot connect"):
        Inlet("carrier-pigeon://x")
