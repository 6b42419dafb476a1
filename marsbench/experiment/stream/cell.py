"""The events of one cell, sent to the run's hub as the driver appends them to its log."""

from __future__ import annotations

import secrets
import time
from array import array
from collections.abc import Callable, Iterable
from dataclasses import asdict
from struct import Struct
from types import TracebackType
from typing import Any, Self

import zmq

from marsbench.events import FIELDS, Kind
from marsbench.experiment.stream.messages import (
    AttemptBegin,
    AttemptEnd,
    Batch,
    CellEnd,
    Mark,
    WireEvent,
    encode,
)
from marsbench.experiment.stream.target import StalledError, Target, stalled
from marsbench.records import ROW, EventLog
from marsbench.tables import CellKey

BATCH_EVENTS = 256
BATCH_S = 0.1
"""An event waits for company at most so long, by the wall clock, or until the next event."""
HIGH_WATER = 100
"""Batches on their way before a cell in virtual time waits for the slowest observer."""

ROW_BYTES = 8 * ROW
NAMED = (Kind.TOOL_ENQUEUED, Kind.TOOL_START, Kind.TOOL_END)
"""Kinds whose first two payload integers are codes of texts: the tool's name and class."""
_unpack = Struct(f"{ROW}q").iter_unpack
_SIZES = {int(kind): len(fields) for kind, fields in FIELDS.items()}


class Rows(array):  # type: ignore[type-arg]  # array[int] is no class before Python 3.12
    """A log's rows that tell somebody of each."""

    tell: Callable[[bytes], None] | None = None

    def frombytes(self, data: Any, /) -> None:
        """Append rows."""
        super().frombytes(data)
        if self.tell is not None:
            self.tell(data)

    def extend(self, values: Iterable[int], /) -> None:
        """Append rows."""
        self.frombytes(array("q", values).tobytes())


class StreamedLog(EventLog):
    """An event log whose rows are sent."""

    def __init__(self, outlet: CellOutlet, *, batch_events: int) -> None:
        super().__init__()
        self.boot = secrets.token_hex(8)
        rows = Rows("q")
        rows.tell = self._take
        self.rows = rows
        self._outlet = outlet
        self._most_bytes = batch_events * ROW_BYTES
        self._kept = bytearray()
        self._sent_s = time.monotonic()
        self._num_batches = 0
        self._num_events = 0

    def flush(self) -> None:
        """Send what is kept."""
        if not self._num_batches:
            self._outlet.begin(self.boot, tuple(self.session_ids))
        events = tuple(self._event(row) for row in _unpack(bytes(self._kept)))
        self._kept.clear()
        self._outlet.send(Batch(self.boot, self._num_batches, events))
        self._num_batches += 1
        self._num_events += len(events)
        self._sent_s = time.monotonic()

    def end(self) -> None:
        """Send what is left: nothing more comes."""
        if self._kept or not self._num_batches:
            self.flush()
        self._outlet.send(AttemptEnd(self.boot, self._num_batches, self._num_events))

    def _take(self, data: bytes) -> None:
        self._kept += data
        if len(self._kept) >= self._most_bytes or time.monotonic() - self._sent_s >= BATCH_S:
            self.flush()

    def _event(self, row: tuple[int, ...]) -> WireEvent:
        time_ps, kind, session, turn, call, *payload = row
        name, tool_class = "", ""
        if kind in NAMED:
            name, tool_class = self.strings[payload[0]], self.strings[payload[1]]
        session_id = self.session_ids[session] if session >= 0 else ""
        args = tuple(payload[: _SIZES[kind]])
        return WireEvent(time_ps, kind, session, turn, call, args, name, tool_class, session_id)


class CellOutlet:
    """Sends what happens in one cell; a ``CellStream``.

    In virtual time a full queue makes the cell wait: its results do not depend on the wall clock.
    If nothing moves for ``patience_s`` it fails. On the wall clock the queue has no limit: a slow
    observer costs memory, never time.
    """

    def __init__(self, target: Target, index: int, key: CellKey) -> None:
        self._target = target
        self._index = index
        self._key = key
        self._kept_boot = ""
        patience_ms = round(1000 * target.patience_s)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.SNDHWM, 0 if target.live else HIGH_WATER)
        self._socket.setsockopt(zmq.SNDTIMEO, patience_ms)
        self._socket.setsockopt(zmq.LINGER, patience_ms)
        self._socket.connect(target.address)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if not isinstance(error, StalledError):
                self.send(CellEnd(self._target.run_id, self._index, self._kept_boot))
            else:
                self._socket.setsockopt(zmq.LINGER, 0)
        finally:
            self._socket.close()
            self._context.term()

    def new_log(self) -> StreamedLog:
        """See ``CellStream``."""
        return StreamedLog(self, batch_events=1 if self._target.live else BATCH_EVENTS)

    def ended(self, log: EventLog) -> None:
        """See ``CellStream``."""
        assert isinstance(log, StreamedLog)
        log.end()

    def done(self, log: EventLog) -> None:
        """See ``CellStream``."""
        assert isinstance(log, StreamedLog)
        self._kept_boot = log.boot

    def begin(self, boot: str, session_ids: tuple[str, ...]) -> None:
        """Announce that the first batch of an attempt follows."""
        key = asdict(self._key)
        run_id, live = self._target.run_id, self._target.live
        self.send(
            AttemptBegin(boot, run_id, self._index, **key, session_ids=session_ids, live=live)
        )

    def send(self, message: Batch | Mark) -> None:
        """Send a message; StalledError if it cannot be sent for long."""
        try:
            self._socket.send_multipart(encode(message))
        except zmq.Again as error:
            raise stalled(self._target.patience_s) from error
