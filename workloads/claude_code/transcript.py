"""Threads of a Claude Code transcript: its answers put together again from their lines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from workloads.messages import argument_command, content_text
from workloads.rows import Row, timestamp_s

_SYNTHETIC = "<synthetic>"
"""Model of answers the client wrote itself (errors, interruptions)."""
_USAGE_INPUTS = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


@dataclass(slots=True)
class ToolUse:
    """One tool call and, once it is back, its result."""

    call_id: str
    name: str
    command: str
    prompt: str
    """Prompt of a Task call: the first user message of its sub-agent."""
    start_s: float | None
    end_s: float | None = None
    result_chars: int | None = None
    error: bool = False
    agent_id: str = ""
    """Of the sub-agent, where the result names it."""


@dataclass(slots=True)
class LoggedAnswer:
    """One LLM call: several lines with one message id."""

    message_id: str
    model: str
    start_s: float | None
    """When the last input before it was logged."""
    new_chars: int
    compacted: bool
    prompt_tokens: int = 0
    output_tokens: int = 0
    output_chars: int = 0
    end_s: float | None = None
    tools: list[ToolUse] = field(default_factory=list)


@dataclass(slots=True)
class Thread:
    """One conversation: the main one of a session, or a sub-agent's."""

    answers: list[LoggedAnswer] = field(default_factory=list)
    first_text: str = ""
    tool_use_id: str = ""
    """The parent's call that started it, where the log names it."""
    agent_id: str = ""
    version: str = ""
    num_copied: int = 0
    """Answers left out because another session logged them first."""
    continues: bool = False
    """Begins with the summary of an earlier conversation."""
    first_row: Row | None = None
    _input_s: float | None = None
    _new_chars: int = 0
    _compacted: bool = False
    _copied_ids: set[str] = field(default_factory=set)

    def add(self, row: Row, seen: set[str]) -> None:
        """Take in one line; ``seen`` holds the message ids of other sessions."""
        self.first_row = self.first_row or row
        self.version = self.version or row.text("version", "")
        kind = row.value.get("type")
        if kind == "assistant":
            self._add_assistant(row, seen)
        elif kind == "user":
            self._add_user(row)
        elif kind == "system" and row.value.get("subtype") == "compact_boundary":
            self._compacted = True

    def _add_assistant(self, row: Row, seen: set[str]) -> None:
        message = Row(row.mapping("message"), row.path, row.line)
        if message.value.get("model") == _SYNTHETIC:
            return
        message_id = message.text("id", row.text("uuid", ""))
        if message_id and message_id in seen:
            if message_id not in self._copied_ids:
                self._copied_ids.add(message_id)
                self.num_copied += 1
            return
        answer = self._answer(message_id, message.text("model", ""))
        usage = Row(message.mapping("usage"), row.path, row.line)
        prompt = sum(usage.integer(name, 0) for name in _USAGE_INPUTS)
        answer.prompt_tokens = max(answer.prompt_tokens, prompt)
        # NOTE: lines of one message repeat its usage (a sum would count it twice), and some
        # clients log output_tokens as they were when the stream began: the largest is the last.
        answer.output_tokens = max(answer.output_tokens, usage.integer("output_tokens", 0))
        time_s = timestamp_s(row.value.get("timestamp"))
        answer.end_s = time_s if time_s is not None else answer.end_s
        content = message.value.get("content")
        for block in content if isinstance(content, list) else [{"type": "text", "text": content}]:
            if isinstance(block, dict):
                _add_block(answer, Row(block, row.path, row.line), time_s)

    def _answer(self, message_id: str, model: str) -> LoggedAnswer:
        """Return the answer that this line belongs to: an open one of equal id, or a new one."""
        for answer in reversed(self.answers):
            if message_id and answer.message_id == message_id:
                return answer
        answer = LoggedAnswer(message_id, model, self._input_s, self._new_chars, self._compacted)
        self.answers.append(answer)
        self._new_chars, self._compacted = 0, False
        return answer

    def _add_user(self, row: Row) -> None:
        message = row.mapping("message")
        content = message.get("content")
        time_s = timestamp_s(row.value.get("timestamp"))
        self._input_s = time_s if time_s is not None else self._input_s
        if row.value.get("isCompactSummary"):
            self._compacted = bool(self.answers)
            self.continues = self.continues or not self.answers
        blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
        for block in blocks:
            if not isinstance(block, dict):
                continue
            text = content_text(block)
            self._new_chars += len(text)
            if block.get("type") == "tool_result":
                self._add_result(row, block, text, time_s)
            elif not self.first_text:
                self.first_text = text

    def _add_result(self, row: Row, block: dict[str, Any], text: str, time_s: float | None) -> None:
        for answer in reversed(self.answers):
            for tool in answer.tools:
                if tool.call_id == block.get("tool_use_id"):
                    tool.end_s, tool.result_chars = time_s, len(text)
                    tool.error = bool(block.get("is_error"))
                    details = row.value.get("toolUseResult")
                    if isinstance(details, dict):
                        tool.agent_id = str(details.get("agentId") or "")
                    return


def _add_block(answer: LoggedAnswer, block: Row, time_s: float | None) -> None:
    kind = block.value.get("type")
    if kind in ("text", "thinking"):
        answer.output_chars += len(content_text(block.value))
    if kind != "tool_use":
        return
    call_id = block.text("id", "")
    if any(call_id and tool.call_id == call_id for tool in answer.tools):
        return
    arguments = block.mapping("input")
    name = block.text("name", "unknown")
    answer.output_chars += len(name) + len(msgspec.json.encode(arguments))
    prompt = arguments.get("prompt")
    answer.tools.append(
        ToolUse(
            call_id=call_id,
            name=name,
            command=argument_command(arguments),
            prompt=prompt if isinstance(prompt, str) else "",
            start_s=time_s,
        )
    )


@dataclass(slots=True)
class Transcript:
    """The threads of one session."""

    main: Thread = field(default_factory=Thread)
    children: dict[str, Thread] = field(default_factory=dict)
    _thread_of: dict[str, str] = field(default_factory=dict)
    """Line uuid -> sub-agent key, for sidechains without an agent id."""

    def add(self, row: Row, seen: set[str]) -> None:
        """Take in one line of the session."""
        value = row.value
        if value.get("type") == "progress":
            self._add_progress(row, seen)
        elif value.get("isSidechain"):
            key = str(value.get("agentId") or self._chain(row))
            thread = self.children.setdefault(key, Thread(agent_id=str(value.get("agentId") or "")))
            thread.add(row, seen)
        else:
            self.main.add(row, seen)

    def _add_progress(self, row: Row, seen: set[str]) -> None:
        """Take in a line of a sub-agent, which newer clients log as progress of the parent's call."""
        data = row.mapping("data")
        inner = data.get("message")
        if data.get("type") != "agent_progress" or not isinstance(inner, dict):
            return
        tool_use_id = row.text("parentToolUseID", "")
        agent_id = str(data.get("agentId") or "")
        thread = self.children.setdefault(agent_id or tool_use_id, Thread(agent_id=agent_id))
        thread.tool_use_id = thread.tool_use_id or tool_use_id
        line = {"timestamp": row.value.get("timestamp"), **inner}
        if not isinstance(line.get("message"), dict):
            line = {**line, "type": inner.get("role") or inner.get("type"), "message": inner}
        thread.add(Row(line, row.path, row.line), seen)

    def _chain(self, row: Row) -> str:
        """Return the thread of a sidechain line. Such lines hang together by parentUuid; one
        without a known parent begins a new thread.
        """
        uuid = row.text("uuid", "")
        key = self._thread_of.get(row.text("parentUuid", ""), f"sidechain-{len(self.children)}")
        self._thread_of[uuid] = key
        return key

    def message_ids(self) -> Iterable[str]:
        """Yield the ids of all answers, so that later sessions do not count them again."""
        for thread in (self.main, *self.children.values()):
            for answer in thread.answers:
                if answer.message_id:
                    yield answer.message_id
