"""Run logs of SWE-agent 0.7: exact tokens of each call and times of calls and shell commands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from marsbench.core import Session, ToolCall
from marsbench.errors import TraceError
from marsbench.trace import io
from workloads.context import RecordedCall, build_session
from workloads.messages import char_tokens
from workloads.rows import between_s, timestamp_s
from workloads.swe_agent.actions import action_tool

_ENTRY = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)[,.](\d{3})\b(.*)$")
_TOKENS = re.compile(r"\binput_tokens=([\d,]+), output_tokens=([\d,]+)")
_CALLS = re.compile(r"\btotal_api_calls=([\d,]+)")
_SHELL = re.compile(r"\bTRACE\b.*?\b(Input|Output):")
_ACTION = re.compile(r"\bACTION\b")


@dataclass(slots=True)
class _LogEntry:
    """One log entry; lines without a time belong to the entry before them."""

    time_s: float
    line: int
    text: str


@dataclass(slots=True)
class _Step:
    """One LLM call and the shell command after it."""

    prompt_tokens: int
    output_tokens: int
    start_s: float | None
    action: str = ""
    action_s: float | None = None
    input_s: float | None = None
    output_s: float | None = None
    result_chars: int = 0


def is_run_log(head: bytes) -> bool:
    """Tell whether a text begins like such a log: timed entries, one of them a model's input."""
    lines = head.decode("utf-8", errors="replace").splitlines()
    timed = sum(_ENTRY.match(line) is not None for line in lines)
    known = any("MODEL INPUT" in line or _TOKENS.search(line) for line in lines)
    return timed >= 2 and known


def log_sessions(file: Path, name: str) -> Iterator[Session]:
    """Yield the sessions of one log; a session begins where the count of calls begins again."""
    steps: list[_Step] = []
    number = 0
    for step in _steps(file):
        if step is None:
            # The call just finished is the first of its session.
            if steps[:-1]:
                yield _session(f"{name}/{number}", steps[:-1])
                number += 1
            steps = steps[-1:]
        else:
            steps.append(step)
    if steps:
        yield _session(f"{name}/{number}", steps)
    elif not number:
        raise TraceError("holds no LLM call (input_tokens=..., output_tokens=...)", path=str(file))


def _steps(file: Path) -> Iterator[_Step | None]:
    """Yield the steps in order, filled in while the log is read on, and None where a step has begun
    a new session.
    """
    started_s: float | None = None
    step: _Step | None = None
    for entry in _entries(file):
        if "MODEL INPUT" in entry.text:
            started_s = entry.time_s
        elif found := _TOKENS.search(entry.text):
            prompt, output = (int(group.replace(",", "")) for group in found.groups())
            if prompt == 0:
                raise TraceError(
                    "expected at least one prompt token",
                    path=str(file),
                    line=entry.line,
                    field="input_tokens",
                )
            step = _Step(prompt, output, started_s)
            yield step
        if (count := _CALLS.search(entry.text)) and count[1] == "1" and step is not None:
            yield None
        elif step is not None:
            _add_shell(step, entry)


def _add_shell(step: _Step, entry: _LogEntry) -> None:
    """Add a shell command to a step: the first after an action is the tool, what follows reads the
    shell's state.
    """
    first, _, rest = entry.text.partition("\n")
    if shell := _SHELL.search(first):
        if shell[1] == "Input" and step.action_s is not None and step.input_s is None:
            step.input_s = entry.time_s
        elif shell[1] == "Output" and step.input_s is not None and step.output_s is None:
            step.output_s = entry.time_s
            step.result_chars = len(first[shell.end() :]) + len(rest)
    elif _ACTION.search(first) and step.action_s is None:
        step.action_s = entry.time_s
        step.action = rest.strip()


def _entries(file: Path) -> Iterator[_LogEntry]:
    current: _LogEntry | None = None
    for number, line in io.read_lines(file):
        text = line.decode("utf-8", errors="replace")
        if found := _ENTRY.match(text):
            if current is not None:
                yield current
            time_s = timestamp_s(f"{found[1]}.{found[2]}")
            current = _LogEntry(time_s or 0.0, number, found[3])
        elif current is not None:
            current.text += "\n" + text
    if current is not None:
        yield current


def _session(session_id: str, steps: list[_Step]) -> Session:
    calls: list[RecordedCall] = []
    for index, step in enumerate(steps):
        if index:
            before = steps[index - 1]
            ends = [t for t in (before.output_s, before.input_s, before.action_s) if t is not None]
            pause_s = between_s(max(ends), step.start_s) if ends else 0.0
            calls[-1] = replace(calls[-1], think_s=pause_s)
        tools: tuple[ToolCall, ...] = ()
        if step.action:
            tokens = char_tokens(step.result_chars)
            wall_s = between_s(step.input_s, step.output_s)
            tools = (replace(action_tool(step.action, wall_s), result_tokens=tokens),)
        calls.append(RecordedCall(step.prompt_tokens, step.output_tokens, tools=tools))
    return build_session(session_id, calls, agent="swe-agent")
