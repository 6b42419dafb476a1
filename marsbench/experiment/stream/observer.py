"""The reading end of a run's stream: what goes on now, and the events of all cells for a file."""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import zmq
from zmq.utils.monitor import recv_monitor_message

from marsbench.core import to_s
from marsbench.errors import ConfigError, ResultsError
from marsbench.events import NUM_PAYLOAD, Kind
from marsbench.experiment.stream.cell import NAMED
from marsbench.experiment.stream.messages import (
    ALL_TOPICS,
    AttemptBegin,
    AttemptEnd,
    Batch,
    CellEnd,
    RunBegin,
    RunEnd,
    WireEvent,
    decode,
)
from marsbench.records import ROW, EventLog
from marsbench.runfolder import write_events

RECONNECT_MS = 100


@dataclass(slots=True)
class Attempt:
    """One simulation of a cell as far as it has come."""

    begin: AttemptBegin
    rows: array[int] = field(default_factory=lambda: array("q"))
    """Empty where no records are kept."""
    texts: dict[int, str] = field(default_factory=dict)
    num_batches: int = 0
    num_events: int = 0
    lost: bool = False
    ended: bool = False
    time_ps: int = 0
    arrived: int = 0
    over: int = 0
    tools_running: int = 0
    kv_used: float = 0.0
    """Share of the KV cache held by turns or for returning sessions, as last sampled."""

    def count(self, event: WireEvent) -> None:
        """Count an event for the status."""
        self.num_events += 1
        self.time_ps = max(self.time_ps, event.time_ps)
        match event.kind:
            case Kind.SESSION_ARRIVE:
                self.arrived += 1
            case Kind.SESSION_END:
                self.over += 1
            case Kind.TOOL_START:
                self.tools_running += 1
            case Kind.TOOL_END:
                self.tools_running -= 1
            case Kind.KV_STATS:
                free, referenced, pinned, *_ = event.args
                total = free + referenced + pinned
                self.kv_used = (referenced + pinned) / total if total else 0.0

    def keep(self, event: WireEvent) -> None:
        """Add a row."""
        args = event.args
        row = (event.time_ps, event.kind, event.session, event.turn, event.call, *args)
        self.rows.extend((*row, *(0,) * (NUM_PAYLOAD - len(args))))
        if event.kind in NAMED:
            self.texts[args[0]], self.texts[args[1]] = event.name, event.tool_class

    def log(self) -> EventLog:
        """Return the events in the order in which a run folder keeps them."""
        log = EventLog()
        rows = np.frombuffer(self.rows, dtype=np.int64).reshape(-1, ROW)
        if self.begin.live:
            rows = rows[np.argsort(rows[:, 0], kind="stable")]
        log.rows.frombytes(rows.tobytes())
        log.strings = [self.texts.get(code, "") for code in range(max(self.texts, default=-1) + 1)]
        log.session_ids = list(self.begin.session_ids)
        return log


class Follower(Protocol):
    """Hears what an observer hears, as it comes."""

    def begin(self, begin: AttemptBegin) -> None:
        """Hear that an attempt at a cell begins."""

    def event(self, boot: str, event: WireEvent) -> None:
        """Hear an event of that attempt."""


class Observer:
    """Subscribes to one run. ``keep``: remember all events, for ``write``; ``follower``: tell it, too."""

    def __init__(self, address: str, *, keep: bool, follower: Follower | None = None) -> None:
        self._address = address
        self._keep = keep
        self._follower = follower
        self.run: RunBegin | None = None
        self.end: RunEnd | None = None
        self.gone = False
        """The run has closed the connection without saying that it is over."""
        self._heard = False
        self._cut = False
        self._attempts: dict[str, Attempt] = {}
        self._last: Attempt | None = None
        self._logs: dict[int, EventLog] = {}
        self._over: set[int] = set()
        self._problems: list[str] = []
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self._socket.setsockopt(zmq.SUBSCRIBE, ALL_TOPICS)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(
                f"watch {address}: cannot connect: {error}; give the address of the run's --stream, "
                "such as tcp://127.0.0.1:5557"
            ) from error

    def watch(self, seconds: float) -> None:
        """Take in what comes for so long, or until the run is over."""
        until_s = time.monotonic() + seconds
        while self.end is None and not self.gone:
            left_ms = round(1000 * (until_s - time.monotonic()))
            if self._socket.poll(max(0, min(left_ms, RECONNECT_MS))):
                self._take(self._socket.recv_multipart())
            elif self._cut:
                self.gone = True  # ... and all that came before was taken in
            elif self._heard and self._monitor.poll(0):
                self._cut = recv_monitor_message(self._monitor)["event"] == zmq.EVENT_DISCONNECTED
            if left_ms <= 0:
                return

    def status(self) -> dict[str, Any]:
        """Return what goes on now; of several cells at work, the one heard of last."""
        run, now = self.run, self._last
        said: dict[str, Any] = {
            "run_id": run.run_id if run else None,
            "cells_over": len(self._over),
            "num_cells": len(run.cells) if run else None,
            "cells_running": sum(not attempt.ended for attempt in self._attempts.values()),
        }
        if now is None:
            return said
        key = now.begin
        return said | {
            "cell": key.cell, "workload": key.workload, "system": key.system, "load": key.load,
            "rate_per_s": key.rate_per_s, "seed": key.seed, "time_s": to_s(now.time_ps),
            "sessions": len(key.session_ids), "sessions_arrived": now.arrived,
            "sessions_over": now.over, "tools_running": now.tools_running, "kv_used": now.kv_used,
            "events": now.num_events,
        }  # fmt: skip

    def write(self, path: Path) -> int:
        """Write the events of all finished cells as the run's own table; how many cells.

        Raises ResultsError if any event is missing, instead of writing a table that looks whole.
        """
        if self._problems:
            raise ResultsError(f"{path} is not written: {self._problems[0]}")
        if not self._logs:
            raise ResultsError(f"{path} is not written: no cell of the run was finished")
        write_events(path, self._logs)
        return len(self._logs)

    def close(self) -> None:
        """Disconnect."""
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close()
        self._context.term()

    def _take(self, parts: list[bytes]) -> None:
        message = decode(parts)
        if not self._heard and not isinstance(message, RunBegin):
            self._late()
        self._heard = True
        match message:
            case RunBegin():
                self.run = message
            case AttemptBegin(boot=boot):
                self._last = self._attempts[boot] = Attempt(message)
                if self._follower is not None:
                    self._follower.begin(message)
            case Batch():
                self._batch(message)
            case AttemptEnd(boot=boot):
                self._attempt_ended(message, self._attempts.get(boot))
            case CellEnd():
                self._cell_ended(message)
            case RunEnd():
                self.end = message
            case _:  # what gateways and schedulers say besides events
                pass

    def _late(self) -> None:
        if self._keep:
            raise ResultsError(
                f"the run at {self._address} had begun before: its first events are missing; start "
                "watch first and the run with --stream-wait 1"
            )

    def _batch(self, batch: Batch) -> None:
        attempt = self._attempts.get(batch.boot)
        if attempt is None:
            return
        self._last = attempt
        attempt.lost |= batch.seq != attempt.num_batches
        attempt.num_batches = batch.seq + 1
        for event in batch.events:
            attempt.count(event)
            if self._keep:
                attempt.keep(event)
            if self._follower is not None:
                self._follower.event(batch.boot, event)

    def _attempt_ended(self, end: AttemptEnd, attempt: Attempt | None) -> None:
        if attempt is not None:
            attempt.ended = True
            counted = (attempt.num_batches, attempt.num_events)
            attempt.lost |= counted != (end.num_batches, end.num_events)

    def _cell_ended(self, end: CellEnd) -> None:
        self._over.add(end.cell)
        kept = self._attempts.get(end.boot)
        if self._keep and end.boot:
            if kept is None or kept.lost or not kept.ended:
                self._problems.append(f"events of cell {end.cell} were lost on the way")
            else:
                self._logs[end.cell] = kept.log()
        for boot in [b for b, a in self._attempts.items() if a.begin.cell == end.cell]:
            del self._attempts[boot]
