"""Importer of LiteLLM logs: standard logging payloads or spend logs, one LLM call a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from marsbench.core import Session, ToolCall
from marsbench.trace.importer import TraceSample
from workloads.context import RecordedCall, build_session, group_prefix
from workloads.messages import Message, chat_message
from workloads.rows import Row, RowSource, has_keys, read_rows, recognise, timestamp_s
from workloads.tool_class import tool_class

_SESSION_FIELDS = ("session_id", "litellm_session_id", "trace_id")


class LiteLlm:
    """Holds all calls of a log: those of one session may stand anywhere."""

    name = "litellm"
    summary = "LiteLLM logs (standard logging payloads, spend logs): one LLM call a row"
    provenance: Mapping[str, str] = {
        "model": "recorded",
        "arrival_s": "derived: start of the session's first call, from the first of the log",
        "turns": "recorded: successful calls, by session_id, else by trace_id",
        "new_input_tokens": "derived: prompt growth less the re-sent output",
        "output_tokens": "recorded",
        "resent_output": "assumed: 1.0 where the prompt has room for the whole output",
        "drop_context_to": "derived: where the prompt shrinks, to the shared prefix",
        "tools.name": "recorded: tool calls of the answer, if answers are logged",
        "tools.class": "derived: from name and command",
        "tools.wall_s": "derived: end of the call to the start of the session's next call, which "
        "holds whatever else the client did",
        "think_s": "derived: as tools.wall_s, after answers without a tool call",
        "shared_prefix": "assumed: shortest first prompt of a model less 128 tokens",
    }

    def sniff(self, sample: TraceSample) -> bool:
        return recognise(sample, self.matches)

    def matches(self, value: Any) -> bool:
        """Tell whether a decoded row is an entry of a log, or a list of them."""
        if isinstance(value, list):
            return bool(value) and self.matches(value[0])
        return has_keys(value, "startTime", "endTime", "prompt_tokens", "completion_tokens")

    def read(self, path: Path) -> Iterator[Session]:
        return self.sessions(lambda: read_rows(path))

    def sessions(self, rows: RowSource) -> Iterator[Session]:
        groups: dict[str, list[Row]] = {}
        for number, row in enumerate(rows()):
            if row.value.get("status", "success") == "success" and row.integer("prompt_tokens"):
                groups.setdefault(_session_name(row) or f"call-{number}", []).append(row)
        for calls in groups.values():
            calls.sort(key=lambda row: _time(row, "startTime"))
        ordered = sorted(groups.items(), key=lambda item: _time(item[1][0], "startTime"))
        first_prompts: dict[str, list[int]] = {}
        for _, calls in ordered:
            model = calls[0].text("model", "")
            first_prompts.setdefault(model, []).append(calls[0].integer("prompt_tokens"))
        prefixes = {m: group_prefix(f"litellm/{m}", known) for m, known in first_prompts.items()}
        for name, calls in ordered:
            model = calls[0].text("model", "")
            yield build_session(
                name,
                [_call(row, following) for row, following in _with_next(calls)],
                model=model,
                arrival_s=_time(calls[0], "startTime") - _time(ordered[0][1][0], "startTime"),
                prefix=prefixes[model],
            )


def _session_name(row: Row) -> str:
    metadata = row.value.get("metadata")
    places = [row.value, metadata if isinstance(metadata, dict) else {}]
    found = (place.get(field) for field in _SESSION_FIELDS for place in places)
    return next((name for name in found if isinstance(name, str) and name), "")


def _time(row: Row, field: str) -> float:
    found = timestamp_s(row.value.get(field))
    if found is None:
        raise row.error(f"expected a time, found {row.value.get(field)!r}", field)
    return found


def _with_next(calls: Sequence[Row]) -> Iterator[tuple[Row, Row | None]]:
    for index, row in enumerate(calls):
        yield row, calls[index + 1] if index + 1 < len(calls) else None


def _call(row: Row, following: Row | None) -> RecordedCall:
    """Return a call. The time between its end and the next start belongs to its tools, or else is a
    pause.
    """
    gap_s = 0.0
    if following is not None:
        gap_s = max(0.0, _time(following, "startTime") - _time(row, "endTime"))
    asked = _answer(row).calls
    tools = tuple(ToolCall(name, tool_class(name, command), gap_s) for name, command in asked)
    return RecordedCall(
        row.integer("prompt_tokens"),
        row.integer("completion_tokens"),
        tools,
        think_s=0.0 if tools else gap_s,
    )


def _answer(row: Row) -> Message:
    """Return the logged answer, or an empty one if answers are not logged."""
    response: Any = row.value.get("response")
    if isinstance(response, str):  # the spend table keeps it as text
        try:
            response = msgspec.json.decode(response)
        except msgspec.DecodeError:
            response = None
    choices = response.get("choices") if isinstance(response, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    return chat_message(message) if isinstance(message, dict) else Message("assistant", "")


IMPORTER = LiteLlm()
