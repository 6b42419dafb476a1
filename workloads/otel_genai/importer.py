"""Importer of OpenTelemetry spans with the GenAI conventions, from OTLP files or flat JSON spans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from marsbench.core import Session, ToolCall
from marsbench.trace.importer import TraceSample
from workloads.messages import argument_command, content_text, prompt_parts, text_tokens
from workloads.rows import Row, RowSource, has_keys, read_rows, recognise, timestamp_s
from workloads.spans import SPAN_PROVENANCE, AgentSpan, SpanTree, span_sessions
from workloads.tool_class import tool_class

CALL_OPERATIONS = ("chat", "text_completion", "generate_content")
_AGENT_OPERATIONS = ("invoke_agent", "create_agent", "invoke_workflow")
_PROMPT_KEYS = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
_OUTPUT_KEYS = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
_SESSION_KEYS = ("gen_ai.conversation.id", "session.id")
_MESSAGES = "gen_ai.input.messages"
_ANSWERS = ("gen_ai.output.messages", "gen_ai.output.text")
_NS_PER_S = 1e9
_ERROR_STATUS = (2, "STATUS_CODE_ERROR", "ERROR")


class OtelGenai:
    """Holds all spans of a trace: those of one session may stand anywhere."""

    name = "otel_genai"
    summary = "OpenTelemetry spans with GenAI conventions: OTLP JSON, or one JSON object a span"
    provenance: Mapping[str, str] = {
        **SPAN_PROVENANCE,
        "new_input_tokens": "derived: prompt growth less the re-sent output; lengths by characters "
        "/ 3.4 of logged messages where tokens are not counted",
        "output_tokens": "recorded, or derived: characters / 3.4",
        "turns": "recorded: spans with operation chat, text_completion or generate_content, by "
        "conversation id, else by trace",
    }

    def sniff(self, sample: TraceSample) -> bool:
        return recognise(sample, self.matches)

    def matches(self, value: Any) -> bool:
        """Tell whether a decoded value is an OTLP message or a flat span with GenAI attributes."""
        if isinstance(value, list):
            return any(self.matches(item) for item in value)
        if has_keys(value, "resourceSpans"):
            return True
        if has_keys(value, "spans", "trace_id"):
            return self.matches(value["spans"])
        attributes = value.get("attributes") if isinstance(value, dict) else None
        is_span = has_keys(value, "attributes", "name") and "start_time" in value
        return (
            is_span
            and isinstance(attributes, dict)
            and any(str(key).startswith("gen_ai.") for key in attributes)
        )

    def read(self, path: Path) -> Iterator[Session]:
        return self.sessions(lambda: read_rows(path))

    def sessions(self, rows: RowSource) -> Iterator[Session]:
        trees: dict[str, SpanTree] = {}
        conversation_of: dict[str, str] = {}
        spans = [span for row in rows() for span in _spans(row)]
        for span in spans:
            named = next((span.value["attributes"].get(key) for key in _SESSION_KEYS), None)
            if isinstance(named, str) and named:
                conversation_of.setdefault(span.text("trace_id"), named)
        for span in spans:
            trace_id = span.text("trace_id")
            name = conversation_of.get(trace_id, trace_id)
            tree = trees.setdefault(name, SpanTree(name, span.path))
            found = _agent_span(span)
            tree.spans[found.span_id] = found
        yield from span_sessions(trees.values(), self.name)


def _spans(row: Row) -> Iterator[Row]:
    """Yield the spans of a row, each with trace_id, span_id, parent_id, times in seconds, and
    attributes.
    """
    if "resourceSpans" not in row.value:
        flat = row.rows("spans") if "spans" in row.value else [row]
        yield from (_flat_span(span) for span in flat)
        return
    for resource in row.rows("resourceSpans"):
        for scope in resource.rows("scopeSpans"):
            for span in scope.rows("spans"):
                yield _otlp_span(span)


def _flat_span(row: Row) -> Row:
    context = row.mapping("context") or row.value
    status = row.value.get("status")
    return row.child(
        {
            "trace_id": context.get("trace_id"),
            "span_id": context.get("span_id"),
            "parent_id": row.value.get("parent_id", row.value.get("parent_span_id")),
            "name": row.text("name", ""),
            "start_s": timestamp_s(row.value.get("start_time")),
            "end_s": timestamp_s(row.value.get("end_time")),
            "attributes": row.mapping("attributes"),
            "status": status.get("status_code", status.get("code"))
            if isinstance(status, dict)
            else status,
        },
        "",
    )


def _otlp_span(row: Row) -> Row:
    return row.child(
        {
            "trace_id": row.value.get("traceId"),
            "span_id": row.value.get("spanId"),
            "parent_id": row.value.get("parentSpanId"),
            "name": row.text("name", ""),
            "start_s": _unix_s(row, "startTimeUnixNano"),
            "end_s": _unix_s(row, "endTimeUnixNano"),
            "attributes": {
                item.text("key"): _plain(item.value.get("value")) for item in row.rows("attributes")
            },
            "status": row.mapping("status").get("code"),
        },
        "",
    )


def _unix_s(row: Row, field: str) -> float:
    """Return the seconds of a field in nanoseconds, which OTLP writes as text."""
    try:
        return float(row.value.get(field, "")) / _NS_PER_S
    except (TypeError, ValueError):
        raise row.error(f"expected nanoseconds, found {row.value.get(field)!r}", field) from None


def _plain(value: object) -> Any:
    """Return a typed OTLP value as plain JSON."""
    if not isinstance(value, dict) or not value:
        return None
    kind, inner = next(iter(value.items()))
    if kind == "intValue":
        return int(inner) if str(inner).lstrip("-").isdigit() else inner
    if kind == "arrayValue" and isinstance(inner, dict):
        items = inner.get("values")
        return [_plain(item) for item in items] if isinstance(items, list) else []
    return inner


def _agent_span(span: Row) -> AgentSpan:
    attributes = span.child(span.value["attributes"], "attributes")
    operation = str(attributes.value.get("gen_ai.operation.name", ""))
    kind = _kind(operation, attributes)
    parent = span.value.get("parent_id")
    start, end = span.value["start_s"], span.value["end_s"]
    if start is None or end is None:
        raise span.error("a span needs a start and an end", "start_time")
    prompt, output = _lengths(attributes)
    if kind == "call" and prompt == 0:
        raise span.error("expected at least one prompt token", _PROMPT_KEYS[0])
    return AgentSpan(
        span_id=span.text("span_id"),
        parent_id=parent if isinstance(parent, str) and parent else None,
        kind=kind,
        start_s=start,
        end_s=max(start, end),
        prompt_tokens=prompt,
        output_tokens=output,
        prompt=prompt_parts(attributes.value.get(_MESSAGES)),
        model=str(
            attributes.value.get("gen_ai.response.model")
            or attributes.value.get("gen_ai.request.model")
            or ""
        ),
        agent=str(attributes.value.get("gen_ai.agent.name") or ""),
        tool=_tool(span, attributes) if kind == "tool" else None,
    )


def _kind(operation: str, attributes: Row) -> Literal["call", "tool", "agent", "other"]:
    if operation == "execute_tool":
        return "tool"
    if operation in _AGENT_OPERATIONS:
        return "agent"
    counted = any(key in attributes.value for key in (*_PROMPT_KEYS, _MESSAGES))
    return "call" if counted and operation in {*CALL_OPERATIONS, ""} else "other"


def _lengths(attributes: Row) -> tuple[int, int]:
    """Return the tokens of prompt and answer: as counted, or else by the characters of the logged
    messages.
    """
    prompt = _first_integer(attributes, _PROMPT_KEYS)
    output = _first_integer(attributes, _OUTPUT_KEYS)
    if prompt or any(key in attributes.value for key in _PROMPT_KEYS):
        return prompt, output
    answers = (attributes.value.get(key) for key in _ANSWERS)
    written = [sum(part.tokens for part in prompt_parts(answer)) for answer in answers]
    parts = prompt_parts(attributes.value.get(_MESSAGES))
    return sum(part.tokens for part in parts), output or max(written)


def _first_integer(row: Row, fields: tuple[str, ...]) -> int:
    for field in fields:
        if row.value.get(field) is not None:
            return row.integer(field)
    return 0


def _tool(span: Row, attributes: Row) -> ToolCall:
    name = str(attributes.value.get("gen_ai.tool.name") or span.text("name", "tool"))
    result = attributes.value.get("gen_ai.tool.call.result")
    command = argument_command(attributes.value.get("gen_ai.tool.call.arguments"))
    failed = bool(attributes.value.get("error.type")) or span.value["status"] in _ERROR_STATUS
    return ToolCall(
        name=name,
        tool_class=tool_class(name, command),
        wall_s=0.0,
        result_tokens=None if result is None else text_tokens(content_text(result)),
        error=failed,
    )


IMPORTER = OtelGenai()
