"""The gateway's own /metrics, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

PREFIX = "marsbench_gateway_"
SECONDS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)


class Meters:
    """Counters and histograms of one gateway; gauges are read when asked for."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            PREFIX + "requests",
            "Requests by API and status.",
            ("api", "status"),
            registry=self.registry,
        )
        self.refused = self._counter("refused", "Requests refused before they reached a session.")
        self.disconnects = self._counter(
            "client_disconnects", "Clients gone before the reply ended."
        )
        self.stalled = self._counter(
            "client_stalls", "Clients dropped because they stopped reading."
        )
        self.retries = self._counter("retries", "Turns that were never sent and went elsewhere.")
        self.broken = self._counter("broken_streams", "Streams the backend broke off.")
        self.garbage = self._counter("garbage_replies", "Replies with parts that are not JSON.")
        self.estimated = self._counter("estimated_turns", "Turns whose backend counted no tokens.")
        self.failed_steps = self._counter("failed_steps", "Background work that failed.")
        self.ttft_s = self._histogram("ttft_seconds", "First output since the turn was sent.")
        self.turn_s = self._histogram("turn_seconds", "End of the reply since the turn was sent.")

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A value that is looked up at each scrape."""
        Gauge(PREFIX + name, text, registry=self.registry).set_function(read)

    def page(self) -> bytes:
        """Everything as text."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(PREFIX + name, text, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(PREFIX + name, text, registry=self.registry, buckets=SECONDS)
