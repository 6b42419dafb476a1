"""What both generations of OpenHands recordings share: answers, their usage, their observations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import msgspec

from marsbench.core import SharedPrefix, ToolCall
from marsbench.errors import TraceError
from marsbench.trace import io
from marsbench.trace.importer import TraceSample
from workloads.context import RecordedCall
from workloads.messages import char_tokens, text_id
from workloads.rows import Row, between_s, head_values, sampled_files


class Usage(NamedTuple):
    """Tokens and latency of one LLM call, as the client counted them."""

    response_id: str
    prompt_tokens: int
    output_tokens: int
    latency_s: float | None


@dataclass(slots=True)
class Answer:
    """One answer of the model: the actions it asked for and what came back."""

    response_id: str
    time_s: float | None
    """When its first action was recorded: the end of the LLM call."""
    output_chars: int = 0
    new_chars: int = 0
    """Characters that came into the context between the answer before and this one."""
    compacted: bool = False
    tools: list[ToolCall] = field(default_factory=list)
    end_s: float | None = None
    """When its last observation was recorded."""


def usages(metrics: Row) -> list[Usage]:
    """Return the calls of one ``metrics`` object in order, with latencies joined by response id."""
    latency = {
        entry.text("response_id", ""): entry.number("latency", 0.0)
        for entry in metrics.rows("response_latencies")
    }
    return [
        Usage(
            entry.text("response_id", ""),
            entry.integer("prompt_tokens"),
            entry.integer("completion_tokens", 0),
            latency.get(entry.text("response_id", "")),
        )
        for entry in metrics.rows("token_usages")
    ]


def answer_calls(answers: Sequence[Answer], recorded: Sequence[Usage]) -> list[RecordedCall]:
    """Return the calls of answers; one without recorded usage is estimated from the text before it."""
    found = _match(answers, recorded)
    calls: list[RecordedCall] = []
    for index, (answer, usage) in enumerate(zip(answers, found, strict=True)):
        if usage is None or usage.prompt_tokens == 0:
            before = calls[-1].prompt_tokens + calls[-1].output_tokens if calls else 0
            prompt = max(1, before + char_tokens(answer.new_chars))
            call = RecordedCall(prompt, char_tokens(answer.output_chars))
        else:
            call = RecordedCall(usage.prompt_tokens, usage.output_tokens)
        if index:
            latency_s = None if usage is None else usage.latency_s
            calls[-1] = replace(calls[-1], think_s=_idle_s(answers[index - 1], answer, latency_s))
        calls.append(replace(call, tools=tuple(answer.tools), compacted=answer.compacted))
    return calls


def _match(answers: Sequence[Answer], recorded: Sequence[Usage]) -> list[Usage | None]:
    """Find the usage of each answer by response id; an answer without one takes the next usage that
    nobody else names.
    """
    by_id = {usage.response_id: index for index, usage in enumerate(recorded)}
    named = {answer.response_id for answer in answers if answer.response_id}
    found: list[Usage | None] = []
    last = -1
    for answer in answers:
        at = by_id.get(answer.response_id) if answer.response_id else None
        if at is None and not answer.response_id and last + 1 < len(recorded):
            at = last + 1 if recorded[last + 1].response_id not in named else None
        found.append(None if at is None else recorded[at])
        last = last if at is None else at
    return found


def _idle_s(before: Answer, answer: Answer, latency_s: float | None) -> float:
    if latency_s is None or answer.time_s is None:
        return 0.0
    return between_s(before.end_s or before.time_s, answer.time_s - latency_s)


class Prefixes:
    """The shared prefixes of one import: equal text has one length, which is that in its first
    session.
    """

    def __init__(self) -> None:
        self._known: dict[str, SharedPrefix] = {}

    def of(self, text: str, first: Answer, calls: Sequence[RecordedCall]) -> SharedPrefix | None:
        """Return system prompt and tools as a shared prefix, which is as large a share of the first
        prompt as their text is.
        """
        if not text:
            return None
        prefix_id = text_id(text)
        if prefix_id not in self._known:
            share = len(text) / max(len(text), first.new_chars)
            tokens = int(calls[0].prompt_tokens * share)
            self._known[prefix_id] = SharedPrefix(prefix_id, tokens)
        return self._known[prefix_id]


def recognise_rows(sample: TraceSample, matches: Callable[[Any], bool]) -> bool:
    """Do what ``rows.recognise`` does, but read on where a long patch pushes the history out of the
    head.
    """
    files = sampled_files(sample)
    return bool(files) and all(_matches_file(path, head, matches) for path, head in files)


def _matches_file(path: Any, head: bytes, matches: Callable[[Any], bool]) -> bool:
    values = head_values(head)
    if any(matches(value) for value in values):
        return True
    first = values[0] if values else None
    if not isinstance(first, dict) or "instance_id" not in first or "history" in first:
        return False
    try:
        line = next(io.read_lines(path), (0, b""))[1]
        return matches(msgspec.json.decode(line))
    except (TraceError, msgspec.DecodeError, UnicodeDecodeError):
        return False


def model_name(row: Row, config_field: str) -> str:
    """Return the model that a row's metadata names. NOTE: nothing else is taken from it, since it
    may hold keys.
    """
    metadata = Row(row.mapping("metadata"), row.path, row.line)
    found = metadata.value.get(config_field)
    return str(found.get("model") or "") if isinstance(found, dict) else ""
