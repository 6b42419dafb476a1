"""Importer of OpenHands V0: evaluation rows (output.jsonl) and bare event lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from marsbench.core import Session, ToolCall
from marsbench.trace.importer import TraceSample
from workloads.context import build_session
from workloads.messages import argument_command, text_tokens
from workloads.openhands import Answer, Prefixes, answer_calls, model_name, recognise_rows, usages
from workloads.rows import (
    Row,
    RowSource,
    between_s,
    head_of,
    head_values,
    read_document,
    read_rows,
    timestamp_s,
    trace_files,
)
from workloads.swe_agent.importer import session_name
from workloads.tool_class import tool_class

_NOT_ANSWERS = frozenset(["system", "recall", "condensation", "change_agent_state", "null"])
_CLASS_OF_ACTION = {"read": "read", "edit": "edit", "write": "edit", "think": "plan"}


class OpenHandsV0:
    """Reads one row (or trajectory file) after the other."""

    name = "openhands_v0"
    summary = "OpenHands V0: evaluation output.jsonl, trajectories of events"
    provenance: Mapping[str, str] = {
        "agent": "recorded: agent_class",
        "model": "recorded: llm_config",
        "new_input_tokens": "derived: growth of recorded prompts less the re-sent output; "
        "estimated (characters / 3.4) where no usage is recorded",
        "output_tokens": "recorded (token_usages, or usage of the response)",
        "resent_output": "assumed: 1.0 where the prompt has room for the whole output",
        "drop_context_to": "derived: after a condensation, or where the prompt shrinks",
        "tools.name": "recorded",
        "tools.class": "derived: from action and command",
        "tools.wall_s": "recorded: action to observation; polled about every 0.6 s",
        "tools.result_tokens": "derived: characters / 3.4",
        "tools.error": "recorded",
        "think_s": "derived: last observation to the next action less the call's latency",
        "shared_prefix": "derived: equal text of system prompt and tools, as its share of the "
        "first prompt's characters",
    }

    def sniff(self, sample: TraceSample) -> bool:
        return recognise_rows(sample, self.matches)

    def matches(self, value: Any) -> bool:
        """Tell whether a decoded row or list of events is of this format."""
        history = value.get("history") if isinstance(value, dict) else value
        if not isinstance(history, list) or not history:
            return False
        first = history[0]
        if isinstance(first, list):
            first = first[0] if first else None
        if not isinstance(first, dict) or "kind" in first or "role" in first:
            return False
        return ("action" in first or "observation" in first) and "source" in first

    def read(self, path: Path) -> Iterator[Session]:
        return self.sessions(lambda: _rows(path), root=path)

    def sessions(self, rows: RowSource, root: Path | None = None) -> Iterator[Session]:
        prefixes = Prefixes()
        for row in rows():
            yield _session(row, session_name(row, root), prefixes)


def _rows(path: Path) -> Iterator[Row]:
    for file in trace_files(path):
        values = head_values(head_of(file))
        if values and isinstance(values[0], list):
            yield Row({"history": read_document(file)}, str(file))
        else:
            yield from read_rows(file)


def _session(row: Row, session_id: str, prefixes: Prefixes) -> Session:
    events = _events(row)
    answers = _answers(events)
    if not answers:
        raise row.error("holds no action of the agent", "history")
    metrics = Row(row.mapping("metrics"), row.path, row.line)
    recorded = usages(metrics) or usages(_embedded_usage(row, events))
    calls = answer_calls(answers, recorded)
    metadata = row.mapping("metadata")
    return build_session(
        session_id,
        calls,
        agent=str(metadata.get("agent_class") or "openhands"),
        model=model_name(row, "llm_config"),
        prefix=prefixes.of(_system_text(events), answers[0], calls),
    )


def _events(row: Row) -> list[Row]:
    """Return the events in order; older rows hold (action, observation) pairs."""
    events: list[Row] = []
    for index, item in enumerate(row.items("history")):
        parts = item if isinstance(item, list) else [item]
        events += [row.child(part, f"history[{index}]") for part in parts]
    return events


def _embedded_usage(row: Row, events: list[Row]) -> Row:
    """Return the usage of the responses that a trajectory carries with its actions."""
    found: dict[str, dict[str, Any]] = {}
    for event in events:
        response = _response(event)
        usage = response.mapping("usage")
        if usage.get("prompt_tokens"):
            found[response.text("id", "")] = {
                "response_id": response.text("id", ""),
                "prompt_tokens": usage["prompt_tokens"],
                "completion_tokens": usage.get("completion_tokens") or 0,
            }
    return Row({"token_usages": list(found.values())}, row.path, row.line)


def _response(event: Row) -> Row:
    metadata = Row(event.mapping("tool_call_metadata"), event.path, event.line)
    return Row(metadata.mapping("model_response"), event.path, event.line)


def _system_text(events: list[Row]) -> str:
    for event in events:
        if event.value.get("action") == "system":
            args = event.mapping("args")
            tools = msgspec.json.encode(args.get("tools") or []).decode()
            return str(args.get("content") or "") + tools
    return ""


def _answers(events: list[Row]) -> list[Answer]:
    """Group the agent's actions by response and hang observations on them."""
    results = {str(e.value.get("cause")): e for e in events if _is_result(e)}
    answers: list[Answer] = []
    fresh_chars = len(_system_text(events))
    compacted = False
    for event in events:
        action = event.text("action", "")
        if _is_result(event):
            fresh_chars += len(str(event.value.get("content") or ""))
        elif action == "condensation":
            compacted = bool(answers)
        elif event.value.get("source") == "agent" and action and action not in _NOT_ANSWERS:
            answer_id = str(_response(event).value.get("id") or "")
            if not answers or not answer_id or answers[-1].response_id != answer_id:
                time_s = timestamp_s(event.value.get("timestamp"))
                answers.append(
                    Answer(answer_id, time_s, new_chars=fresh_chars, compacted=compacted)
                )
                fresh_chars, compacted = 0, False
            _add_action(answers[-1], event, results.get(str(event.value.get("id"))))
        elif action == "message":
            fresh_chars += len(str(event.mapping("args").get("content") or ""))
    return answers


def _is_result(event: Row) -> bool:
    return event.value.get("observation") is not None


def _add_action(answer: Answer, event: Row, result: Row | None) -> None:
    action = event.text("action")
    args = event.mapping("args")
    answer.output_chars += sum(len(str(value)) for value in args.values() if value)
    if action in {"message", "finish"} and result is None:
        return
    metadata = event.mapping("tool_call_metadata")
    command = argument_command(args)
    start = timestamp_s(event.value.get("timestamp"))
    end = None if result is None else timestamp_s(result.value.get("timestamp"))
    content = "" if result is None else str(result.value.get("content") or "")
    answer.tools.append(
        ToolCall(
            name=str(metadata.get("function_name") or action),
            tool_class=_CLASS_OF_ACTION.get(action) or tool_class(action, command),
            wall_s=between_s(start, end),
            result_tokens=None if result is None else text_tokens(content),
            error=result is None or _failed(result),
        )
    )
    if end is not None:
        answer.end_s = max(end, answer.end_s or end)


def _failed(result: Row) -> bool:
    return result.value.get("observation") == "error" or result.value.get("success") is False


IMPORTER = OpenHandsV0()
