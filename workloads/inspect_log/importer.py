"""Importer of Inspect evaluation logs (.json and .eval): model and tool events of each sample."""

from __future__ import annotations

import io as memory
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from marsbench.core import Session, ToolCall
from marsbench.errors import TraceError
from marsbench.trace import io
from marsbench.trace.importer import TraceSample
from workloads.messages import argument_command, content_text, text_tokens
from workloads.rows import (
    Row,
    has_keys,
    read_document,
    recognise,
    timestamp_s,
    trace_files,
    wanted,
)
from workloads.spans import SPAN_PROVENANCE, AgentSpan, SpanTree, span_sessions
from workloads.tool_class import tool_class

_ZIP_MAGIC = b"PK\x03\x04"
_PROMPT_PARTS = ("input_tokens", "input_tokens_cache_read", "input_tokens_cache_write")


class InspectLog:
    """Reads the samples of one log after the other; all logs are read before the first session."""

    name = "inspect_log"
    summary = "Inspect evaluation logs (.json, .eval): one session a sample and epoch"
    provenance: Mapping[str, str] = {
        **SPAN_PROVENANCE,
        "turns": "recorded: model events that have a usage",
        "new_input_tokens": "derived: growth of the prompt (input, cache read and cache write "
        "tokens) less the re-sent output",
        "tools.result_tokens": "derived: characters of the result / 3.4",
    }

    def sniff(self, sample: TraceSample) -> bool:
        if sample.head:
            is_zip = sample.head.startswith(_ZIP_MAGIC) and sample.path.suffix == ".eval"
            return is_zip or recognise(sample, self.matches)
        names = sample.names
        return any(name.endswith(".eval") for name in names) or recognise(sample, self.matches)

    def matches(self, value: Any) -> bool:
        """Tell whether a decoded document is a log, or the beginning of one."""
        return has_keys(value, "version", "eval") and has_keys(value["eval"], "task", "model")

    def read(self, path: Path) -> Iterator[Session]:
        trees: list[SpanTree] = []
        for file in _files(path):
            for task, sample in _samples(file):
                trees.append(_tree(task, sample))
        return span_sessions(trees, self.name)


def _files(path: Path) -> list[Path]:
    packed = [] if path.is_file() else wanted(sorted(path.rglob("*.eval")))
    return packed or trace_files(path)


def _samples(file: Path) -> Iterator[tuple[Row, Row]]:
    """Yield for each sample of a log what was evaluated, and the sample."""
    if io.head(file, len(_ZIP_MAGIC)) == _ZIP_MAGIC:
        yield from _packed_samples(file)
        return
    log = _object(read_document(file), file)
    task = log.child(log.mapping("eval"), "eval")
    for sample in log.rows("samples"):
        yield task, sample


def _packed_samples(file: Path) -> Iterator[tuple[Row, Row]]:
    try:
        with zipfile.ZipFile(memory.BytesIO(file.read_bytes())) as archive:
            names = archive.namelist()
            start = next((n for n in ("header.json", "_journal/start.json") if n in names), "")
            log = _object(msgspec.json.decode(archive.read(start)), file)
            task = log.child(log.mapping("eval"), "eval")
            for name in sorted(n for n in names if n.startswith("samples/")):
                yield task, _object(msgspec.json.decode(archive.read(name)), file)
    except (OSError, KeyError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        problem = f"is no Inspect log ({error}); `inspect log convert --to json` writes JSON"
        raise TraceError(problem, path=str(file)) from error


def _object(value: object, file: Path) -> Row:
    if not isinstance(value, dict):
        raise TraceError(f"expected an object, found {type(value).__name__}", path=str(file))
    return Row(value, str(file))


def _tree(task: Row, sample: Row) -> SpanTree:
    name = f"{sample.value.get('id', '')}/{sample.value.get('epoch', 1)}"
    run = task.text("task_id", task.text("run_id", ""))
    tree = SpanTree(f"{run}/{name}" if run else name, sample.path)
    tool_spans: set[str] = set()
    for number, event in enumerate(sample.rows("events")):
        span = _span(event, number)
        if span is None:
            continue
        tree.spans[span.span_id] = span
        if event.value.get("event") == "span_begin" and event.value.get("type") == "tool":
            tool_spans.add(span.span_id)
    for tool in [span for span in tree.spans.values() if span.kind == "tool"]:
        if tool.parent_id in tool_spans:  # the event stands inside a span of its own: it is that
            around = tree.spans[tool.parent_id]
            del tree.spans[tool.span_id]
            tree.spans[around.span_id] = replace(
                tool, span_id=around.span_id, parent_id=around.parent_id
            )
    return tree


def _span(event: Row, number: int) -> AgentSpan | None:
    """Return the span of an event, or None for an event that takes no time and for a call without
    an answer.
    """
    kind = event.value.get("event")
    parent = event.value.get("span_id")
    inside = parent if isinstance(parent, str) else None
    if kind == "span_begin":
        above = event.value.get("parent_id")
        start_s = _time(event, "timestamp")
        is_agent = event.value.get("type") in ("agent", "subtask")
        return AgentSpan(
            event.text("id"),
            above if isinstance(above, str) else None,
            "agent" if is_agent else "other",
            start_s,
            start_s,
            agent=event.text("name", "") if is_agent else "",
        )
    if kind == "model":
        return _model_call(event, f"model:{number}", inside)
    if kind == "tool":
        start_s = _time(event, "timestamp")
        end_s = _end(event, start_s)
        return AgentSpan(f"tool:{number}", inside, "tool", start_s, end_s, tool=_tool(event))
    return None


def _model_call(event: Row, name: str, inside: str | None) -> AgentSpan | None:
    output = event.child(event.mapping("output"), "output")
    usage = event.child(output.mapping("usage"), "output.usage")
    prompt = sum(usage.integer(field, 0) for field in _PROMPT_PARTS)
    if prompt == 0:
        return None  # an error, or an answer from Inspect's own cache: no engine saw it
    start_s = _time(event, "timestamp")
    return AgentSpan(
        name,
        inside,
        "call",
        start_s,
        _end(event, start_s),
        prompt_tokens=prompt,
        output_tokens=usage.integer("output_tokens", 0),
        model=event.text("model", ""),
    )


def _time(event: Row, field: str) -> float:
    found = timestamp_s(event.value.get(field))
    if found is None:
        raise event.error(f"expected a time, found {event.value.get(field)!r}", field)
    return found


def _end(event: Row, start_s: float) -> float:
    """Return the end of an event: as it is stamped, or else its working time after the start."""
    completed = timestamp_s(event.value.get("completed"))
    if completed is not None:
        return max(start_s, completed)
    return start_s + event.number("working_time", 0.0)


def _tool(event: Row) -> ToolCall:
    name = event.text("function", "tool")
    result = event.value.get("result")
    return ToolCall(
        name=name,
        tool_class=tool_class(name, argument_command(event.value.get("arguments"))),
        wall_s=0.0,
        result_tokens=None if result is None else text_tokens(content_text(result)),
        error=event.value.get("error") is not None,
    )


IMPORTER = InspectLog()
