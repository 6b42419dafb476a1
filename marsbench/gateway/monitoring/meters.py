"""The gateway's own /metrics, in Prometheus' text format.

Names end in their unit, counters in ``_total``, as Prometheus and vLLM have it. No label grows with
traffic: endpoints, statuses, tenants and backends are few and known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

PREFIX = "marsbench_gateway_"
SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
DEFAULT_TENANT = "default"
Reading = Callable[[], float]
Tally = Callable[..., None]
"""``tally(counter, *labels)``: one more of something that happens to requests (``Meters.count``)."""
LabelledReading = Callable[[], Iterable[tuple[str, float]]]
"""(label, value) of every backend or worker that has the value."""


class Meters:
    """Counters and histograms of one gateway; what somebody else counts is read when asked for."""

    def __init__(self, system: str = "") -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._counters: dict[str, Counter] = {}
        self._read = _Readings()
        self.registry.register(self._read)
        self._counter(
            "requests", "Requests that were answered, or whose client left (499).",
            "endpoint", "status", "tenant",
        )  # fmt: skip
        self._counter("refused", "Requests refused before they reached a session.")
        self._counter("client_disconnects", "Clients gone before the reply ended.")
        self._counter("client_stalls", "Clients dropped because they stopped reading.")
        self._counter("retries", "Turns that were never sent and went elsewhere.")
        self._counter("broken_streams", "Streams that broke off.")
        self._counter("garbage_replies", "Replies with parts that are not JSON.")
        self._counter("estimated_turns", "Turns whose backend counted no tokens.")
        self._counter("failed_steps", "Background work that failed.")
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens.", "backend")
        self.cached_tokens = self._counter(
            "cached_prompt_tokens", "Prompt tokens found in the prefix cache.", "backend"
        )
        self.output_tokens = self._counter("generation_tokens", "Generated tokens.", "backend")
        self._counter("backend_errors", "Connections that failed and server errors.", "backend")
        self.ttft_s = self._histogram(
            "time_to_first_token_seconds", "First output since the turn was sent.", "backend"
        )
        self.turn_s = self._histogram(
            "turn_latency_seconds", "End of the reply since the turn was sent.", "backend"
        )
        self.admission_s = self._histogram(
            "admission_wait_seconds", "Turns' waits for the policy to let them in.", "tenant"
        )
        self.tool_queue_s = self._histogram(
            "tool_queue_seconds", "Tool calls' waits for a slot.", "tenant"
        )
        info = {"version": version("marsbench"), "system": system}
        Gauge(
            PREFIX + "build_info", "What runs.", tuple(info), registry=self.registry
        ).labels(*info.values()).set(1)  # fmt: skip

    def count(self, counter: str, *labels: str, by: float = 1) -> None:
        """Count one more, of a counter by its name."""
        found = self._counters[counter]
        (found.labels(*labels) if labels else found).inc(by)

    def gauge(self, name: str, text: str, read: Reading) -> None:
        """Add a value that is looked up at each scrape."""
        self._read.plain[PREFIX + name] = GaugeMetricFamily, text, read

    def counter(self, name: str, text: str, read: Reading) -> None:
        """Add a total that somebody else counts, looked up at each scrape."""
        self._read.plain[PREFIX + name] = CounterMetricFamily, text, read

    def backend_gauge(self, name: str, text: str, read: LabelledReading) -> None:
        """Add a value of each backend, looked up at each scrape."""
        self._read.labelled[PREFIX + "backend_" + name] = GaugeMetricFamily, "backend", text, read

    def backend_counter(self, name: str, text: str, read: LabelledReading) -> None:
        """Add a total that each backend counts, looked up at each scrape."""
        self._read.labelled[PREFIX + "backend_" + name] = CounterMetricFamily, "backend", text, read

    def worker_gauge(self, name: str, text: str, read: LabelledReading) -> None:
        """Add a value of each worker, looked up at each scrape."""
        self._read.labelled[PREFIX + "worker_" + name] = GaugeMetricFamily, "worker", text, read

    def worker_counter(self, name: str, text: str, read: LabelledReading) -> None:
        """Add a total of each worker's process, looked up at each scrape."""
        self._read.labelled[PREFIX + "worker_" + name] = CounterMetricFamily, "worker", text, read

    def page(self) -> bytes:
        """Return all metrics as text."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        found = self._counters[name] = Counter(PREFIX + name, text, labels, registry=self.registry)
        return found

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(PREFIX + name, text, labels, registry=self.registry, buckets=SECONDS)


Family = type[GaugeMetricFamily] | type[CounterMetricFamily]


class _Readings(Collector):
    """Values that are read at each scrape."""

    def __init__(self) -> None:
        self.plain: dict[str, tuple[Family, str, Reading]] = {}
        self.labelled: dict[str, tuple[Family, str, str, LabelledReading]] = {}

    def collect(self) -> Iterable[Metric]:
        """Yield the values of now; the registry calls this at each scrape."""
        for name, (family, text, read) in self.plain.items():
            yield family(name, text, value=read())
        for name, (family, label, text, read_all) in self.labelled.items():
            found = family(name, text, labels=(label,))
            for labelled, value in read_all():
                found.add_metric((labelled,), value)
            yield found
