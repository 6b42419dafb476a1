"""Importer of ATIF trajectories (Agent Trajectory Interchange Format 1.x), as Harbor writes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from marsbench.core import Session, ToolCall
from marsbench.trace.importer import TraceSample
from workloads.context import RecordedCall, build_session
from workloads.messages import (
    CHARS_PER_TOKEN,
    ChatStep,
    Message,
    argument_command,
    content_text,
    opening_prefix,
    step_calls,
    untimed_tool,
)
from workloads.rows import Row, RowSource, read_rows, recognise

SCHEMA = "ATIF-v1."


class Atif:
    """Reads one trajectory after the other."""

    name = "atif"
    summary = "ATIF trajectories (Harbor, Terminal-Bench): steps, tool calls, token metrics"
    provenance: Mapping[str, str] = {
        "agent": "recorded",
        "model": "recorded",
        "turns": "recorded: agent steps, but for those without an LLM call or copied for context",
        "new_input_tokens": "derived: growth of recorded prompts less the re-sent output; "
        "characters / 3.4 where a trajectory lacks metrics",
        "output_tokens": "recorded, or derived: characters / 3.4",
        "resent_output": "assumed: 1.0 where the prompt has room for the whole output",
        "tools.name": "recorded",
        "tools.class": "derived: from name and command",
        "tools.wall_s": "assumed: median of the class, since the format does not time tool calls; "
        "0 for a call whose sub-agent is recorded",
        "tools.result_tokens": "derived: characters / 3.4",
        "children": "recorded: embedded sub-agent trajectories",
        "shared_prefix": "recorded: equal text of the system steps",
    }

    def sniff(self, sample: TraceSample) -> bool:
        return recognise(sample, self.matches)

    def matches(self, value: Any) -> bool:
        """Tell whether a decoded value is a trajectory, or the beginning of one."""
        return isinstance(value, dict) and str(value.get("schema_version")).startswith(SCHEMA)

    def read(self, path: Path) -> Iterator[Session]:
        return self.sessions(lambda: read_rows(path))

    def sessions(self, rows: RowSource) -> Iterator[Session]:
        seen: set[str] = set()
        for row in rows():
            name = row.text("trajectory_id", row.text("session_id", Path(row.path).stem))
            # NOTE: the format lets trajectories of one run share a session id.
            session_id = name if name not in seen else f"{name}:{len(seen)}"
            seen.add(session_id)
            yield _session(row, session_id)


def _session(row: Row, session_id: str) -> Session:
    agent = row.child(row.mapping("agent"), "agent")
    steps = row.rows("steps")
    embedded = {
        child.text("trajectory_id", ""): child for child in row.rows("subagent_trajectories")
    }
    chat, places = _chat(steps, embedded)
    if not chat:
        raise row.error("expected an agent step with an LLM call after a prompt", "steps")
    calls = _recorded(step_calls(chat), [steps[place] for place in places])
    for index, place in enumerate(places):
        children = [
            _session(embedded[name], f"{session_id}/{name}")
            for name in _references(steps[place])
            if name in embedded
        ]
        calls[index] = replace(calls[index], children=tuple(children))
    return build_session(
        session_id,
        calls,
        agent=agent.text("name", ""),
        model=agent.text("model_name", ""),
        prefix=opening_prefix(chat[0].prompt, CHARS_PER_TOKEN),
    )


def _chat(steps: Sequence[Row], embedded: Mapping[str, Row]) -> tuple[list[ChatStep], list[int]]:
    """Return the steps with an LLM call: prompt, answer and tools of each, and its place in the
    list.
    """
    context: list[Message] = []
    chat: list[ChatStep] = []
    places: list[int] = []
    for place, step in enumerate(steps):
        source = step.text("source")
        answer = _message(step, "assistant" if source == "agent" else source)
        called = source == "agent" and step.value.get("llm_call_count") != 0
        if called and not step.value.get("is_copied_context") and context:
            chat.append(ChatStep(tuple(context), answer, _tools(step, embedded)))
            places.append(place)
        context.append(answer)
        context += _results(step)
    return chat, places


def _message(step: Row, role: str) -> Message:
    arguments = [
        call.text("function_name", "") + msgspec.json.encode(call.value.get("arguments")).decode()
        for call in step.rows("tool_calls")
    ]
    text = content_text(step.value.get("message"))
    text += content_text(step.value.get("reasoning_content"))
    return Message(role, text + "".join(arguments))


def _results(step: Row) -> list[Message]:
    observation = step.child(step.mapping("observation"), "observation")
    results = [content_text(result.value.get("content")) for result in observation.rows("results")]
    return [Message("tool", text) for text in results]


def _tools(step: Row, embedded: Mapping[str, Row]) -> tuple[ToolCall, ...]:
    """Return the tool calls of a step. One whose sub-agent is recorded takes no time of its own."""
    observation = step.child(step.mapping("observation"), "observation")
    results = {result.text("source_call_id", ""): result for result in observation.rows("results")}
    tools: list[ToolCall] = []
    for call in step.rows("tool_calls"):
        result = results.get(call.text("tool_call_id", ""))
        text = None if result is None else content_text(result.value.get("content"))
        command = argument_command(call.value.get("arguments"))
        tool = untimed_tool(call.text("function_name", "tool"), command, text)
        if result is not None and any(name in embedded for name in _referred(result)):
            tool = replace(tool, tool_class="subagent", wall_s=0.0)
        tools.append(tool)
    return tuple(tools)


def _recorded(estimated: Sequence[RecordedCall], steps: Sequence[Row]) -> list[RecordedCall]:
    """Return the calls with the recorded token counts if every step has them, else as estimated."""
    metrics = [step.child(step.mapping("metrics"), "metrics") for step in steps]
    prompts = [counts.integer("prompt_tokens", 0) for counts in metrics]
    if not all(prompts):
        return list(estimated)
    return [
        RecordedCall(prompt, counts.integer("completion_tokens", call.output_tokens), call.tools)
        for prompt, counts, call in zip(prompts, metrics, estimated, strict=True)
    ]


def _references(step: Row) -> list[str]:
    """Return the ids of the embedded trajectories that the results of a step refer to."""
    observation = step.child(step.mapping("observation"), "observation")
    return [name for result in observation.rows("results") for name in _referred(result)]


def _referred(result: Row) -> list[str]:
    references = result.rows("subagent_trajectory_ref")
    return [reference.text("trajectory_id", "") for reference in references]


IMPORTER = Atif()
