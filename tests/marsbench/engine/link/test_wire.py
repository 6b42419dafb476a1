"""Messages of the link: the same after encoding and decoding, versioned, never guessed at."""

from __future__ import annotations

import msgspec
import pytest

from marsbench.core import PS_PER_S
from marsbench.engine.link.wire import TOPIC, Batch, Beat, decode, encode, wire_event
from marsbench.errors import EngineError
from marsbench.events import FIELDS, Event, Kind


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_survives_the_wire(kind):
    """An event is the same after encoding and decoding."""
    event = Event(1.25, kind, 7, 2, 3, tuple(range(7, 7 + len(FIELDS[kind]))), "bash", "test")
    message = Batch("boot", 5, (wire_event(event, "s-7"),))
    again = decode(encode(message))
    assert again == message
    assert isinstance(again, Batch)
    (sent,) = again.events
    assert sent.session_id == "s-7"
    assert event == Event(
        sent.time_ps / PS_PER_S,
        Kind(sent.kind),
        sent.session,
        sent.turn,
        sent.call,
        sent.args,
        sent.name,
        sent.tool_class,
    )


def test_other_versions_and_damage_are_refused_in_one_line():
    """A reader never guesses."""
    parts = encode(Beat("b", 0, 0, 0, ()))
    with pytest.raises(EngineError, match="version 99"):
        decode([b"marsbench.events.99", parts[1]])
    with pytest.raises(EngineError, match="damaged"):
        decode([TOPIC, parts[1][:-1]])
    with pytest.raises(EngineError, match="not a message"):
        decode([b"weather", b""])
    with pytest.raises(EngineError, match="damaged"):
        decode([TOPIC, msgspec.msgpack.encode({"boot": 1})])
