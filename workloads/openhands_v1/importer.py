"""Importer of OpenHands V1: conversation directories, and benchmark rows holding such events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from marsbench.core import Session, ToolCall
from marsbench.errors import TraceError
from marsbench.trace.importer import TraceSample
from workloads.context import build_session
from workloads.messages import argument_command, content_text, text_tokens
from workloads.openhands import (
    Answer,
    Prefixes,
    Usage,
    answer_calls,
    model_name,
    recognise_rows,
    usages,
)
from workloads.rows import (
    Row,
    RowSource,
    between_s,
    read_document,
    read_rows,
    timestamp_s,
    wanted,
)
from workloads.swe_agent.importer import session_name
from workloads.tool_class import tool_class

_STATE = "base_state.json"


class OpenHandsV1:
    """Reads one conversation directory (or benchmark row) after the other."""

    name = "openhands_v1"
    summary = "OpenHands V1 (SDK): conversation directories, benchmark output.jsonl"
    provenance: Mapping[str, str] = {
        "agent": "assumed: openhands",
        "model": "recorded: base state",
        "new_input_tokens": "derived: growth of recorded prompts less the re-sent output; "
        "estimated (characters / 3.4) where no usage is recorded",
        "output_tokens": "recorded: token_usages by response id",
        "resent_output": "assumed: 1.0 where the prompt has room for the whole output",
        "drop_context_to": "derived: after a condensation, or where the prompt shrinks; the "
        "condenser's own calls are left out",
        "tools.name": "recorded",
        "tools.class": "derived: from tool and command",
        "tools.wall_s": "recorded: action to observation; up to 0.5 s late by polling",
        "tools.result_tokens": "derived: characters / 3.4",
        "tools.error": "recorded",
        "think_s": "derived: last observation to the next action less the call's latency",
        "shared_prefix": "derived: equal text of system prompt and tools, as its share of the "
        "first prompt's characters",
    }

    def sniff(self, sample: TraceSample) -> bool:
        if sample.head:
            return recognise_rows(sample, self.matches)
        states = [name for name in sample.names if Path(name).name == _STATE]
        return bool(states) and any(Path(name).parent.name == "events" for name in sample.names)

    def matches(self, value: Any) -> bool:
        """Tell whether a decoded row holds a history of V1 events."""
        history = value.get("history") if isinstance(value, dict) else None
        if not isinstance(history, list) or not history or not isinstance(history[0], dict):
            return False
        return "kind" in history[0] and "source" in history[0]

    def read(self, path: Path) -> Iterator[Session]:
        if path.is_dir():
            return self._directories(path)
        return self.sessions(lambda: read_rows(path), root=path)

    def sessions(self, rows: RowSource, root: Path | None = None) -> Iterator[Session]:
        prefixes = Prefixes()
        for row in rows():
            metrics = Row(row.mapping("metrics"), row.path, row.line)
            recorded = _stats_usages(metrics) or usages(metrics)
            name = session_name(row, root)
            yield _session(
                row, name, row.rows("history"), recorded, prefixes, model_name(row, "llm")
            )

    def _directories(self, path: Path) -> Iterator[Session]:
        states = wanted(sorted(path.rglob(_STATE)))
        if not states:
            raise TraceError(f"no {_STATE} below it", path=str(path))
        prefixes = Prefixes()
        for file in states:
            state = _object(file)
            files = wanted(sorted((file.parent / "events").glob("*.json")))
            events = [_object(event) for event in files]
            agent = Row(state.mapping("agent"), state.path)
            stats = Row(state.mapping("stats"), state.path)
            session_id = state.text("id", file.parent.name)
            # NOTE: the llm object may hold keys; only the model's name is taken.
            model = Row(agent.mapping("llm"), state.path).text("model", "")
            yield _session(state, session_id, events, _stats_usages(stats), prefixes, model)


def _object(file: Path) -> Row:
    document = read_document(file)
    if not isinstance(document, dict):
        raise TraceError(f"expected an object, found {type(document).__name__}", path=str(file))
    return Row(document, str(file))


def _stats_usages(stats: Row) -> list[Usage]:
    """Return the calls of all usage ids (agent, condenser); answers find theirs by response id."""
    metrics = Row(stats.mapping("usage_to_metrics"), stats.path, stats.line)
    return [
        usage
        for name in metrics.value
        for usage in usages(Row(metrics.mapping(name), stats.path, stats.line))
    ]


def _session(
    row: Row,
    session_id: str,
    events: Sequence[Row],
    recorded: Sequence[Usage],
    prefixes: Prefixes,
    model: str,
) -> Session:
    answers = _answers(events)
    if not answers:
        raise row.error("holds no answer of the agent", "events")
    calls = answer_calls(answers, recorded)
    prefix = prefixes.of(_system_text(events), answers[0], calls)
    return build_session(session_id, calls, agent="openhands", model=model, prefix=prefix)


def _system_text(events: Sequence[Row]) -> str:
    for event in events:
        if event.value.get("kind") == "SystemPromptEvent":
            tools = msgspec.json.encode(event.value.get("tools") or []).decode()
            return content_text(event.value.get("system_prompt")) + tools
    return ""


def _answers(events: Sequence[Row]) -> list[Answer]:
    """Group the agent's events by response and hang observations on them."""
    results: dict[str, Row] = {}
    for event in events:
        if event.value.get("kind") in ("ObservationEvent", "AgentErrorEvent"):
            for field in ("action_id", "tool_call_id"):
                if isinstance(event.value.get(field), str):
                    results[event.value[field]] = event
    answers: list[Answer] = []
    fresh_chars = len(_system_text(events))
    compacted = False
    for event in events:
        kind = event.value.get("kind")
        if kind in ("ObservationEvent", "AgentErrorEvent"):
            fresh_chars += len(_result_text(event))
        elif kind == "Condensation":
            compacted = bool(answers)
            fresh_chars += len(event.text("summary", ""))
        elif kind == "MessageEvent" and event.value.get("source") != "agent":
            fresh_chars += len(content_text(event.mapping("llm_message")))
        elif kind in ("ActionEvent", "MessageEvent"):
            answer_id = event.text("llm_response_id", "")
            if not answers or not answer_id or answers[-1].response_id != answer_id:
                time_s = timestamp_s(event.value.get("timestamp"))
                answers.append(
                    Answer(answer_id, time_s, new_chars=fresh_chars, compacted=compacted)
                )
                fresh_chars, compacted = 0, False
            _add_event(answers[-1], event, results)
    return answers


def _add_event(answer: Answer, event: Row, results: Mapping[str, Row]) -> None:
    if event.value.get("kind") == "MessageEvent":
        answer.output_chars += len(content_text(event.mapping("llm_message")))
        return
    call = event.mapping("tool_call")
    arguments = call.get("arguments") or event.mapping("action")
    answer.output_chars += len(content_text(event.value.get("thought")) + str(arguments))
    result = results.get(event.text("id", "")) or results.get(event.text("tool_call_id", ""))
    name = event.text("tool_name", str(call.get("name") or "tool"))
    if name == "finish" and result is None:
        return
    command = argument_command(arguments) or argument_command(event.mapping("action"))
    start = timestamp_s(event.value.get("timestamp"))
    end = None if result is None else timestamp_s(result.value.get("timestamp"))
    answer.tools.append(
        ToolCall(
            name=name,
            tool_class=tool_class(name, command),
            wall_s=between_s(start, end),
            result_tokens=None if result is None else text_tokens(_result_text(result)),
            error=result is None or _failed(result),
        )
    )
    if end is not None:
        answer.end_s = max(end, answer.end_s or end)


def _result_text(result: Row) -> str:
    if result.value.get("kind") == "AgentErrorEvent":
        return result.text("error", "")
    return content_text(result.mapping("observation").get("content"))


def _failed(result: Row) -> bool:
    if result.value.get("kind") == "AgentErrorEvent":
        return True
    observation = result.mapping("observation")
    return bool(observation.get("is_error")) or bool(observation.get("exit_code"))


IMPORTER = OpenHandsV1()
