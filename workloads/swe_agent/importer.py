"""Importer of SWE-agent trajectories: prompts rebuilt from messages, tokens estimated from text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import msgspec

from marsbench.core import Session, ToolCall
from marsbench.trace import io
from marsbench.trace.importer import TraceSample
from workloads.context import build_session
from workloads.messages import (
    CHARS_PER_TOKEN,
    ChatStep,
    Message,
    char_tokens,
    chat_message,
    fit_chars_per_token,
    opening_prefix,
    step_calls,
)
from workloads.rows import (
    Row,
    RowSource,
    has_keys,
    head_of,
    read_rows,
    recognise,
    wanted,
)
from workloads.swe_agent.actions import action_tool
from workloads.swe_agent.generation import is_swe_smith, kept_observations
from workloads.swe_agent.run_log import is_run_log, log_sessions
from workloads.tool_class import TYPICAL_WALL_S, tool_class


class SweAgent:
    """Reads one .traj after the other."""

    name = "swe_agent"
    summary = "SWE-agent .traj files, 0.x and 1.x, and run logs of 0.7"
    provenance: Mapping[str, str] = {
        "agent": "assumed: swe-agent",
        "model": "recorded: replay_config",
        "new_input_tokens": "derived: characters per token fitted to tokens_sent of the session "
        "where recorded, else 3.4; run logs: growth of recorded prompts",
        "output_tokens": "derived: characters of the answer, same ratio; run logs: recorded",
        "resent_output": "recorded: the answer stands in the next prompt",
        "drop_context_to": "recorded (1.x with messages or query), or derived: older observations "
        "are elided if replay_config says so, in 0.x if tokens_sent fits that better",
        "kept_prefix_tokens": "derived: leading messages two prompts have in common",
        "tools.name": "recorded: first word of the action",
        "tools.class": "derived: from the action",
        "tools.wall_s": "recorded (1.x: execution_time; run logs: shell input to output), or assumed "
        "(0.x, demonstrations): median of the class",
        "tools.result_tokens": "derived: characters of the observation",
        "think_s": "absent; run logs: recorded, end of the command to the next model input",
        "shared_prefix": "recorded: equal text of system prompt and demonstrations",
    }

    def sniff(self, sample: TraceSample) -> bool:
        if is_run_log(sample.head) or _holds_only_logs(sample):
            return True
        return recognise(sample, self.matches) and not is_swe_smith(sample)

    def matches(self, value: Any) -> bool:
        """Tell whether a decoded document is a trajectory; SWE-smith's are included."""
        if not isinstance(value, dict) or "trajectory_format" in value:
            return False
        steps = value.get("trajectory")
        if isinstance(steps, list) and steps and has_keys(steps[0], "action"):
            return True  # a long first observation may lie past the end of a sample
        history = value.get("history")
        if isinstance(history, list) and history and has_keys(history[0], "role", "content"):
            return True
        attempts = value.get("attempts")
        return bool(isinstance(attempts, list) and attempts and self.matches(attempts[0]))

    def read(self, path: Path) -> Iterator[Session]:
        logs = _log_files(path)
        if logs:
            return (s for file in logs for s in log_sessions(file, file.name.split(".")[0]))
        return self.sessions(lambda: read_rows(path), root=path)

    def sessions(self, rows: RowSource, root: Path | None = None) -> Iterator[Session]:
        for row in rows():
            yield from trajectory_sessions(row, session_name(row, root), agent="swe-agent")


def _log_files(path: Path) -> list[Path]:
    """Return the logs of runs, unless trajectories of the same runs stand beside them."""
    if path.is_file():
        return wanted([path]) if is_run_log(head_of(path)) else []
    if any(io.is_trace_name(file.name) for file in path.rglob("*")):
        return []
    return wanted(sorted(file for file in path.rglob("*.log*") if is_run_log(head_of(file))))


def _holds_only_logs(sample: TraceSample) -> bool:
    logs = [name for name in sorted(sample.names) if ".log" in Path(name).name]
    if not logs or any(io.is_trace_name(name) for name in sample.names):
        return False
    return is_run_log(head_of(sample.path / logs[0]))


def session_name(row: Row, root: Path | None) -> str:
    """Return the path below the imported directory without its suffixes, or the id of a table's
    row.
    """
    for field in ("traj_id", "trajectory_id", "instance_id"):
        if isinstance(row.value.get(field), str):
            return str(row.value[field])
    file = Path(row.path)
    inner = file.relative_to(root) if root is not None and root.is_dir() else Path(file.name)
    name = inner.as_posix()
    for suffix in (".gz", ".zst", ".json", ".jsonl", ".traj"):
        name = name.removesuffix(suffix)
    return name if row.line is None else f"{name}:{row.line}"


def trajectory_sessions(row: Row, session_id: str, *, agent: str) -> Iterator[Session]:
    """Yield the session of a trajectory, or one for each attempt that it holds."""
    attempts = row.rows("attempts")
    if attempts and not row.items("trajectory"):
        for number, attempt in enumerate(attempts):
            yield from trajectory_sessions(attempt, f"{session_id}/{number}", agent=agent)
        return
    steps = _steps(row)
    if not steps:
        raise row.error("holds no answer of the model", "trajectory")
    stats = Row(row.mapping("info"), row.path, row.line).mapping("model_stats")
    sent = Row(stats, row.path, row.line).integer("tokens_sent", 0)
    yield chat_session(session_id, steps, agent=agent, model=_model(row), tokens_sent=sent)


def chat_session(
    session_id: str, steps: Sequence[ChatStep], *, agent: str, model: str, tokens_sent: int = 0
) -> Session:
    """Return a session of whole prompts. The text before the task is shared with sessions that have
    equal text.
    """
    ratio = fit_chars_per_token(steps, tokens_sent)
    steps = [
        step._replace(tools=tuple(_scaled_result(tool, ratio) for tool in step.tools))
        for step in steps
    ]
    prefix = opening_prefix(steps[0].prompt, ratio)
    return build_session(
        session_id, step_calls(steps, ratio), agent=agent, model=model, prefix=prefix
    )


def _scaled_result(tool: ToolCall, chars_per_token: float) -> ToolCall:
    """Turn ``result_tokens`` from characters into tokens, which was not possible before the ratio
    was known.
    """
    if tool.result_tokens is None:
        return tool
    return replace(tool, result_tokens=char_tokens(tool.result_tokens, chars_per_token))


def _steps(row: Row) -> list[ChatStep]:
    recorded = row.rows("trajectory")
    history = [chat_message(item.value) for item in row.rows("history")]
    answers = [i for i, m in enumerate(history) if m.role == "assistant" and not m.demonstration]
    if not recorded:
        return history_steps(history)
    steps: list[ChatStep] = []
    elided = _elision(row, history, answers)
    for index, item in enumerate(recorded):
        query = item.rows("query") or item.rows("messages")
        at = answers[index] if index < len(answers) else None
        if query:
            prompt: Sequence[Message] = _before_answer(
                [chat_message(m.value) for m in query], index
            )
        elif at is not None:
            prompt = elide(history[:at], elided)
        else:
            continue  # a step that made no call of its own (exit after an error)
        answer = history[at] if at is not None else Message("assistant", item.text("response", ""))
        steps.append(ChatStep(prompt, answer, _tool(item)))
    return steps


def _before_answer(query: list[Message], index: int) -> list[Message]:
    """Return a step's query without the step's own answer.

    NOTE: early 1.x wrote ``messages`` after the step, so they end with its answer and observation.
    """
    at = [i for i, m in enumerate(query) if m.role == "assistant" and not m.demonstration]
    return query[: at[index]] if len(at) > index else query


def _tool(step: Row) -> tuple[ToolCall, ...]:
    action = step.text("action", "").strip()
    if not action:
        return ()
    timed = step.value.get("execution_time") is not None
    tool = action_tool(action, step.number("execution_time") if timed else None)
    return (replace(tool, result_tokens=len(step.text("observation", ""))),)


def history_steps(history: Sequence[Message]) -> list[ChatStep]:
    """Return the steps of a bare message list, in which each answer's prompt is everything before
    it.
    """
    steps: list[ChatStep] = []
    for index, message in enumerate(history):
        if message.role not in {"assistant", "ai"} or message.demonstration or not index:
            continue
        results = [m for m in history[index + 1 : index + 2] if m.role in {"user", "tool"}]
        tools = tuple(_history_tool(*call, results) for call in message.calls)
        answer = replace(message, role="assistant")
        steps.append(ChatStep(tuple(history[:index]), answer, tools))
    return steps


def _history_tool(name: str, command: str, results: Sequence[Message]) -> ToolCall:
    kind = tool_class(name, command)
    chars = len(results[0].text) if results else None
    return ToolCall(name, kind, wall_s=TYPICAL_WALL_S[kind], result_tokens=chars)


def elide(messages: Sequence[Message], kept: int | None) -> list[Message]:
    """Return what the agent sends when only the last ``kept`` observations stay whole.

    The task and demonstrations stay; an older observation becomes one line (the line says how
    many were left out).
    """
    if kept is None:
        return list(messages)
    at = [i for i, m in enumerate(messages) if m.role in {"user", "tool"} and not m.demonstration]
    old = set(at[1:-kept])
    return [
        replace(m, text=f"({len(m.text.splitlines())} lines left out)") if i in old else m
        for i, m in enumerate(messages)
    ]


def _elision(row: Row, history: Sequence[Message], answers: Sequence[int]) -> int | None:
    """Return how many observations stay whole: as configured, or in 0.x whichever number fits
    tokens_sent.
    """
    configured, old_generation = kept_observations(row)
    if not old_generation:
        return configured
    stats = Row(Row(row.mapping("info"), row.path).mapping("model_stats"), row.path, row.line)
    sent = stats.integer("tokens_sent", 0)
    if not sent:
        return configured

    def misfit(kept: int | None) -> float:
        prompts = [elide(history[:at], kept) for at in answers]
        return abs(log(max(1, sum(m.tokens(CHARS_PER_TOKEN) for p in prompts for m in p)) / sent))

    return configured if misfit(configured) <= misfit(None) else None


def _model(row: Row) -> str:
    for field in ("model", "model_name"):
        if isinstance(row.value.get(field), str):
            return str(row.value[field])
    config = row.value.get("replay_config")
    if isinstance(config, str):
        try:
            config = msgspec.json.decode(config)
        except msgspec.DecodeError as error:
            raise row.error(f"not JSON ({error})", "replay_config") from error
    agent = config.get("agent") if isinstance(config, dict) else None
    model = agent.get("model") if isinstance(agent, dict) else None
    return str(model.get("name") or "") if isinstance(model, dict) else ""


IMPORTER = SweAgent()
