"""The event stream over real sockets: versioned, and either side may die and come back."""

from __future__ import annotations

import asyncio
import time

import pytest

from marsbench.engine.link.sockets import Inlet
from marsbench.engine.link.wire import Batch, Beat
from marsbench.errors import ConfigError
from marsbench.events import FIELDS, Event, Kind
from marsbench.gateway.monitoring.publisher import Publisher
from marsbench.gateway.settings import GatewaySettings

USER = {"role": "user", "content": "go"}


def event_of(kind: Kind, number: int = 0) -> Event:
    args = tuple(range(number, number + len(FIELDS[kind])))
    return Event(1.25, kind, number, 2, 3, args, "bash", "test")


def gather(subscriber, want, timeout_s=5.0):
    """Messages until ``want`` says they are enough."""
    found = []
    deadline = time.monotonic() + timeout_s
    while not want(found) and time.monotonic() < deadline:
        found += subscriber.poll()
        time.sleep(0.005)  # polling never waits
    assert want(found), found
    return found


def connect(publisher, subscriber):
    """Beats until the subscription has arrived (ZeroMQ subscribes in the background)."""
    now = 0

    def heard(found):
        nonlocal now
        if not found:
            now += 2 * 10**12
            publisher.beat(now)
        return bool(found)

    gather(subscriber, heard)
    rest = True
    while rest:  # beats that were on their way
        time.sleep(0.05)
        rest = subscriber.poll()


@pytest.fixture(params=["ipc", "tcp"])
def address(request, tmp_path, unused_port):
    if request.param == "ipc":
        return f"ipc://{tmp_path}/events"
    return f"tcp://127.0.0.1:{unused_port}"


@pytest.fixture
def unused_port():
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_events_arrive_in_order_over_a_socket(address):
    """1000 events, none lost, none swapped."""
    publisher, subscriber = Publisher(address), Inlet(address)
    try:
        connect(publisher, subscriber)
        for number in range(1000):
            publisher.event(event_of(Kind.GPU_END, number), f"s{number}")
        found = gather(subscriber, lambda m: len(m) >= 1000)
        assert [m.events[0].session_id for m in found] == [f"s{n}" for n in range(1000)]
        assert subscriber.lost == 0
        assert subscriber.age_s < 5
    finally:
        publisher.close()
        subscriber.close()


def test_subscriber_outlives_the_publisher(address):
    """The gateway dies and begins anew: the subscriber reconnects by itself and knows it."""
    publisher, subscriber = Publisher(address), Inlet(address)
    try:
        connect(publisher, subscriber)
        publisher.close()
        for _ in range(200):  # the address may be free only after a moment
            try:
                publisher = Publisher(address)
                break
            except ConfigError:
                time.sleep(0.01)  # nothing tells when the system has let go of it
        connect(publisher, subscriber)
        publisher.event(event_of(Kind.TURN_READY), "after")
        found = gather(subscriber, lambda m: any(isinstance(x, Batch) for x in m))
        assert found[-1].events[0].session_id == "after"
        assert subscriber.restarts == 1
        assert subscriber.lost == 0, "a restart is no loss"
    finally:
        publisher.close()
        subscriber.close()


def test_publisher_outlives_subscribers(address):
    """Nobody listening costs nothing; a late one is up to date after one beat."""
    publisher = Publisher(address)
    try:
        for number in range(100):
            publisher.event(event_of(Kind.TURN_READY, number), "early")
        for _ in range(2):
            subscriber = Inlet(address)
            connect(publisher, subscriber)
            publisher.event(event_of(Kind.TURN_READY), "now")
            found = gather(subscriber, lambda m: len(m) >= 1)
            assert found[-1].events[0].session_id == "now"
            subscriber.close()
    finally:
        publisher.close()


def test_missing_messages_are_counted():
    """Sequence 5 after 2 means two were lost."""
    subscriber = Inlet("inproc://nobody")
    try:
        for seq in (0, 1, 2, 5):
            subscriber._account(Batch("b", seq, ()))
        assert subscriber.lost == 2
    finally:
        subscriber.close()


def test_a_gateway_publishes_what_its_log_holds(rig, tmp_path):
    """A subscriber sees the events of a turn and, in the beat, the active session."""
    address = f"ipc://{tmp_path}/live"

    async def story():
        async with rig(publish=address) as r:
            subscriber = Inlet(address)
            try:
                await asyncio.to_thread(gather, subscriber, bool)  # a beat: we are subscribed
                await r.chat([USER], session="a")
                found = await asyncio.to_thread(
                    gather, subscriber, lambda m: any(isinstance(x, Beat) and x.sessions for x in m)
                )
            finally:
                subscriber.close()
            kinds = [e.kind for m in found if isinstance(m, Batch) for e in m.events]
            assert kinds == [k for k, _, _ in r.events()]
            beat = next(m for m in found if isinstance(m, Beat) and m.sessions)
            assert beat.sessions[0].session_id == "a"

    asyncio.run(story())


@pytest.mark.parametrize(
    "address", ["tcp://0.0.0.0:5555", "tcp://*:5555", "udp://127.0.0.1:1", "x"]
)
def test_the_stream_stays_on_this_machine(address):
    """It has no authentication."""
    with pytest.raises(ConfigError, match="--publish"):
        GatewaySettings(backends=("http://127.0.0.1:1",), publish=address)
