"""Importer of Claude Code transcripts: one JSONL, a project directory, or task bundles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from marsbench.core import Session, SharedPrefix, ToolCall
from marsbench.errors import TraceError
from marsbench.trace.importer import TraceSample
from workloads.claude_code.transcript import LoggedAnswer, Thread, ToolUse, Transcript
from workloads.context import MID_CONVERSATION, RecordedCall, build_session, group_prefix
from workloads.messages import char_tokens
from workloads.rows import (
    Row,
    RowSource,
    between_s,
    has_keys,
    head_of,
    head_values,
    read_rows,
    trace_files,
)
from workloads.tool_class import tool_class

_LINE_TYPES = frozenset(
    [
        "user",
        "assistant",
        "system",
        "progress",
        "summary",
        "attachment",
        "ai-title",
        "file-history-snapshot",
        "queue-operation",
        "last-prompt",
        "custom-title",
    ]
)
_SAMPLED = 20
"""Transcripts of a directory that are looked at to recognise it."""
SNAPSHOT_SHARE = 0.5
"""A recorded output below this share of its text's tokens is a snapshot, not the total."""


class ClaudeCode:
    """Keeps the calls of all sessions (not their text) until the shared prefixes are known."""

    name = "claude_code"
    summary = "Claude Code transcripts (JSONL), project directories, task bundles"
    provenance: Mapping[str, str] = {
        "agent": "derived: main thread or sub-agent, marked where it goes on from another session",
        "model": "recorded: of the first answer",
        "kept_prefix_tokens": "assumed: the shared prefix survives a compaction",
        "new_input_tokens": "derived: growth of recorded prompts (input + cache creation + cache "
        "read) less the re-sent output; characters / 3.4 where no usage is logged",
        "output_tokens": "recorded: largest of the message's lines; derived from text "
        "(characters / 3.4) where that is below half of the text",
        "resent_output": "assumed: 1.0 where the prompt has room for the whole output (0.95-1.02 "
        "in logs with text)",
        "drop_context_to": "recorded: compaction; derived: where the prompt shrinks",
        "tools.name": "recorded",
        "tools.class": "derived: from name and command",
        "tools.wall_s": "recorded: tool_use to tool_result; interactive sessions wait for "
        "permission inside; 0 for a sub-agent whose own calls are logged",
        "tools.result_tokens": "derived: characters / 3.4",
        "tools.error": "recorded",
        "think_s": "derived: last result (or answer) to the last input before the next answer",
        "children": "recorded: sidechain lines, agent progress, agent files",
        "shared_prefix": "assumed: shortest first prompt of client version and model less 128",
    }

    def sniff(self, sample: TraceSample) -> bool:
        if sample.head:
            return _is_transcript(head_values(sample.head))
        names = [name for name in sorted(sample.names) if _is_jsonl(name)][:_SAMPLED]
        return any(_is_transcript(head_values(head_of(sample.path / name))) for name in names)

    def matches(self, value: Any) -> bool:
        """Tell whether a decoded row is a line of a transcript or of a bundle."""
        return _is_line(value)

    def read(self, path: Path) -> Iterator[Session]:
        return self.sessions(lambda: _read(path))

    def sessions(self, rows: RowSource) -> Iterator[Session]:
        transcripts = _transcripts(rows())
        first_prompts: dict[str, list[int]] = {}
        for transcript in transcripts.values():
            for thread in (transcript.main, *transcript.children.values()):
                if thread.answers and thread.answers[0].prompt_tokens:
                    prompts = first_prompts.setdefault(_group(thread, transcript), [])
                    prompts.append(thread.answers[0].prompt_tokens)
        prefixes = {name: group_prefix(name, known) for name, known in first_prompts.items()}
        for session_id, transcript in transcripts.items():
            if transcript.main.answers:
                yield _Builder(session_id, transcript, prefixes).session()


def _is_jsonl(name: str) -> bool:
    return name.removesuffix(".gz").removesuffix(".zst").endswith(".jsonl")


def _is_transcript(values: Iterable[Any]) -> bool:
    return any(_is_line(value) for value in values)


def _is_line(value: Any) -> bool:
    if has_keys(value, "task", "entry"):
        return _is_line(value["entry"])
    if not isinstance(value, dict) or str(value.get("type")) not in _LINE_TYPES:
        return False
    return "sessionId" in value or "leafUuid" in value


def _read(path: Path) -> Iterator[Row]:
    """Read the lines of all transcripts; other files of a directory are passed over."""
    if path.is_file():
        yield from read_rows(path)
        return
    files = [file for file in trace_files(path) if _is_jsonl(file.name)]
    files = [file for file in files if _is_transcript(head_values(head_of(file)))]
    if not files:
        raise TraceError("no Claude Code transcript (.jsonl) below it", path=str(path))
    for file in files:
        yield from read_rows(file)


def _transcripts(rows: Iterator[Row]) -> dict[str, Transcript]:
    """Return the sessions in order of their first line.

    An answer that an earlier session logged belongs there: resumed sessions begin with copies.
    """
    found: dict[str, Transcript] = {}
    owner: dict[str, str] = {}
    for (session_id, _), group in groupby(_lines(rows), key=lambda line: line[:2]):
        transcript = found.setdefault(session_id, Transcript())
        lines = [row for _, _, row in group]
        foreign = {
            message_id
            for message_id in map(_message_id, lines)
            if message_id and owner.get(message_id, session_id) != session_id
        }
        for row in lines:
            transcript.add(row, foreign)
        for message_id in transcript.message_ids():
            owner.setdefault(message_id, session_id)
    return found


def _lines(rows: Iterator[Row]) -> Iterator[tuple[str, str, Row]]:
    """Yield (session, file, line) for each line that belongs to a session; bundles are unwrapped."""
    for row in rows:
        task = ""
        if has_keys(row.value, "task", "entry"):
            task = f"{row.text('task')}/"
            row = row.child(row.value["entry"], "entry")
        if "message" in row.value or row.value.get("type") in ("system", "progress"):
            yield task + row.text("sessionId", Path(row.path).name.split(".")[0]), row.path, row


def _message_id(row: Row) -> str:
    message = row.value.get("message")
    data = row.value.get("data")
    if row.value.get("type") == "progress" and isinstance(data, dict):
        inner = data.get("message")
        message = inner.get("message", inner) if isinstance(inner, dict) else None
    if not isinstance(message, dict) or row.value.get("type") == "user":
        return ""
    return str(message.get("id") or row.value.get("uuid") or "")


def _group(thread: Thread, transcript: Transcript) -> str:
    kind = "main" if thread is transcript.main else "subagent"
    return f"claude-code/{kind}/{thread.version}/{thread.answers[0].model}"


@dataclass(slots=True)
class _Builder:
    """Makes the session of one transcript."""

    session_id: str
    transcript: Transcript
    prefixes: Mapping[str, SharedPrefix | None]
    parents: dict[int, list[Session]] = field(default_factory=dict)
    """Position of an answer of the main thread -> sessions it spawned."""
    spawning: set[str] = field(default_factory=set)
    """Tool call ids whose sub-agent is logged."""

    def session(self) -> Session:
        main = self.transcript.main
        for key, child in self.transcript.children.items():
            if child.answers:
                self._place(key, child)
        cut = main.num_copied > 0 or main.continues
        return self._build(
            self.session_id, main, "claude-code" + (MID_CONVERSATION if cut else ""), self.parents
        )

    def _place(self, key: str, child: Thread) -> None:
        """Hang a sub-agent on the answer that called it."""
        position, tool = _spawn_point(self.transcript.main, child, self.spawning)
        if tool is not None:
            self.spawning.add(tool.call_id)
        session = self._build(f"{self.session_id}/{key}", child, "claude-code/subagent", {})
        self.parents.setdefault(position, []).append(session)

    def _build(
        self, session_id: str, thread: Thread, agent: str, children: Mapping[int, list[Session]]
    ) -> Session:
        calls: list[RecordedCall] = []
        for position, answer in enumerate(thread.answers):
            following = thread.answers[position + 1 : position + 2]
            calls.append(
                RecordedCall(
                    prompt_tokens=_prompt_tokens(answer, calls),
                    output_tokens=_output_tokens(answer),
                    tools=tuple(self._tool(tool) for tool in answer.tools),
                    think_s=_think_s(answer, following[0]) if following else 0.0,
                    children=tuple(children.get(position, ())),
                    compacted=answer.compacted,
                )
            )
        return build_session(
            session_id,
            calls,
            agent=agent,
            model=thread.answers[0].model,
            prefix=self.prefixes.get(_group(thread, self.transcript)),
        )

    def _tool(self, tool: ToolUse) -> ToolCall:
        logged = tool.call_id in self.spawning
        return ToolCall(
            name=tool.name,
            tool_class=tool_class(tool.name, tool.command),
            wall_s=0.0 if logged else between_s(tool.start_s, tool.end_s),
            result_tokens=None if tool.result_chars is None else char_tokens(tool.result_chars),
            error=tool.error,
        )


def _spawn_point(main: Thread, child: Thread, taken: set[str]) -> tuple[int, ToolUse | None]:
    """Return the position of the spawning answer and its call, found by id, by prompt, or else by
    time.
    """
    calls = [
        (position, tool)
        for position, answer in enumerate(main.answers)
        for tool in answer.tools
        if tool_class(tool.name) == "subagent" and tool.call_id not in taken
    ]
    for named in (_by_call_id, _by_agent_id, _by_prompt):
        for position, tool in calls:
            if named(child, tool):
                return position, tool
    begin = child.answers[0].start_s or child.answers[0].end_s or 0.0
    earlier = [(p, tool) for p, tool in calls if (tool.start_s or 0.0) <= begin]
    if earlier:
        return earlier[-1]
    before = [p for p, answer in enumerate(main.answers) if (answer.end_s or 0.0) <= begin]
    return (before[-1] if before else 0), None


def _by_call_id(child: Thread, tool: ToolUse) -> bool:
    return bool(child.tool_use_id) and tool.call_id == child.tool_use_id


def _by_agent_id(child: Thread, tool: ToolUse) -> bool:
    return bool(child.agent_id) and tool.agent_id == child.agent_id


def _by_prompt(child: Thread, tool: ToolUse) -> bool:
    return bool(tool.prompt) and tool.prompt == child.first_text


def _prompt_tokens(answer: LoggedAnswer, before: list[RecordedCall]) -> int:
    if answer.prompt_tokens:
        return answer.prompt_tokens
    carried = before[-1].prompt_tokens + before[-1].output_tokens if before else 0
    return max(1, carried + char_tokens(answer.new_chars))


def _output_tokens(answer: LoggedAnswer) -> int:
    """Return the recorded count, unless it is a snapshot from the start of the stream."""
    from_text = char_tokens(answer.output_chars)
    return answer.output_tokens if answer.output_tokens >= SNAPSHOT_SHARE * from_text else from_text


def _think_s(answer: LoggedAnswer, following: LoggedAnswer) -> float:
    ends = [tool.end_s for tool in answer.tools if tool.end_s is not None]
    if answer.end_s is not None:
        ends.append(answer.end_s)
    return between_s(max(ends), following.start_s) if ends else 0.0


IMPORTER = ClaudeCode()
