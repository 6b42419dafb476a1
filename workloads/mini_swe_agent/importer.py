"""Importer of mini-SWE-agent trajectories: bare message lists and trajectory format 1.x."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from marsbench.core import Session, ToolCall
from marsbench.errors import TraceError
from marsbench.trace.importer import TraceSample
from workloads.context import RecordedCall, build_session
from workloads.messages import (
    CHARS_PER_TOKEN,
    ChatStep,
    Message,
    chat_message,
    opening_prefix,
    step_calls,
    text_tokens,
    untimed_tool,
)
from workloads.rows import (
    Row,
    RowSource,
    between_s,
    has_keys,
    read_document,
    recognise,
    timestamp_s,
    trace_files,
)
from workloads.swe_agent.importer import session_name
from workloads.tool_class import shell_class

_FENCE = re.compile(r"```(?:mswea_bash_command|bash|sh)\s*\n(.*?)\n?```", re.DOTALL)


class MiniSweAgent:
    """Reads one .traj.json after the other."""

    name = "mini_swe_agent"
    summary = "mini-SWE-agent .traj.json: message lists (v0, v1) and format 1.1 with timestamps"
    provenance: Mapping[str, str] = {
        "agent": "assumed: mini_swe_agent",
        "model": "recorded: config",
        "new_input_tokens": "derived: growth of recorded usage where every answer has one, else "
        "characters / 3.4",
        "output_tokens": "recorded (usage), or derived: characters / 3.4",
        "resent_output": "recorded: the answer stands in the next prompt",
        "tools.name": "recorded: bash",
        "tools.class": "derived: from the command",
        "tools.wall_s": "derived: answer to observation timestamps (calls of one answer are "
        "stamped together at the end, so the first carries their sum); assumed (no "
        "timestamps): median of the class",
        "tools.result_tokens": "derived: characters / 3.4",
        "tools.error": "recorded: return code",
        "shared_prefix": "recorded: equal text of the system prompt",
        "think_s": "absent: only the end of an LLM call is stamped",
    }

    def sniff(self, sample: TraceSample) -> bool:
        return recognise(sample, self.matches)

    def matches(self, value: Any) -> bool:
        """Tell whether a decoded document is a trajectory of this agent."""
        if isinstance(value, list):
            return bool(value) and all(
                has_keys(item, "role", "content") and not {"action", "source"} & item.keys()
                for item in value
            )
        if not isinstance(value, dict):
            return False
        if str(value.get("trajectory_format", "")).startswith("mini-swe-agent"):
            return True
        # A cut head may hold one of the two keys only; info of this agent names its version.
        info = value.get("info")
        return isinstance(info, dict) and ("mini_version" in info or "messages" in value)

    def read(self, path: Path) -> Iterator[Session]:
        for file in trace_files(path):
            document = read_document(file)
            value = {"messages": document} if isinstance(document, list) else document
            if not isinstance(value, dict):
                raise TraceError("expected an object or a list of messages", path=str(file))
            row = Row(value, str(file))
            yield _session(row, session_name(row, path))

    def sessions(self, rows: RowSource) -> Iterator[Session]:
        for row in rows():
            yield _session(row, session_name(row, None))


@dataclass(frozen=True, slots=True)
class _StoredMessage:
    """One message with what its ``extra`` says."""

    message: Message
    row: Row
    extra: Row
    time_s: float | None


def _session(row: Row, session_id: str) -> Session:
    entries = [_entry(item) for item in row.rows("messages") if item.value.get("role") != "exit"]
    answers = [i for i, entry in enumerate(entries) if entry.message.role == "assistant"]
    if not answers or not answers[0]:
        raise row.error("expected a prompt and an answer", "messages")
    bounds = [*answers[1:], len(entries)]
    steps = [
        ChatStep(
            prompt=[entry.message for entry in entries[:at]],
            output=entries[at].message,
            tools=_tools(entries[at], entries[at + 1 : end]),
        )
        for at, end in zip(answers, bounds, strict=True)
    ]
    usages = [_usage(entries[at]) for at in answers]
    return build_session(
        session_id,
        _calls(steps, usages),
        agent=MiniSweAgent.name,
        model=_model(row),
        prefix=opening_prefix(steps[0].prompt, CHARS_PER_TOKEN),
    )


def _calls(
    steps: Sequence[ChatStep], usages: Sequence[tuple[int, int] | None]
) -> list[RecordedCall]:
    calls = step_calls(steps)
    known = [usage for usage in usages if usage is not None]
    if len(known) < len(usages):
        return calls
    return [
        replace(call, prompt_tokens=prompt, output_tokens=output, unchanged_tokens=None)
        for call, (prompt, output) in zip(calls, known, strict=True)
    ]


def _entry(item: Row) -> _StoredMessage:
    extra = Row(item.mapping("extra"), item.path, item.line)
    return _StoredMessage(
        chat_message(item.value), item, extra, timestamp_s(extra.value.get("timestamp"))
    )


def _commands(answer: _StoredMessage) -> list[str]:
    actions = answer.extra.items("actions")
    if actions:
        return [str(a.get("command", "") if isinstance(a, dict) else a) for a in actions]
    if answer.message.calls:
        return [command for _, command in answer.message.calls]
    return _FENCE.findall(answer.message.text)


def _tools(answer: _StoredMessage, results: Sequence[_StoredMessage]) -> tuple[ToolCall, ...]:
    commands = _commands(answer)
    ends = [entry.time_s for entry in results if entry.time_s is not None]
    timed = bool(ends) and answer.time_s is not None
    total_s = between_s(answer.time_s, max(ends)) if ends else 0.0
    tools: list[ToolCall] = []
    for index, command in enumerate(commands):
        result = results[index] if index < len(results) else None
        text = None if result is None else result.message.text
        if not timed:
            tools.append(untimed_tool("bash", command, text))
            continue
        tools.append(
            ToolCall(
                name="bash",
                tool_class=shell_class(command),
                wall_s=0.0 if index else total_s,
                result_tokens=None if text is None else text_tokens(text),
                error=result is not None and _failed(result),
            )
        )
    return tuple(tools)


def _failed(result: _StoredMessage) -> bool:
    code = result.extra.value.get("returncode")
    return isinstance(code, int) and code != 0


def _usage(answer: _StoredMessage) -> tuple[int, int] | None:
    """Return the prompt and output tokens of a recorded response."""
    response = Row(answer.extra.mapping("response"), answer.row.path, answer.row.line)
    usage = Row(response.mapping("usage"), answer.row.path, answer.row.line)
    if not usage.value.get("prompt_tokens"):
        return None
    return usage.integer("prompt_tokens"), usage.integer("completion_tokens", 0)


def _model(row: Row) -> str:
    # NOTE: config holds the API key in clear; nothing but the model's name is taken from it.
    info = Row(row.mapping("info"), row.path)
    config = Row(info.mapping("config"), row.path)
    return Row(config.mapping("model"), row.path).text("model_name", "")


IMPORTER = MiniSweAgent()
