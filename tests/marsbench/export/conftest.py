"""A run folder of one cell, and a collector that decodes what it is sent."""

from __future__ import annotations

import gzip
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from marsbench.events import Kind, Status
from marsbench.runfolder import RunFolder
from marsbench.tables import CellKey, build_tables

KEY = CellKey("w", "mars", "sim", "gpu/model", 0.9, 0.1, 3, 8)


@pytest.fixture
def busy(timeline):
    """A session with a preempted turn, two tools at once and one that waits, its sub-agent, and a
    session that the end of the run cuts off in its first turn.
    """
    one = timeline.session("one", 1.0)
    timeline.turn(one, 0, ready=1, submit=2, sched=2.5, first=3.5, end=4.5, num_tools=3)
    timeline.tool(one, 0, 0, 4.5, 4.5, 5.5, name="read", cpu_s=0.5)
    timeline.tool(one, 0, 1, 4.5, 5.0, 6.0, name="bash", cpu_s=1.0)
    child = timeline.session("one/0.0", 4.5, parent=one, parent_turn=0)
    timeline.turn(child, 0, ready=4.5, sched=4.5, first=5, end=5.25, is_last=1, output=1)
    timeline.end(child, 5.25)
    timeline.turn(one, 1, ready=6.5, submit=6.75, sched=7, first=9, end=11, prompt=200,
                  cached=80, prefilled=160, recomputed=40, output=21, is_last=1)  # fmt: skip
    timeline.preempted(one, 1, 7.5, 8.0)
    timeline.end(one, 11)
    large = timeline.session("large", 2.0)
    timeline.add(2.0, Kind.TURN_READY, large, 0, -1, 9000)
    timeline.end(large, 2.0, Status.TOO_LARGE)
    cut = timeline.session("cut", 10.0)
    timeline.add(10.0, Kind.TURN_READY, cut, 0, -1, 50)
    timeline.add(10.5, Kind.GPU_SUBMIT, cut, 0, -1, 50)
    timeline.add(0, Kind.KV_STATS, -1, -1, -1, 100, 0, 0, 10, 0, 0)
    timeline.add(5, Kind.KV_STATS, -1, -1, -1, 60, 30, 10, 20, 35_000, 0)
    timeline.add(5, Kind.CPU_STATS, -1, -1, -1, 2, 1, 0, 0)
    timeline.run_end(12, busy_s=5.0, preemptions=1)
    return timeline.log()


@pytest.fixture
def folder(busy, tmp_path):
    """The run folder of ``busy``, twice: cells 0 and 1."""
    run = RunFolder(tmp_path / "run", "r-1")
    for cell in (0, 1):
        counts = {"arrived": 4, "completed": 2, "failed": 1}
        metrics = {"sessions_per_s": 0.1, "session_latency_s": {"mean": 5.0}}
        entry = {**KEY.as_dict(), "seed": 3 + cell, "sessions": counts, "metrics": metrics}
        run.write_cell(cell, entry, busy, build_tables(busy))
    run.finish()
    run.write_text("config.yaml", "workload: [w]\n")
    run.write_json("environment.json", {"python": "3"})
    return run.path


class Collector:
    """An OTLP/HTTP receiver: requests as decoded protobufs, and what was sent along."""

    def __init__(self):
        self.traces, self.metrics, self.headers = [], [], []
        self.status = 200
        self.url = ""

    def spans(self):
        """All spans by name, with their resource."""
        return [
            (span, resource.resource)
            for request in self.traces
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def histograms(self):
        """The last data points of each metric."""
        return {
            metric.name: list(metric.histogram.data_points)
            for request in self.metrics
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@contextmanager
def collecting():
    """A collector on a port of its own."""
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
        ExportMetricsServiceRequest,
    )
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    state = Collector()
    kinds = {
        "/v1/traces": (ExportTraceServiceRequest, state.traces),
        "/v1/metrics": (ExportMetricsServiceRequest, state.metrics),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.headers["Content-Type"] == "application/x-protobuf"
            state.headers.append(dict(self.headers))
            if state.status == 200:
                message, kept = kinds[self.path]
                kept.append(message.FromString(body))
            self.send_response(state.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def collector():
    pytest.importorskip("opentelemetry.sdk")
    with collecting() as state:
        yield state
