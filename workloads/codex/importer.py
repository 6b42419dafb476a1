"""Importer of Codex rollouts: the session files (JSONL) below ``~/.codex/sessions``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from marsbench.core import Session, ToolCall
from marsbench.trace.importer import TraceSample
from workloads.context import RecordedCall, build_session, group_prefix
from workloads.messages import argument_command, content_text, text_tokens
from workloads.rows import Row, RowSource, between_s, has_keys, read_rows, recognise, timestamp_s
from workloads.tool_class import tool_class

_LINE_TYPES = ("session_meta", "response_item", "event_msg", "turn_context", "compacted")
_CALLS = ("function_call", "custom_tool_call", "local_shell_call")
_OUTPUTS = ("function_call_output", "custom_tool_call_output", "local_shell_call_output")


class Codex:
    """Holds all sessions: their shortest first prompt tells what they share."""

    name = "codex"
    summary = "Codex rollouts (JSONL session files): token counts and timed tool calls"
    provenance: Mapping[str, str] = {
        "agent": "assumed: codex",
        "model": "recorded: turn_context",
        "turns": "recorded: token_count events whose totals have grown",
        "new_input_tokens": "derived: prompt growth less the re-sent output",
        "output_tokens": "recorded, reasoning included",
        "resent_output": "assumed: 1.0 where the prompt has room for the whole output",
        "drop_context_to": "recorded: compacted lines; derived: where the prompt shrinks",
        "tools.name": "recorded",
        "tools.class": "derived: from name and command",
        "tools.wall_s": "recorded: duration of exec_command_end, else call to output",
        "tools.result_tokens": "derived: characters / 3.4",
        "tools.error": "recorded: exit code of exec_command_end",
        "think_s": "derived: last tool result (or answer) to the next message of a person",
        "shared_prefix": "assumed: shortest first prompt of client version and model less 128",
    }

    def sniff(self, sample: TraceSample) -> bool:
        return recognise(sample, self.matches)

    def matches(self, value: Any) -> bool:
        """Tell whether a decoded row is a line of a rollout."""
        if not has_keys(value, "type", "payload", "timestamp"):
            return False
        return value["type"] in _LINE_TYPES and isinstance(value["payload"], dict)

    def read(self, path: Path) -> Iterator[Session]:
        return self.sessions(lambda: read_rows(path))

    def sessions(self, rows: RowSource) -> Iterator[Session]:
        found = [rollout for rollout in _rollouts(rows()) if rollout.calls]
        first_prompts: dict[str, list[int]] = {}
        for rollout in found:
            first_prompts.setdefault(rollout.group, []).append(rollout.calls[0].prompt_tokens)
        prefixes = {
            name: group_prefix(f"codex/{name}", known) for name, known in first_prompts.items()
        }
        for rollout in found:
            yield build_session(
                rollout.session_id,
                rollout.calls,
                agent="codex",
                model=rollout.model,
                prefix=prefixes[rollout.group],
            )


@dataclass(slots=True)
class _OpenCall:
    """A tool call of the LLM call in progress."""

    name: str
    command: str
    start_s: float | None
    wall_s: float = 0.0
    result: str | None = None
    failed: bool = False

    def tool(self) -> ToolCall:
        return ToolCall(
            name=self.name,
            tool_class=tool_class(self.name, self.command),
            wall_s=self.wall_s,
            result_tokens=None if self.result is None else text_tokens(self.result),
            error=self.failed,
        )


@dataclass(slots=True)
class _Rollout:
    """One session in the making: its calls so far, and what the lines since the last one say."""

    session_id: str
    version: str = ""
    model: str = ""
    calls: list[RecordedCall] = field(default_factory=list)
    tools: dict[str, _OpenCall] = field(default_factory=dict)
    """By call id, of the answer that is being logged or was logged last."""
    is_counted: bool = False
    """Whether the tokens of that answer are known, so that further calls belong to the next."""
    total_tokens: int = 0
    compacted: bool = False
    idle_since_s: float | None = None

    @property
    def group(self) -> str:
        return f"{self.version}/{self.model}"

    def line(self, row: Row) -> None:
        payload = row.child(row.value.get("payload"), "payload")
        kind, inner = row.text("type"), payload.value.get("type")
        time_s = timestamp_s(row.value.get("timestamp"))
        if kind == "turn_context":
            self.model = payload.text("model", self.model)
        elif kind == "compacted":
            self.compacted = True
        elif kind == "response_item" and inner in _CALLS:
            self._open(payload, time_s)
        elif kind == "response_item" and inner in _OUTPUTS:
            self._close(payload, time_s)
        elif kind == "event_msg" and inner == "exec_command_end":
            self._measured(payload)
        elif kind == "event_msg" and inner == "user_message":
            self._wait_until(time_s)
        elif kind == "event_msg" and inner == "token_count":
            self._count(payload, time_s)

    def finish(self) -> None:
        """Give the last call the tools that were logged after it."""
        if self.calls:
            self._settle()

    def _open(self, payload: Row, time_s: float | None) -> None:
        if self.is_counted and not self._waits_for_tools():
            self._settle()
        call_id = payload.text("call_id", payload.text("id", ""))
        given = payload.value.get("arguments", payload.value.get("input"))
        action = payload.value.get("action")
        command = argument_command(given if action is None else action)
        self.tools[call_id] = _OpenCall(payload.text("name", "local_shell_call"), command, time_s)

    def _waits_for_tools(self) -> bool:
        """Tell whether the counted answer has calls without a result, in which case a further call
        is parallel to them.
        """
        return any(call.result is None for call in self.tools.values())

    def _close(self, payload: Row, time_s: float | None) -> None:
        call = self.tools.get(payload.text("call_id", ""))
        if call is None:
            return
        call.result = content_text(payload.value.get("output"))
        call.wall_s = call.wall_s or between_s(call.start_s, time_s)
        self.idle_since_s = time_s

    def _measured(self, payload: Row) -> None:
        call = self.tools.get(payload.text("call_id", ""))
        if call is None:
            return
        took = payload.child(payload.mapping("duration"), "duration")
        call.wall_s = took.number("secs", 0.0) + took.number("nanos", 0.0) / 1e9
        call.failed = payload.value.get("exit_code") not in (0, None)

    def _wait_until(self, time_s: float | None) -> None:
        """Note that a person has spoken: the time since the last call and its tools was theirs."""
        if self.calls:
            waited_s = between_s(self.idle_since_s, time_s)
            self.calls[-1] = replace(self.calls[-1], think_s=waited_s)

    def _count(self, payload: Row, time_s: float | None) -> None:
        """Take in the tokens of an answer; a count that is logged again adds nothing to the total."""
        info = payload.child(payload.mapping("info"), "payload.info")
        usage = info.child(info.mapping("last_token_usage"), "last_token_usage")
        total = info.child(info.mapping("total_token_usage"), "total_token_usage")
        tokens = total.integer("total_tokens", self.total_tokens + 1)
        prompt = usage.integer("input_tokens", 0)
        if prompt == 0 or tokens == self.total_tokens:
            return
        self.total_tokens = tokens
        if self.is_counted:
            self._settle()
        output = usage.integer("output_tokens", 0)
        self.calls.append(RecordedCall(prompt, output, compacted=self.compacted))
        self.is_counted, self.compacted = True, False
        self.idle_since_s = time_s

    def _settle(self) -> None:
        """Note that the last call has all its tools."""
        tools = tuple(call.tool() for call in self.tools.values())
        self.calls[-1] = replace(self.calls[-1], tools=tools)
        self.tools = {}
        self.is_counted = False


def _rollouts(rows: Iterator[Row]) -> Iterator[_Rollout]:
    """Yield the sessions in order of the files; a session_meta line begins one."""
    current: _Rollout | None = None
    path = ""
    for row in rows:
        begins = row.value.get("type") == "session_meta"
        if current is None or row.path != path or (begins and row.line != 1 and current.calls):
            if current is not None:
                current.finish()
                yield current
            current, path = _Rollout(Path(row.path).name.split(".")[0]), row.path
        if begins:
            meta = row.child(row.value.get("payload"), "payload")
            current.session_id = meta.text("id", current.session_id)
            current.version = meta.text("cli_version", "")
        else:
            current.line(row)
    if current is not None:
        current.finish()
        yield current


IMPORTER = Codex()
