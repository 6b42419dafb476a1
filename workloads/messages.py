"""Chat messages to LLM calls: text lengths, tool calls, and what two prompts have in common."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import msgspec

from marsbench.core import SharedPrefix, ToolCall
from workloads.context import Call
from workloads.tool_class import TYPICAL_WALL_S, tool_class

CHARS_PER_TOKEN = 3.4
"""Text of tool results per token: 3.37 over 6,455 results of coding sessions whose tokens were
counted (Claude-2 tokenizer)."""
FRAMING_TOKENS = 4
"""Role markers of one chat message."""


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message, reduced to what its tokens depend on."""

    role: str
    text: str
    """Content and arguments of tool calls."""
    calls: tuple[tuple[str, str], ...] = ()
    """Tool name and command of each call."""
    demonstration: bool = False

    def tokens(self, chars_per_token: float) -> int:
        return text_tokens(self.text, chars_per_token) + FRAMING_TOKENS


class Step(NamedTuple):
    """One recorded LLM call of a chat: its whole prompt and its answer."""

    prompt: Sequence[Message]
    output: Message
    tools: tuple[ToolCall, ...] = ()
    think_s: float = 0.0


def text_tokens(text: str, chars_per_token: float = CHARS_PER_TOKEN) -> int:
    """Estimated tokens of a text."""
    return char_tokens(len(text), chars_per_token)


def char_tokens(chars: int, chars_per_token: float = CHARS_PER_TOKEN) -> int:
    """Estimated tokens of that many characters."""
    return math.ceil(chars / chars_per_token)


def content_text(content: object) -> str:
    """Text of a message content: a string, or a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(content_text(part) for part in content)
    if isinstance(content, dict):
        for key in ("text", "content", "thinking"):
            if key in content:
                return content_text(content[key])
    return ""


def chat_message(value: dict[str, Any]) -> Message:
    """A message in OpenAI form (also SWE-agent's and mini-SWE-agent's)."""
    calls: list[tuple[str, str]] = []
    arguments: list[str] = []
    for call in value.get("tool_calls") or ():
        function = (call.get("function") if isinstance(call, dict) else None) or {}
        raw = function.get("arguments") or ""
        raw = raw if isinstance(raw, str) else msgspec.json.encode(raw).decode()
        name = str(function.get("name") or "")
        calls.append((name, argument_command(raw)))
        arguments.append(name + raw)
    content = value.get("content", value.get("text"))
    return Message(
        role=str(value.get("role", "")),
        text=content_text(content) + "".join(arguments),
        calls=tuple(calls),
        demonstration=bool(value.get("is_demo")),
    )


def argument_command(arguments: object) -> str:
    """The command inside a tool call's arguments (a JSON string or an object); "" if none."""
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments)
        except msgspec.DecodeError:
            return ""
    if isinstance(arguments, dict):
        for key in ("command", "cmd", "code"):
            found = arguments.get(key)
            if isinstance(found, str):
                return found
            if isinstance(found, list):
                return " ".join(str(word) for word in found)
    return ""


def opening_prefix(prompt: Sequence[Message], chars_per_token: float) -> SharedPrefix | None:
    """System prompt and demonstrations: shared by all sessions that begin with the same text."""
    opening: list[Message] = []
    for message in prompt:
        if message.role != "system" and not message.demonstration:
            break
        opening.append(message)
    if not opening:
        return None
    text = "\0".join(message.text for message in opening)
    tokens = sum(message.tokens(chars_per_token) for message in opening)
    return SharedPrefix(text_id(text), tokens)


def text_id(text: str) -> str:
    """Id of a shared prefix that is known by its text."""
    return f"text/{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def untimed_tool(name: str, command: str, result: str | None) -> ToolCall:
    """A call whose duration the format does not record: the median of its class is assumed."""
    kind = tool_class(name, command)
    return ToolCall(
        name=name,
        tool_class=kind,
        wall_s=TYPICAL_WALL_S[kind],
        result_tokens=None if result is None else text_tokens(result),
    )


def fit_chars_per_token(steps: Sequence[Step], recorded_tokens: int) -> float:
    """Characters per token that make all prompts together as long as recorded.

    Only a plausible ratio (2 to 6) is believed; else ``CHARS_PER_TOKEN``.
    """
    framing = sum(FRAMING_TOKENS * len(step.prompt) for step in steps)
    chars = sum(len(message.text) for step in steps for message in step.prompt)
    if recorded_tokens <= framing:
        return CHARS_PER_TOKEN
    ratio = chars / (recorded_tokens - framing)
    return ratio if 2.0 <= ratio <= 6.0 else CHARS_PER_TOKEN


def step_calls(steps: Sequence[Step], chars_per_token: float = CHARS_PER_TOKEN) -> list[Call]:
    """Calls of chat steps: tokens from text, reuse from the messages two prompts begin with."""
    calls: list[Call] = []
    before: Sequence[Message] = ()
    answer: Message | None = None
    for step in steps:
        same = _common(before, step.prompt)
        unchanged = None
        if calls and same < len(before):
            unchanged = sum(m.tokens(chars_per_token) for m in step.prompt[:same])
        call = Call(
            prompt_tokens=sum(m.tokens(chars_per_token) for m in step.prompt),
            output_tokens=max(1, text_tokens(step.output.text, chars_per_token)),
            tools=step.tools,
            think_s=step.think_s,
            unchanged_tokens=unchanged,
        )
        if answer is not None and not _resends(step.prompt, same, answer):
            calls[-1] = replace(calls[-1], resent_tokens=0)
        calls.append(call)
        before, answer = step.prompt, step.output
    return calls


def _common(before: Sequence[Message], after: Sequence[Message]) -> int:
    same = 0
    for old, new in zip(before, after, strict=False):
        if (old.role, old.text) != (new.role, new.text):
            break
        same += 1
    return same


def _resends(prompt: Sequence[Message], start: int, output: Message) -> bool:
    """Whether a prompt carries the previous answer after what it has in common with before."""
    return any(m.role == "assistant" and m.text == output.text for m in prompt[start:])
