"""A run that is being watched, as OpenTelemetry spans and metrics: each session when it ends."""

from __future__ import annotations

import time
from dataclasses import dataclass

from marsbench.events import Kind
from marsbench.experiment.stream.messages import AttemptBegin, WireEvent
from marsbench.export.otlp import CellTelemetry, Sender
from marsbench.export.spans import SpanAssembler
from marsbench.runfolder import KEY_FIELDS


@dataclass(slots=True)
class _Followed:
    telemetry: CellTelemetry
    assembler: SpanAssembler
    begin: AttemptBegin
    parents: dict[int, int]


class SpanFollower:
    """Listens to what an observer hears. A cell's clock says 0 when its first message comes: for a
    live engine that is the wall clock, for one in virtual time spans begin now and take as long as they
    say, whatever the simulation took.
    """

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._attempts: dict[str, _Followed] = {}

    def begin(self, begin: AttemptBegin) -> None:
        """Begin to follow an attempt at a cell."""
        key = {name: getattr(begin, name) for name in KEY_FIELDS}
        telemetry = CellTelemetry(begin.run_id, begin.cell, key, time.time_ns())
        assembler = SpanAssembler(begin.session_ids)
        self._attempts[begin.boot] = _Followed(telemetry, assembler, begin, {})

    def event(self, boot: str, event: WireEvent) -> None:
        """Take in what happened in an attempt; one that began before this listened is not known."""
        attempt = self._attempts.get(boot)
        if attempt is None:
            return
        kind = Kind(event.kind)
        if kind == Kind.SESSION_ARRIVE:
            attempt.parents[event.session] = event.args[1]
        ended = attempt.assembler.add(
            event.time_ps, kind, event.session, event.turn, event.call, event.args,
            event.name, event.tool_class,
        )  # fmt: skip
        if ended is not None:
            parent = attempt.parents[ended.session]
            parent_id = attempt.begin.session_ids[parent] if parent >= 0 else None
            self._sender.take(attempt.telemetry, ended, parent_id)

    def flush(self) -> None:
        """Send what is waiting. Raises ResultsError if it is not taken."""
        self._sender.flush()

    def close(self) -> None:
        """Send the rest and stop."""
        self._sender.close()
