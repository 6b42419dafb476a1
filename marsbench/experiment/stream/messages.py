"""Messages of a run's stream: ``Batch``, as between control plane and scheduler, and marks around it.

A ``Batch`` carries events exactly as a gateway or a live driver publishes them, under the same topic,
so whoever reads those reads a run. Its ``boot`` names one attempt at a cell; marks, under a topic of
their own, say which attempt belongs to which cell, which one was kept, and when the run is over.
"""

from __future__ import annotations

import msgspec

from marsbench.engine.link import wire
from marsbench.engine.link.wire import Batch, WireEvent
from marsbench.errors import EngineError

VERSION = 2
MARK_PREFIX = b"marsbench.run."
MARK_TOPIC = MARK_PREFIX + str(VERSION).encode()
ALL_TOPICS = b"marsbench."
"""What an observer subscribes to."""
EVENT_TOPIC = wire.TOPIC

__all__ = [
    "ALL_TOPICS",
    "EVENT_TOPIC",
    "AttemptBegin",
    "AttemptEnd",
    "Batch",
    "CellEnd",
    "Mark",
    "RunBegin",
    "RunEnd",
    "WireEvent",
    "decode",
    "encode",
]


class RunBegin(msgspec.Struct, array_like=True, frozen=True, tag="run_begin"):
    """Says that the cells of a run begin."""

    run_id: str
    num_cells: int
    cells: tuple[int, ...]
    """Those still to be run: fewer than all in a run that is resumed."""


class AttemptBegin(msgspec.Struct, array_like=True, frozen=True, tag="attempt_begin"):
    """Batches of this boot follow. A cell that tries several parameters has several attempts."""

    boot: str
    run_id: str
    cell: int
    workload: str
    system: str
    engine: str
    profile: str
    load: float | None
    rate_per_s: float | None
    seed: int
    tool_cores: int
    host_kv_gib: float | None
    replicas: int | None
    session_ids: tuple[str, ...]
    """Session index -> id."""
    live: bool
    """On the wall clock what is learned late is sent late; the run's table is in order of time."""


class AttemptEnd(msgspec.Struct, array_like=True, frozen=True, tag="attempt_end"):
    """All events of an attempt have been sent."""

    boot: str
    num_batches: int
    num_events: int


class CellEnd(msgspec.Struct, array_like=True, frozen=True, tag="cell_end"):
    """Says that a cell is over."""

    run_id: str
    cell: int
    boot: str
    """The attempt whose events the run folder holds; "" if the cell failed."""


class RunEnd(msgspec.Struct, array_like=True, frozen=True, tag="run_end"):
    """Says that a run is over; it is the last message of the run."""

    run_id: str
    complete: bool
    """Every cell is finished."""


Mark = RunBegin | AttemptBegin | AttemptEnd | CellEnd | RunEnd

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Mark)


def encode(message: Batch | Mark) -> list[bytes]:
    """Pack a message into the parts that ZeroMQ sends."""
    if isinstance(message, Batch):
        return wire.encode(message)
    return [MARK_TOPIC, _ENCODER.encode(message)]


def decode(parts: list[bytes]) -> wire.Message | Mark:
    """Unpack a message from ZeroMQ parts; EngineError if it is of another version or damaged."""
    if len(parts) != 2 or not parts[0].startswith(MARK_PREFIX):
        return wire.decode(parts)
    if parts[0] != MARK_TOPIC:
        version = parts[0].removeprefix(MARK_PREFIX).decode("ascii", "replace")
        raise EngineError(
            f"run stream: version {version}, this reads {VERSION}; run the same marsbench on both "
            "sides"
        )
    try:
        mark: Mark = _DECODER.decode(parts[1])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EngineError(f"run stream: damaged message: {error}") from error
    return mark
