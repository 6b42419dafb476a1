"""Importer of Langfuse exports: traces with their observations, or observations one by one."""

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

_KINDS: dict[str, Literal["call", "tool", "agent", "other"]] = {
    "GENERATION": "call",
    "TOOL": "tool",
    "AGENT": "agent",
}
_TYPES = {*_KINDS, "SPAN", "EVENT", "CHAIN", "RETRIEVER", "EVALUATOR", "EMBEDDING", "GUARDRAIL"}


class Langfuse:
    """Holds all observations of an export: those of one session may stand anywhere."""

    name = "langfuse"
    summary = "Langfuse exports: downloaded traces, or rows of the observations table"
    provenance: Mapping[str, str] = {
        **SPAN_PROVENANCE,
        "turns": "recorded: observations of type GENERATION, by session, else by trace",
        "tools.name": "recorded: observations of type TOOL",
    }

    def sniff(self, sample: TraceSample) -> bool:
        return recognise(sample, self.matches)

    def matches(self, value: Any) -> bool:
        """Tell whether a decoded value is an observation, or holds a list of them."""
        if isinstance(value, list):
            return bool(value) and self.matches(value[0])
        if not isinstance(value, dict):
            return False
        for field in ("observations", "data"):
            inner = value.get(field)
            if isinstance(inner, list) and inner and self.matches(inner[0]):
                return True
        return has_keys(value, "traceId", "type", "startTime") and str(value["type"]) in _TYPES

    def read(self, path: Path) -> Iterator[Session]:
        return self.sessions(lambda: read_rows(path))

    def sessions(self, rows: RowSource) -> Iterator[Session]:
        trees: dict[str, SpanTree] = {}
        for row in rows():
            for observation, session in _observations(row):
                trace_id = observation.text("traceId")
                tree = trees.setdefault(
                    session or trace_id, SpanTree(session or trace_id, row.path)
                )
                span = _span(observation)
                tree.spans[span.span_id] = span
        yield from span_sessions(trees.values(), self.name)


def _observations(row: Row) -> Iterator[tuple[Row, str]]:
    """Yield each observation of a row with the session it belongs to, "" if none is named."""
    session = _name(row)
    for field in ("observations", "data"):
        if isinstance(row.value.get(field), list):
            for observation in row.rows(field):
                yield observation, _name(observation) or session
            return
    yield row, session


def _name(row: Row) -> str:
    found = row.value.get("sessionId")
    return found if isinstance(found, str) else ""


def _span(row: Row) -> AgentSpan:
    kind = _KINDS.get(row.text("type", ""), "other")
    start_s, end_s = (timestamp_s(row.value.get(field)) for field in ("startTime", "endTime"))
    if start_s is None:
        raise row.error(f"expected a time, found {row.value.get('startTime')!r}", "startTime")
    usage = row.child(row.mapping("usageDetails") or row.mapping("usage"), "usageDetails")
    prompt, output = _tokens(usage, "input"), _tokens(usage, "output")
    if kind == "call" and prompt == 0:
        raise row.error("expected at least one prompt token", "usageDetails.input")
    parent = row.value.get("parentObservationId")
    name = row.text("name", "")
    return AgentSpan(
        span_id=row.text("id"),
        parent_id=parent if isinstance(parent, str) else None,
        kind=kind,
        start_s=start_s,
        end_s=max(start_s, start_s if end_s is None else end_s),
        prompt_tokens=prompt,
        output_tokens=output,
        prompt=prompt_parts(row.value.get("input")) if kind == "call" else (),
        model=row.text("model", row.text("providedModelName", "")),
        agent=name if kind == "agent" else "",
        tool=_tool(row, name or "tool") if kind == "tool" else None,
    )


def _tokens(usage: Row, side: str) -> int:
    """Return the tokens of one side. Langfuse keeps cached and reasoning tokens under keys of their
    own.
    """
    return sum(usage.integer(key, 0) for key in usage.value if side in str(key).split("_"))


def _tool(row: Row, name: str) -> ToolCall:
    output = row.value.get("output")
    return ToolCall(
        name=name,
        tool_class=tool_class(name, argument_command(row.value.get("input"))),
        wall_s=0.0,
        result_tokens=None if output is None else text_tokens(content_text(output)),
        error=row.value.get("level") == "ERROR",
    )


IMPORTER = Langfuse()
