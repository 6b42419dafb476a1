"""Served sessions as OpenTelemetry spans, sent over OTLP/HTTP while they happen. No prompt, no reply.

A session is a span ``invoke_agent``; below it stand its turns (``chat``, from ready to the end of the
reply) and the tool calls that the gateway knows or infers (``execute_tool``). A request that brings a
``traceparent`` of its own is a span of that trace instead, and the backend is told ours, so that an
engine that traces (vLLM's ``--otlp-traces-endpoint``) continues it. Names are those of OpenTelemetry's
GenAI conventions. Spans are batched and sent by a thread of the SDK; what a slow collector does not
take is dropped there, and turns never wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from marsbench.core import PS_PER_S, to_ps
from marsbench.events import Event, Kind
from marsbench.events import Status as SessionStatus
from marsbench.gateway.control.desk import TRACE_HEADERS, Carried, LocalTurn
from marsbench.gateway.control.plane import TurnEnd
from marsbench.gateway.control.sessions import LiveSession

MOST_OPEN = 100_000
"""Sessions with an open span; further ones have turns without a session's span above them."""
_propagator = TraceContextTextMapPropagator()


class Traces:
    """Hears turns (``TurnObserver``) and events (``EventSink``), and sends spans."""

    def __init__(
        self,
        endpoint: str,
        system: str,
        now_ps: Callable[[], int],
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        resource = Resource.create(
            {
                "service.name": "marsbench-gateway",
                "service.version": version("marsbench"),
                "marsbench.system": system,
            }
        )
        self.strings: Sequence[str] = ()
        """The event log's table of names."""
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("marsbench.gateway")
        self._start_ns = wall_ns() - now_ps() // 1000
        self._sessions: dict[int, Span] = {}
        self._ready_ps: dict[int, int] = {}
        self._turns: dict[int, Span] = {}
        self._calls: dict[int, dict[tuple[int, int], Span]] = {}

    # --- TurnObserver

    def sent(self, turn: LocalTurn, at_ps: int) -> None:
        """Begin the span of a turn that goes to a backend, which is told of it."""
        session = turn.session
        given = {name: value for name, value in turn.ask.headers if name in TRACE_HEADERS}
        above = _propagator.extract(given) if "traceparent" in given else self._above(session)
        ready_ps = self._ready_ps.pop(session.session, at_ps)
        model = turn.ask.prompt.model
        span = self._tracer.start_span(
            f"chat {model}".strip(),
            above,
            SpanKind.CLIENT,
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.request.model": model,
                "gen_ai.conversation.id": session.session_id,
                "marsbench.turn": session.turn_index,
                "marsbench.tenant": session.tenant,
                "marsbench.admission_wait_s": (at_ps - ready_ps) / PS_PER_S,
            },
            start_time=self._ns(ready_ps),
        )
        span.add_event("submitted", timestamp=self._ns(at_ps))
        self._turns[session.session] = span
        told: dict[str, str] = {}
        _propagator.inject(told, set_span_in_context(span))
        turn.trace_headers = list(told.items())

    def done(self, turn: LocalTurn, carried: Carried, end: TurnEnd, at_ps: int) -> None:
        """End the span of a turn."""
        reply = carried.reply
        span = self._turns.pop(turn.session.session, None)
        if span is None:
            return
        span.set_attribute("gen_ai.response.id", reply.response_id)
        span.set_attribute("gen_ai.usage.output_tokens", end.output_tokens)
        span.set_attribute("marsbench.backend", turn.session.backend or 0)
        if end.prompt_tokens is not None:
            span.set_attribute("gen_ai.usage.input_tokens", end.prompt_tokens)
        if end.cached_tokens is not None:
            span.set_attribute("gen_ai.usage.cache_read.input_tokens", end.cached_tokens)
        if reply.finish_reason:
            span.set_attribute("gen_ai.response.finish_reasons", [reply.finish_reason])
        if not end.ok:
            _fail(span, "cancelled" if carried.finished is False else "upstream_error")
        span.end(self._ns(at_ps))

    # --- EventSink

    def event(self, event: Event, session_id: str) -> None:
        """Take in one event of the stream."""
        take = _TAKES.get(event.kind)
        if take is not None:
            take(self, event, session_id)

    def close(self) -> None:
        """End what is open, and send it. Waits for the collector, at most for the SDK's time-outs."""
        for calls in self._calls.values():
            for span in calls.values():
                span.end()
        for span in (*self._turns.values(), *self._sessions.values()):
            span.end()
        self._provider.shutdown()

    # --- its own

    def _arrived(self, event: Event, session_id: str) -> None:
        if len(self._sessions) >= MOST_OPEN:
            return
        parent = self._sessions.get(event.get("parent"))
        self._sessions[event.session] = self._tracer.start_span(
            "invoke_agent",
            None if parent is None else set_span_in_context(parent),
            attributes={
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.conversation.id": session_id,
            },
            start_time=self._event_ns(event),
        )

    def _ready(self, event: Event, session_id: str) -> None:
        self._ready_ps[event.session] = to_ps(event.time_s)

    def _first_token(self, event: Event, session_id: str) -> None:
        span = self._turns.get(event.session)
        if span is not None:
            span.add_event("first_token", timestamp=self._event_ns(event))

    def _call_began(self, event: Event, session_id: str) -> None:
        name, kind = (self.strings[event.get(field)] for field in ("name", "tool_class"))
        above = self._sessions.get(event.session)
        span = self._tracer.start_span(
            f"execute_tool {name}",
            None if above is None else set_span_in_context(above),
            attributes={
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": name,
                "gen_ai.tool.type": "function",
                "gen_ai.conversation.id": session_id,
                "marsbench.tool.class": kind,
            },
            start_time=self._event_ns(event),
        )
        calls = self._calls.setdefault(event.session, {})
        replaced = calls.pop((event.turn, event.call), None)  # a lease stands for an inferred call
        if replaced is not None:
            replaced.end(self._event_ns(event))
        calls[event.turn, event.call] = span

    def _call_ended(self, event: Event, session_id: str) -> None:
        span = self._calls.get(event.session, {}).pop((event.turn, event.call), None)
        if span is None:
            return
        if event.get("error"):
            _fail(span, "tool_error")
        span.end(self._event_ns(event))

    def _session_ended(self, event: Event, session_id: str) -> None:
        at_ns = self._event_ns(event)
        self._ready_ps.pop(event.session, None)
        for call in self._calls.pop(event.session, {}).values():
            call.end(at_ns)
        span = self._sessions.pop(event.session, None)
        if span is not None:
            status = SessionStatus(event.get("status"))
            if status != SessionStatus.OK:
                _fail(span, status.name.lower())
            span.end(at_ns)

    def _above(self, session: LiveSession) -> Context | None:
        span = self._sessions.get(session.session)
        return None if span is None else set_span_in_context(span)

    def _event_ns(self, event: Event) -> int:
        return self._ns(to_ps(event.time_s))

    def _ns(self, at_ps: int) -> int:
        return self._start_ns + at_ps // 1000


def _fail(span: Span, error: str) -> None:
    span.set_attribute("error.type", error)
    span.set_status(Status(StatusCode.ERROR))


_TAKES: Mapping[int, Callable[[Traces, Event, str], None]] = {
    Kind.SESSION_ARRIVE: Traces._arrived,  # noqa: SLF001 - a table of its methods
    Kind.TURN_READY: Traces._ready,  # noqa: SLF001
    Kind.GPU_FIRST_TOKEN: Traces._first_token,  # noqa: SLF001
    Kind.TOOL_START: Traces._call_began,  # noqa: SLF001
    Kind.TOOL_END: Traces._call_ended,  # noqa: SLF001
    Kind.SESSION_END: Traces._session_ended,  # noqa: SLF001
}
