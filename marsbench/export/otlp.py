"""Sessions as OpenTelemetry spans and metrics with the GenAI conventions, sent over OTLP/HTTP or
written as OTLP JSON lines.

A session is a trace: a span ``invoke_agent``, below it ``chat`` spans (a turn from ready to its last
token) and ``execute_tool`` spans (a call from its start to its end); sub-agents are ``invoke_agent``
spans below their parent's. Ids follow from run, cell, session, turn and call, so that exporting twice
gives the same spans. Conventions: open-telemetry/semantic-conventions-genai, in development.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, BinaryIO

from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from marsbench.core import PS_PER_S
from marsbench.errors import ResultsError
from marsbench.export.spans import CallTimes, SessionSpan, TurnSpan

BATCH = 512
"""Spans in one request."""
SCOPE = "marsbench"
TOOL_QUEUE = "marsbench.execute_tool.queue.duration"
"""Proposed for the conventions as ``gen_ai.execute_tool.queue.duration``: they count a tool's run, but
not how long it waited for a place to run."""
SECONDS = [0.01 * 2**k for k in range(21)]
"""Bounds that the conventions give for durations (to 81.92 s), continued to three hours for agents."""
TTFT = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
        25.0, 50.0, 100.0, 250.0, 500.0, 1000.0]  # fmt: skip
METRICS: dict[str, tuple[str, list[float]]] = {
    "gen_ai.invoke_agent.duration": ("A session from its arrival to its end.", SECONDS),
    "gen_ai.execute_tool.duration": ("A tool call from its start to its end.", SECONDS),
    TOOL_QUEUE: ("A tool call from when it was asked for to its start.", SECONDS),
    "gen_ai.client.operation.duration": ("A turn from ready to its last token.", SECONDS),
    "gen_ai.server.request.duration": ("A turn from its submission to its last token.", SECONDS),
    "gen_ai.server.time_to_first_token": ("A turn from its submission to its first token.", TTFT),
    "gen_ai.server.time_per_output_token": ("Mean time of a turn's tokens after the first.", TTFT),
}


class CellTelemetry:
    """Spans of one cell, and what its metrics are told.

    ``start_ns``: the moment, in nanoseconds since 1970, at which the cell's clock says 0. ``key``: what
    was run, as in ``summary.json``.
    """

    def __init__(self, run_id: str, cell: int, key: Mapping[str, Any], start_ns: int) -> None:
        self._place = f"{run_id}/{cell}"
        self._start_ns = start_ns
        told = {name: value for name, value in key.items() if value is not None}
        self.resource = Resource.create(
            {
                "service.name": "marsbench",
                "marsbench.run_id": run_id,
                "marsbench.cell": cell,
                **{f"marsbench.{name}": value for name, value in told.items()},
            }
        )
        model = str(key.get("profile", "")).rpartition("/")[2]
        self._common = {
            "gen_ai.provider.name": str(key.get("engine", "")),
            "gen_ai.request.model": model,
        }

    def spans(self, session: SessionSpan, parent_id: str | None) -> Iterator[ReadableSpan]:
        """A session's spans, its own first. ``parent_id``: id of the session it is a sub-agent of."""
        agent = self._context(session.root, session.session_id)
        above = None if parent_id is None else self._context(session.root, parent_id)
        attributes = {
            "gen_ai.operation.name": "invoke_agent",
            **self._common,
            "gen_ai.conversation.id": session.root,
            "gen_ai.agent.id": session.session_id,
        }
        failed = session.status != "ok"
        yield self._span(
            "invoke_agent", agent, above, SpanKind.INTERNAL, session.arrival_ps, session.end_ps,
            attributes, error=session.status if failed else "",
        )  # fmt: skip
        for turn in session.turns.values():
            yield self._turn(session, turn, agent)
            for call in turn.calls.values():
                if call.started_ps >= 0:
                    yield self._call(session, turn, call, agent)

    def measurements(self, session: SessionSpan) -> Iterator[tuple[str, float, dict[str, str]]]:
        """Metric, seconds and attributes of all that a session did."""
        agent = {"gen_ai.operation.name": "invoke_agent", **self._common}
        if session.status != "ok":
            agent["error.type"] = session.status
        yield "gen_ai.invoke_agent.duration", _s(session.end_ps - session.arrival_ps), agent
        for turn in session.turns.values():
            yield from self._turn_measurements(turn)
            for call in turn.calls.values():
                yield from self._call_measurements(call)

    def _turn_measurements(self, turn: TurnSpan) -> Iterator[tuple[str, float, dict[str, str]]]:
        about = {"gen_ai.operation.name": "chat", **self._common}
        if turn.end_ps < 0:
            return
        yield "gen_ai.client.operation.duration", _s(turn.end_ps - turn.ready_ps), about
        if turn.submit_ps < 0 or turn.first_token_ps < 0:
            return
        yield "gen_ai.server.request.duration", _s(turn.end_ps - turn.submit_ps), about
        first = _s(turn.first_token_ps - turn.submit_ps)
        yield "gen_ai.server.time_to_first_token", first, about
        if turn.output_tokens > 1:
            each = _s(turn.end_ps - turn.first_token_ps) / (turn.output_tokens - 1)
            yield "gen_ai.server.time_per_output_token", each, about

    def _call_measurements(self, call: CallTimes) -> Iterator[tuple[str, float, dict[str, str]]]:
        if call.started_ps < 0:
            return
        about = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": call.name or "tool"}
        yield TOOL_QUEUE, _s(call.started_ps - call.enqueued_ps), about
        if call.ended_ps >= 0:
            failed = {"error.type": "tool_error"} if call.error else {}
            took = _s(call.ended_ps - call.started_ps)
            yield "gen_ai.execute_tool.duration", took, about | failed

    def _turn(self, session: SessionSpan, turn: TurnSpan, agent: SpanContext) -> ReadableSpan:
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "chat",
            **self._common,
            "gen_ai.conversation.id": session.root,
            "gen_ai.usage.input_tokens": turn.prompt_tokens,
            "gen_ai.usage.output_tokens": turn.output_tokens,
            "gen_ai.usage.cache_read.input_tokens": turn.cached_tokens,
            "marsbench.turn.recomputed_tokens": turn.recomputed_tokens,
            "marsbench.turn.preemptions": len(turn.preempted),
        }
        if turn.replica >= 0:
            attributes["marsbench.turn.replica"] = turn.replica
        moments = {
            "submitted": turn.submit_ps,
            "scheduled": turn.sched_first_ps,
            "first_token": turn.first_token_ps,
        }
        events = [Event(name, timestamp=self._ns(ps)) for name, ps in moments.items() if ps >= 0]
        context = self._context(session.root, session.session_id, turn.turn)
        model = self._common["gen_ai.request.model"]
        end = turn.end_ps if turn.end_ps >= 0 else max(session.end_ps, turn.ready_ps)
        error = "" if turn.end_ps >= 0 else "cancelled"
        return self._span(
            f"chat {model}".strip(), context, agent, SpanKind.CLIENT, turn.ready_ps, end, attributes,
            events=events, error=error,
        )  # fmt: skip

    def _call(
        self, session: SessionSpan, turn: TurnSpan, call: CallTimes, agent: SpanContext
    ) -> ReadableSpan:
        name = call.name or "tool"
        attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": name,
            "gen_ai.tool.type": "function",
            "gen_ai.tool.call.id": f"{session.session_id}/{turn.turn}/{call.call}",
            "marsbench.tool.class": call.tool_class,
            "marsbench.tool.queue_s": _s(call.started_ps - call.enqueued_ps),
            "marsbench.tool.cpu_s": _s(call.cpu_ps),
        }
        context = self._context(session.root, session.session_id, turn.turn, call.call)
        end = call.ended_ps if call.ended_ps >= 0 else max(session.end_ps, call.started_ps)
        failed = "tool_error" if call.error else "" if call.ended_ps >= 0 else "cancelled"
        return self._span(
            f"execute_tool {name}", context, agent, SpanKind.INTERNAL, call.started_ps, end,
            attributes, error=failed,
        )  # fmt: skip

    def _span(
        self, name: str, context: SpanContext, parent: SpanContext | None, kind: SpanKind,
        start_ps: int, end_ps: int, attributes: dict[str, Any], *,
        events: Sequence[Event] = (), error: str = "",
    ) -> ReadableSpan:  # fmt: skip
        failed = {"error.type": error} if error else {}
        return ReadableSpan(
            name,
            context=context,
            parent=parent,
            resource=self.resource,
            attributes={key: value for key, value in (attributes | failed).items() if value != ""},
            events=events,
            kind=kind,
            status=Status(StatusCode.ERROR, error) if error else Status(StatusCode.UNSET),
            start_time=self._ns(start_ps),
            end_time=self._ns(max(end_ps, start_ps)),
            instrumentation_scope=InstrumentationScope(SCOPE),
        )

    def _context(self, root: str, *place: object) -> SpanContext:
        """Ids of 16 and 8 bytes from names; none is all zeros, which the format forbids."""
        trace_id = _digest(16, self._place, root)
        span_id = _digest(8, self._place, *place)
        return SpanContext(trace_id, span_id, is_remote=False, trace_flags=TraceFlags(1))

    def _ns(self, ps: int) -> int:
        return self._start_ns + ps // 1000


class Sender:
    """Sends spans and metrics to an OTLP/HTTP endpoint: its address without ``/v1/traces``."""

    def __init__(self, endpoint: str, headers: Mapping[str, str], timeout_s: float = 10.0) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._headers, self._timeout_s = dict(headers), timeout_s
        self._spans = OTLPSpanExporter(
            f"{self._endpoint}/v1/traces", headers=self._headers, timeout=timeout_s
        )
        self._waiting: list[ReadableSpan] = []
        self._meters: dict[str, tuple[MeterProvider, dict[str, Any]]] = {}
        self.num_spans = 0

    def take(self, telemetry: CellTelemetry, session: SessionSpan, parent_id: str | None) -> None:
        """Send a session's spans, in batches, and count what it did in its cell's metrics."""
        self._waiting += telemetry.spans(session, parent_id)
        histograms = self._histograms(telemetry)
        for name, value, attributes in telemetry.measurements(session):
            histograms[name].record(value, attributes)
        while len(self._waiting) >= BATCH:
            self._send()

    def flush(self) -> None:
        """Send all that is waiting, and the metrics as they stand.

        Raises ResultsError if the endpoint does not take them.
        """
        while self._waiting:
            self._send()
        for provider, _ in self._meters.values():
            if not provider.force_flush(timeout_millis=round(1000 * self._timeout_s)):
                raise self._refused("metrics")

    def close(self) -> None:
        """Stop; what was not flushed is lost."""
        self._spans.shutdown()  # type: ignore[no-untyped-call]
        for provider, _ in self._meters.values():
            provider.shutdown()

    def _send(self) -> None:
        batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
        if self._spans.export(batch) is not SpanExportResult.SUCCESS:
            raise self._refused("spans")
        self.num_spans += len(batch)

    def _refused(self, what: str) -> ResultsError:
        return ResultsError(
            f"{self._endpoint} does not take {what} over OTLP/HTTP; is a collector listening there "
            "(its HTTP port is usually 4318)?"
        )

    def _histograms(self, telemetry: CellTelemetry) -> dict[str, Any]:
        """The instruments of a cell: each has a resource, hence a provider, of its own."""
        place = json.dumps(dict(telemetry.resource.attributes), sort_keys=True, default=str)
        if place not in self._meters:
            exporter = OTLPMetricExporter(
                f"{self._endpoint}/v1/metrics", headers=self._headers, timeout=self._timeout_s
            )
            reader = PeriodicExportingMetricReader(exporter, export_interval_millis=float("inf"))
            provider = MeterProvider([reader], telemetry.resource, shutdown_on_exit=False)
            meter = provider.get_meter(SCOPE)
            made = {
                name: meter.create_histogram(
                    name, "s", about, explicit_bucket_boundaries_advisory=bounds
                )
                for name, (about, bounds) in METRICS.items()
            }
            self._meters[place] = (provider, made)
        return self._meters[place][1]


def write_json(spans: Iterable[ReadableSpan], stream: BinaryIO) -> int:
    """Write spans as OTLP JSON, one request a line, as a collector's file exporter does; how many.

    The importer of format ``otel_genai`` reads it back.
    """
    number = 0
    batch: list[ReadableSpan] = []
    for span in spans:
        batch.append(span)
        if len(batch) == BATCH:
            stream.write(_line(batch))
            number, batch = number + len(batch), []
    if batch:
        stream.write(_line(batch))
    return number + len(batch)


def _line(batch: Sequence[ReadableSpan]) -> bytes:
    message = MessageToDict(encode_spans(batch), use_integers_for_enums=True)
    for resource in message["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                for name in ("traceId", "spanId", "parentSpanId"):
                    if name in span:  # OTLP wants hexadecimal where protobuf's JSON has base64
                        span[name] = base64.b64decode(span[name]).hex()
    return json.dumps(message, ensure_ascii=False).encode() + b"\n"


def _digest(size: int, *place: object) -> int:
    text = "\0".join(str(part) for part in place)
    return int.from_bytes(blake2b(text.encode(), digest_size=size).digest()) or 1


def _s(ps: int) -> float:
    return ps / PS_PER_S
