"""The stream of a run: an observer gets the run's own table, whole or with a clear refusal."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("zmq")

import zmq
from watched_engine import WatchedEngine

from marsbench.engine.link.sockets import Inlet
from marsbench.engine.link.wire import Batch, WireEvent
from marsbench.errors import ConfigError, EngineError, PolicyError, ResultsError
from marsbench.events import Kind
from marsbench.experiment.stream.cell import CellOutlet, Rows
from marsbench.experiment.stream.hub import Hub
from marsbench.experiment.stream.messages import (
    MARK_PREFIX,
    MARK_TOPIC,
    AttemptBegin,
    AttemptEnd,
    CellEnd,
    RunBegin,
    RunEnd,
    decode,
    encode,
)
from marsbench.experiment.stream.observer import Observer
from marsbench.experiment.stream.target import Silent, StalledError
from marsbench.records import EventLog
from marsbench.runfolder import read_table
from marsbench.tables import CellKey

KEY = CellKey("w", "s", "sim", "p", 0.5, None, 0, 4)


@pytest.fixture
def address():
    """A socket file in a folder of its own (its path must be short)."""
    with tempfile.TemporaryDirectory() as folder:
        yield f"ipc://{folder}/s"


class Watching:
    """An observer in a thread of its own, from before the run to its end."""

    def __init__(self, address: str, *, keep: bool = True) -> None:
        self.observer = Observer(address, keep=keep)
        self.seen: list[dict] = []
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while self.observer.end is None and not self.observer.gone:
            self.observer.watch(0.02)
            self.seen.append(self.observer.status())

    def finished(self) -> Observer:
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.observer


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_observer_gets_the_runs_own_table(run, address, tmp_path, jobs):
    """Events seen from outside, written down, are events.parquet to the byte, in any number of
    processes."""
    watching = Watching(address)
    result, _ = run(system=["vllm", "mars"], load=[0.9], jobs=jobs, stream=address, stream_wait=1)
    observer = watching.finished()
    assert observer.write(tmp_path / "seen.parquet") == 2
    observer.close()
    own = read_table(result.folder, "events")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "seen.parquet"), own)
    assert (tmp_path / "seen.parquet").read_bytes() == (
        result.folder / "events.parquet"
    ).read_bytes()
    assert observer.end == RunEnd(result.summary["run_id"], complete=True)
    last = watching.seen[-1]
    assert last["cells_over"] == last["num_cells"] == 2


def test_status_while_it_runs(run, address):
    """The observer knows which cell runs, how far it is, and what its sessions and tools do."""
    reached = threading.Event()

    def wait(log):
        if isinstance(log.rows, Rows):  # the cell, not a measurement before it
            log.flush()
            reached.wait(10)

    slow = WatchedEngine(after=wait)

    watching = Watching(address, keep=False)

    def release():
        while not any(status.get("sessions_over") == 6 for status in watching.seen):
            time.sleep(0.01)
        reached.set()

    threading.Thread(target=release).start()
    result, _ = run(system=["mars"], load=[0.9], stream=address, stream_wait=1, on=slow)
    watching.finished().close()
    status = next(status for status in watching.seen if status.get("sessions_over") == 6)
    assert reached.is_set()
    assert (status["system"], status["load"], status["sessions"]) == ("mars", 0.9, 6)
    assert status["tools_running"] == 0
    assert status["cells_running"] == 1
    events = read_table(result.folder, "events")
    assert status["events"] == len(events)
    assert status["time_s"] == pytest.approx(events["time_ps"].max() / 1e12)


def test_only_the_kept_attempt_counts(run, address, tmp_path):
    """A system chosen with hindsight runs several times; the table has the run that was kept."""
    watching = Watching(address)
    result, _ = run(system=["static-best"], load=[0.9], stream=address, stream_wait=1)
    observer = watching.finished()
    observer.write(tmp_path / "seen.parquet")
    observer.close()
    assert len(result.summary["cells"][0]["tried"]) > 1
    seen = pd.read_parquet(tmp_path / "seen.parquet")
    pd.testing.assert_frame_equal(seen, read_table(result.folder, "events"))


def test_a_failed_cell_and_an_incomplete_run(run, address, tmp_path):
    """A cell that fails is over without events; the last message says the run is not complete."""
    calls = []

    def check(plan):
        if len(plan.sessions) == 6 and plan.arrivals.closed_loop is None:
            calls.append(1)
            if len(calls) == 1:
                raise PolicyError("broken")

    breaking = WatchedEngine(before=check)

    watching = Watching(address)
    result, _ = run(
        system=["vllm", "static"], load=[0.9], stream=address, stream_wait=1, on=breaking
    )
    observer = watching.finished()
    assert observer.end == RunEnd(result.summary["run_id"], complete=False)
    assert observer.write(tmp_path / "seen.parquet") == 1
    observer.close()
    assert set(pd.read_parquet(tmp_path / "seen.parquet")["cell"]) == {1}


def test_a_scheduler_understands_the_stream(run, address):
    """Events come as the batches that gateways and live drivers publish: the reader of a scheduler
    takes them in without loss."""
    inlet = Inlet(address)
    result, _ = run(system=["mars"], load=[0.9], stream=address, stream_wait=1)
    events, heard_s = [], time.monotonic()
    own = read_table(result.folder, "events")
    while len(events) < len(own) and time.monotonic() - heard_s < 30:
        events += [event for message in inlet.poll() for event in message.events]
    assert (inlet.lost, inlet.damaged) == (0, 0), (inlet.problem, len(events), len(own))
    inlet.close()
    assert [event.time_ps for event in events] == own["time_ps"].tolist()
    assert [Kind(event.kind).name for event in events] == own["kind"].tolist()
    ends = own[own["kind"] == "TOOL_END"]
    told = [event for event in events if event.kind == Kind.TOOL_END]
    assert [event.name for event in told] == ends["name"].tolist()
    assert [event.session_id for event in told] == ends["session_id"].tolist()


def test_without_observers_nothing_waits(run, address):
    """A stream that nobody reads changes nothing of a run."""
    plain, _ = run("plain", system=["mars"], load=[0.9])
    streamed, _ = run("streamed", system=["mars"], load=[0.9], stream=address)
    own, seen = (read_table(result.folder, "events") for result in (plain, streamed))
    pd.testing.assert_frame_equal(own, seen)


def test_off_by_default():
    """Without --stream a cell's log is the plain one, and ZeroMQ is not even imported."""
    assert type(Silent().new_log()) is EventLog
    code = "import sys, marsbench.experiment.runner; sys.exit('zmq' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def notes():
    return []


@pytest.fixture
def make_hub(address, notes):
    """hub(patience_s): a hub."""
    opened = []

    def go(patience_s: float) -> Hub:
        opened.append(Hub(address, live=False, note=notes.append, patience_s=patience_s))
        return opened[-1]

    yield go
    opened[0].close()


def fill(outlet: CellOutlet, num_events: int) -> EventLog:
    log = outlet.new_log()
    log.session_ids = ["one"]
    for k in range(num_events):
        log.append(k, Kind.TURN_READY, 0, k, -1, 7)
    return log


class Reader:
    """A subscriber that takes hardly anything before it is asked."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, 1)
        self._socket.setsockopt(zmq.RCVTIMEO, 5_000)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"marsbench.")
        self._socket.connect(address)

    def next(self):
        return decode(self._socket.recv_multipart())

    def leave(self) -> None:
        self._context.destroy(linger=0)


def test_an_observer_that_does_not_read_stops_the_run(make_hub, address):
    """Queues fill, then the cell waits, then it fails with the reason; the cell is not stored."""
    hub = make_hub(0.5)
    observer = Reader(address)
    hub.begin("r", 1, (0,), wait_for=1)
    with (
        pytest.raises(StalledError, match=r"has not read for 0\.5 s"),
        CellOutlet(hub.target("r"), 0, KEY) as outlet,
    ):
        fill(outlet, 2_000_000)
    observer.leave()


def test_a_slow_observer_gets_everything(make_hub, address):
    """An observer slower than the cell makes the cell wait; no event is missing."""
    hub = make_hub(10.0)
    observer = Reader(address)
    received: list[int] = []
    told: list[object] = []

    def read():
        while not told or not isinstance(told[-1], RunEnd):
            message = observer.next()
            told.append(message)
            if isinstance(message, Batch):
                time.sleep(0.0005)
                received.extend(event.time_ps for event in message.events)

    thread = threading.Thread(target=read, daemon=True)
    hub.begin("r", 1, (0,), wait_for=1)
    with CellOutlet(hub.target("r"), 0, KEY) as outlet:
        thread.start()
        log = fill(outlet, 100_000)
        outlet.ended(log)
        outlet.done(log)
    hub.end(cells_over=1, complete=True)
    thread.join(20)
    assert received == list(range(100_000))
    assert [type(message) for message in told if not isinstance(message, Batch)] == [
        RunBegin, AttemptBegin, AttemptEnd, CellEnd, RunEnd,
    ]  # fmt: skip
    observer.leave()


def test_an_observer_that_leaves_is_not_waited_for(make_hub, address):
    """Who disconnects in the middle costs the run nothing."""
    hub = make_hub(10.0)
    observer = Reader(address)
    hub.begin("r", 1, (0,), wait_for=1)
    with CellOutlet(hub.target("r"), 0, KEY) as outlet:
        fill(outlet, 10_000)
        observer.leave()
        fill(outlet, 400_000)
    hub.end(cells_over=1, complete=True)
    assert hub.subscribers == 0


def test_waiting_for_observers(make_hub, address, notes):
    """The run begins when the second of two observers has come, and says what it waits for."""
    hub = make_hub(10.0)
    observers = [Reader(address)]
    second = threading.Timer(0.2, lambda: observers.append(Reader(address)))
    second.start()
    hub.begin("r", 1, (0,), wait_for=2)
    assert hub.subscribers == 2
    assert notes == [f"waiting for observers (2 in all): marsbench watch {address}"]
    second.join()
    for observer in observers:
        observer.leave()


@pytest.fixture
def publisher(address):
    """publisher(message, ...): a run made by hand."""
    context = zmq.Context()
    socket = context.socket(zmq.XPUB)
    socket.setsockopt(zmq.XPUB_VERBOSE, 1)
    socket.setsockopt(zmq.RCVTIMEO, 5_000)
    socket.bind(address)

    def send(*messages):
        for message in messages:
            socket.send_multipart(message if isinstance(message, list) else encode(message))

    send.ready = socket.recv
    send.close = lambda: context.destroy(linger=1000)
    yield send
    context.destroy(linger=0)


def ready(seq: int, time_ps: int) -> Batch:
    event = WireEvent(time_ps, Kind.TURN_READY, 0, 0, -1, (7,), "", "", "one")
    return Batch("b", seq, (event,))


BEGIN = AttemptBegin(
    "b", "r", 0, "w", "s", "sim", "p", 0.5, None, 0, 4, None, None, ("one",), live=True
)


def see(observer: Observer) -> None:
    until_s = time.monotonic() + 5
    while observer.end is None and not observer.gone and time.monotonic() < until_s:
        observer.watch(0.05)


def test_lost_events_are_never_written(publisher, address, tmp_path):
    """Batch 1 is missing: no file is written, and the reason names the cell."""
    observer = Observer(address, keep=True)
    publisher.ready()
    publisher(RunBegin("r", 1, (0,)), BEGIN, ready(0, 5), ready(2, 6))
    publisher(AttemptEnd("b", 3, 3), CellEnd("r", 0, "b"), RunEnd("r", complete=True))
    see(observer)
    with pytest.raises(ResultsError, match="events of cell 0 were lost"):
        observer.write(tmp_path / "seen.parquet")
    assert not (tmp_path / "seen.parquet").exists()
    observer.close()


def test_the_end_of_an_attempt_may_not_be_lost(publisher, address, tmp_path):
    """The last batch is missing: the counts at the end tell."""
    observer = Observer(address, keep=True)
    publisher.ready()
    publisher(RunBegin("r", 1, (0,)), BEGIN, ready(0, 5), AttemptEnd("b", 2, 2))
    publisher(CellEnd("r", 0, "b"), RunEnd("r", complete=True))
    see(observer)
    with pytest.raises(ResultsError, match="events of cell 0 were lost"):
        observer.write(tmp_path / "seen.parquet")
    observer.close()


def test_late_rows_are_put_in_order_of_time(publisher, address, tmp_path):
    """What a live run learns late is sent late; the table is in order of time, as the run's is."""
    observer = Observer(address, keep=True)
    publisher.ready()
    publisher(RunBegin("r", 1, (0,)), BEGIN, ready(0, 9), ready(1, 5), AttemptEnd("b", 2, 2))
    publisher(CellEnd("r", 0, "b"), RunEnd("r", complete=True))
    see(observer)
    observer.write(tmp_path / "seen.parquet")
    observer.close()
    assert pd.read_parquet(tmp_path / "seen.parquet")["time_ps"].tolist() == [5, 9]


def test_joined_late(publisher, address):
    """Who comes after the beginning may look on, but keeps no records."""
    looking, keeping = Observer(address, keep=False), Observer(address, keep=True)
    publisher.ready()
    publisher.ready()
    publisher(BEGIN, ready(0, 5))
    with pytest.raises(ResultsError, match="--stream-wait 1"):
        keeping.watch(5)
    publisher(RunEnd("r", complete=True))
    see(looking)
    assert looking.status()["events"] == 1
    looking.close()
    keeping.close()


def test_a_run_that_dies(publisher, address):
    """A run that goes away without its last message is noticed, after all it had sent was read."""
    observer = Observer(address, keep=False)
    publisher.ready()
    publisher(RunBegin("r", 1, (0,)), BEGIN, ready(0, 5))
    publisher.close()
    see(observer)
    assert observer.gone
    assert observer.status()["events"] == 1
    observer.close()


def test_other_versions_and_damage():
    """Marks of another version, and bytes that are none, are refused by name."""
    with pytest.raises(EngineError, match="version 9, this reads 2"):
        decode([MARK_PREFIX + b"9", b"x"])
    with pytest.raises(EngineError, match="damaged message"):
        decode([MARK_TOPIC, b"\xc1"])
    mark = CellEnd("r", 3, "b")
    assert decode(encode(mark)) == mark


def test_an_address_that_cannot_be_bound(run, tmp_path):
    """A bad address stops the run before anything is simulated."""
    with pytest.raises(ConfigError, match="--stream nonsense: cannot bind"):
        run(system=["vllm"], load=[0.9], stream="nonsense")
    assert not Path(tmp_path / "run" / "config.yaml").exists()
    with pytest.raises(ConfigError, match="watch nonsense: cannot connect"):
        Observer("nonsense", keep=False)
