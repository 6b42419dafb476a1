"""The publishing end of a run's stream: one address outside, whatever process a cell runs in.

Cells push their events to the hub (PUSH/PULL over a socket file that only this user can open), and
the hub publishes them on one XPUB socket. PUB would drop events for a slow reader without a word, and
PUSH would deal them out among several readers instead of giving each all of them. XPUB with
``XPUB_NODROP`` does neither: with a full queue the hub waits, then the cells do, and after
``patience_s`` without any progress the run fails and says why. Readers that go away are waited for
no longer; those that come late get what follows, and the marks tell them that they missed something.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import zmq

from marsbench.errors import ConfigError
from marsbench.experiment.stream.cell import HIGH_WATER
from marsbench.experiment.stream.messages import (
    EVENT_TOPIC,
    CellEnd,
    Mark,
    RunBegin,
    RunEnd,
    decode,
    encode,
)
from marsbench.experiment.stream.target import Target, stalled

PATIENCE_S = 60.0
POLL_MS = 20
QUIET_S = 2.0
"""A worker process that died sends no more; so long after the last message nobody waits for it."""


@contextmanager
def open_hub(
    address: str, *, live: bool, note: Callable[[str], None], patience_s: float = PATIENCE_S
) -> Iterator[Hub]:
    """Open a hub that publishes at an address. The last message of a run that began is a RunEnd."""
    hub = Hub(address, live=live, note=note, patience_s=patience_s)
    try:
        yield hub
    finally:
        hub.close()


class Hub:
    """Publishes what the cells send."""

    def __init__(
        self, address: str, *, live: bool, note: Callable[[str], None], patience_s: float
    ) -> None:
        self._note = note
        self._live = live
        self._patience_s = patience_s
        self._run_id = ""
        self._ended = False
        self._folder = Path(tempfile.mkdtemp(prefix="marsbench-"))
        self._context = zmq.Context()
        try:
            self._public = self._bind_public(address)
            self._inner = f"ipc://{self._folder / 'cells'}"
            self._cells = self._context.socket(zmq.PULL)
            self._cells.setsockopt(zmq.RCVHWM, 0 if live else HIGH_WATER)
            # NOTE: without this, closing with messages left unread never ends (libzmq 4.3).
            self._cells.setsockopt(zmq.LINGER, 0)
            self._cells.bind(self._inner)
            self._own = self._context.socket(zmq.PUSH)
            self._own.setsockopt(zmq.SNDTIMEO, round(1000 * patience_s))
            self._own.setsockopt(zmq.LINGER, 0)
            self._own.connect(self._inner)
        except BaseException:
            self._context.destroy(linger=0)
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self.address = self._public.getsockopt_string(zmq.LAST_ENDPOINT)
        """Where observers connect: the port, if the address left it open."""
        self.subscribers = 0
        self._cells_over = 0
        self._moved_s = time.monotonic()
        self._blocked = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._forward_all, name="marsbench-stream")
        self._thread.start()

    def _bind_public(self, address: str) -> zmq.Socket[bytes]:
        public = self._context.socket(zmq.XPUB)
        public.setsockopt(zmq.XPUB_NODROP, 1)
        public.setsockopt(zmq.XPUB_VERBOSER, 1)
        public.setsockopt(zmq.SNDHWM, HIGH_WATER)
        public.setsockopt(zmq.LINGER, round(1000 * self._patience_s))
        try:
            public.bind(address)
        except zmq.ZMQError as error:
            raise ConfigError(
                f"--stream {address}: cannot bind: {error}; give an address such as "
                "tcp://127.0.0.1:5557 with a free port"
            ) from error
        return public

    def target(self, run_id: str) -> Target:
        """Return where the cells send their events to."""
        return Target(self._inner, run_id, self._live, self._patience_s)

    def begin(self, run_id: str, num_cells: int, cells: tuple[int, ...], *, wait_for: int) -> None:
        """Begin a run: its cells start as soon as so many observers have subscribed."""
        self._run_id = run_id
        if self.subscribers < wait_for:
            self._note(f"waiting for observers ({wait_for} in all): marsbench watch {self.address}")
        while self.subscribers < wait_for:
            time.sleep(POLL_MS / 1000)  # short, so that Ctrl-C works while nobody has come yet
        self._send(RunBegin(run_id, num_cells, cells))

    def end(self, *, cells_over: int, complete: bool) -> None:
        """End a run in which ``cells_over`` cells have finished or failed; their last messages go
        first.
        """
        while self._cells_over < cells_over:
            still_s = time.monotonic() - self._moved_s
            if self._blocked and still_s > self._patience_s:
                raise stalled(self._patience_s)
            if not self._blocked and still_s > QUIET_S:
                break
            time.sleep(POLL_MS / 1000)  # the end may be silence: no message tells that one died
        self._send(RunEnd(self._run_id, complete))
        self._ended = True

    def close(self) -> None:
        """Say that the run is over, if it does not know yet, and wait until all is sent."""
        if not self._ended and self._run_id and not self._blocked:
            self._send(RunEnd(self._run_id, complete=False))
            self._ended = True
        if not self._ended:
            self._stop.set()
        while self._thread.is_alive():
            self._thread.join(POLL_MS / 1000)
            if self._blocked and time.monotonic() - self._moved_s > self._patience_s:
                self._stop.set()
        if self._stop.is_set():
            self._public.setsockopt(zmq.LINGER, 0)
        self._own.close()
        self._cells.close()
        self._public.close()
        self._context.term()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _send(self, mark: Mark) -> None:
        try:
            self._own.send_multipart(encode(mark))
        except zmq.Again as error:
            raise stalled(self._patience_s) from error

    # --- in the hub's own thread -----------------------------------------------------------

    def _forward_all(self) -> None:
        """Until the run's last message, or until told to stop."""
        poller = zmq.Poller()
        poller.register(self._cells, zmq.POLLIN)
        poller.register(self._public, zmq.POLLIN)
        while not self._stop.is_set():
            ready = dict(poller.poll(POLL_MS))
            if self._public in ready:
                self._count_subscribers()
            if self._cells in ready:
                parts = self._cells.recv_multipart()
                if not self._publish(parts):
                    return
                self._moved_s = time.monotonic()
                if parts[0] != EVENT_TOPIC:
                    mark = decode(parts)
                    self._cells_over += isinstance(mark, CellEnd)
                    if isinstance(mark, RunEnd):
                        return

    def _publish(self, parts: list[bytes]) -> bool:
        """False: told to stop before every observer had room for it."""
        while True:
            try:
                self._public.send_multipart(parts, zmq.NOBLOCK)
            except zmq.Again:
                self._blocked = True
            else:
                self._blocked = False
                return True
            if self._stop.wait(POLL_MS / 1000):
                return False
            self._count_subscribers()

    def _count_subscribers(self) -> None:
        while True:
            try:
                told = self._public.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            if told[:1] in (b"\0", b"\1") and EVENT_TOPIC.startswith(told[1:]):
                self.subscribers += 1 if told[:1] == b"\1" else -1
